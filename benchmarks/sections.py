"""`train` and the other sections compare Treadle with rivals, and with itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from treadle.benchmarks import settings as cases
from treadle.benchmarks.answer_check import AnswerCheck
from treadle.benchmarks.figures import ratio
from treadle.benchmarks.peak import flops_per_token
from treadle.benchmarks.progress import Say
from treadle.benchmarks.race import OURS, Row, as_json, compare, race
from treadle.benchmarks.rivals import (
    Entrant,
    Workers,
    earlier,
    jax_decoding,
    jax_decoding_all_cores,
    numpy_training,
    onnxruntime_scoring,
    pytorch_decoding,
    pytorch_training,
)
from treadle.benchmarks.settings import Case, Settings


def checked(ours: Entrant, rivals: Mapping[str, Sequence[Entrant]], settings: Settings) -> Row:
    """Compares as `compare` does, and counts only who computes the same; see `AnswerCheck`.

    Args:
        ours: of the case.
        rivals: the settings of each, by its name.
        settings: how long.

    Returns:
        The row; `off` holds by name how far each was from the reference.
    """
    answers = AnswerCheck()
    row = compare(ours, rivals, settings, answers.check)
    return {**row, "off": answers.off}


def train(workers: Workers, settings: Settings, say: Say) -> list[Row]:
    """Compares training steps with PyTorch's; the last row is RLtools' task."""
    rows = []
    for case in [*cases.train_cases(settings), cases.rltools_case(settings)]:
        say(f"train {case.label}, vocabulary {case.vocabulary}")
        rivals = {"pytorch": pytorch_training(workers, case), **earlier(workers, case)}
        rows.append(compare(Entrant(workers.ours, case), rivals, settings))
    return rows


def bf16(workers: Workers, settings: Settings, say: Say) -> list[Row]:
    """Compares bfloat16 training steps with PyTorch's autocast, and with ours of float32."""
    rows = []
    for case in cases.bf16_cases(settings):
        say(f"bf16 {case.label}")
        rivals = {
            "pytorch_bf16": pytorch_training(workers, case, autocast=True),
            "fp32": [Entrant(workers.ours_again, case)],
        }
        ours = Entrant(workers.ours, case, options={"precision": "bf16"})
        rows.append(compare(ours, rivals, settings))
    return rows


def against_numpy(workers: Workers, settings: Settings, say: Say) -> list[Row]:
    """Compares training steps with the plain NumPy reference in both widths."""
    rows = []
    for case in cases.numpy_cases(settings):
        say(f"numpy {case.label}, batch {case.rows}")
        rivals = {
            f"numpy_{dtype}": numpy_training(workers, case, dtype)
            for dtype in ("float32", "float64")
        }
        rows.append(compare(Entrant(workers.ours, case), rivals, settings))
    return rows


def decode(workers: Workers, settings: Settings, say: Say) -> list[Row]:
    """Compares one session on one thread; JAX also with all the processors it can take."""
    rows = []
    for case in cases.decode_cases(settings):
        say(f"decode {case.label}")
        rivals = {
            "pytorch": pytorch_decoding(workers, case),
            "jax": jax_decoding(workers.jax_one_core, case),
            "jax_all_cores": jax_decoding_all_cores(workers, case),
            **earlier(workers, case),
        }
        rows.append(checked(Entrant(workers.ours, case), rivals, settings))
    return rows


def score(workers: Workers, settings: Settings, say: Say) -> list[Row]:
    """Compares forward passes with ONNX Runtime's, which stop at the logits."""
    rows = []
    for case in cases.score_cases(settings):
        say(f"score {case.label}")
        rivals = {"onnxruntime": onnxruntime_scoring(workers, case), **earlier(workers, case)}
        rows.append(checked(Entrant(workers.ours, case), rivals, settings))
    return rows


def sessions(workers: Workers, settings: Settings, say: Say) -> list[Row]:
    """Compares many sessions decoded together with one, on one thread."""
    rows = []
    for case in cases.sessions_cases(settings):
        say(f"{case.rows} sessions {case.label}")
        single = Entrant(workers.ours_again, cases.alone(case))
        rivals = {"alone": [single], **earlier(workers, case)}
        row = compare(Entrant(workers.ours, case), rivals, settings)
        rows.append(row)
    return rows


def peak(workers: Workers, settings: Settings, say: Say) -> list[Row]:
    """Measures which share of the processor's multiply-adds a whole training step makes useful."""
    return [_against_peak(workers, settings, case, say) for case in cases.peak_cases(settings)]


def _against_peak(workers: Workers, settings: Settings, case: Case, say: Say) -> Row:
    say(f"peak {case.label}")
    registers = Entrant(workers.ours_again, Case("peak", case.cell, 1, threads=case.threads))
    entrants = {OURS: Entrant(workers.ours, case), "peak": registers}
    samples, notes = race(entrants, settings.rounds, settings.seconds)
    tokens_a_flop = ratio(samples.get(OURS), samples.get("peak"))
    flops = flops_per_token(case)
    return {
        "label": case.label,
        "case": case.as_json(),
        "ours": as_json(samples.get(OURS)),
        "peak_flops": as_json(samples.get("peak")),
        "flops_per_token": flops,
        "fraction": None if tokens_a_flop is None else tokens_a_flop * flops,
        "notes": notes,
    }
