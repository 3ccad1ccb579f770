"""Made-up results in the form of the sections, for the tests of their readers."""

from typing import Any

from treadle.benchmarks.figures import Samples, ratio
from treadle.benchmarks.settings import Case

FIGURES = Samples((90.0, 100.0, 130.0))


def make_row(case: Case, **rivals: float | None) -> dict[str, Any]:
    """A row in which ours is at 100 and each rival at the given median, or not measured."""
    samples = {name: None if rate is None else Samples((rate,)) for name, rate in rivals.items()}
    return {
        "label": case.label,
        "case": case.as_json(),
        "ours": FIGURES.as_json(),
        "rivals": {
            name: None if figure is None else {**figure.as_json(), "way": "its best"}
            for name, figure in samples.items()
        },
        "ratios": {name: ratio(FIGURES, figure) for name, figure in samples.items()},
        "notes": [] if all(rivals.values()) else ["torch is not installed"],
    }


def make_results() -> dict[str, Any]:
    lstm = Case("train", "lstm", 64, rows=32)
    return {
        "check": {
            "gradient_error": {"lstm": 1e-9},
            "kernel_error": {"lstm": 1e-7},
            "same_bits_threads": [1, 2, 3],
            "same_bits_processors": ["znver4", "haswell"],
        },
        "train": [
            make_row(lstm, pytorch=25.0),
            make_row(Case("train", "gru", 64, rows=32), pytorch=100.0),
            make_row(Case("train", "gru", 64, rows=32, vocabulary=256), pytorch=50.0),
        ],
        "bf16": [make_row(lstm, pytorch_bf16=50.0, fp32=80.0)],
        "peak": [
            {
                "label": "LSTM 64",
                "case": lstm.as_json(),
                "ours": FIGURES.as_json(),
                "peak_flops": FIGURES.as_json(),
                "flops_per_token": 0.5,
                "fraction": 0.5,
                "notes": [],
            }
        ],
        "numpy": [make_row(lstm, numpy_float32=20.0, numpy_float64=10.0)],
        "decode": [make_row(lstm, pytorch=None, jax=200.0, jax_all_cores=None)],
        "sessions": [make_row(Case("decode", "lstm", 64, rows=64), alone=10.0)],
        "score": [make_row(lstm, onnxruntime=None)],
        "int8": {
            "decode": [make_row(lstm, fp32=50.0, jax=20.0, pytorch_int8=None)],
            "sessions": [make_row(Case("decode", "lstm", 64, rows=64), fp32=25.0)],
            "score": [
                make_row(Case("score", "lstm", 64), onnxruntime=40.0, onnxruntime_int8=80.0),
                make_row(Case("score", "gru", 64), onnxruntime=50.0, onnxruntime_int8=125.0),
            ],
        },
        "busy": {
            "label": "LSTM 64",
            "case": lstm.as_json(),
            "notes": [],
            "ours": {"quiet": FIGURES.as_json(), "busy": FIGURES.as_json(), "slowdown": 1.0},
            "pytorch": {"quiet": None, "busy": None, "slowdown": None},
        },
        "start": {"first_token_s": FIGURES.as_json(), "warm_s": FIGURES.as_json(), "cold_s": None},
    }
