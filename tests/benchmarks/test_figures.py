"""Medians, ratios, means and the summary made of them."""

import pytest

from treadle.benchmarks.figures import Samples, geomean, least, ratio
from treadle.benchmarks.settings import SECTIONS
from treadle.benchmarks.summary import losses, summarize

from .reports import make_results


def test_a_figure_is_the_median_of_its_samples() -> None:
    figure = Samples((1.0, 50.0, 2.0, 3.0, 2.5))
    assert figure.median == 2.5
    assert figure.spread == pytest.approx(49 / 2.5)
    assert figure.as_json() == {
        "median": 2.5,
        "spread": pytest.approx(49 / 2.5),
        "samples": [1.0, 50.0, 2.0, 3.0, 2.5],
    }


def test_ratios_are_of_medians() -> None:
    assert ratio(Samples((1.0, 6.0, 9.0)), Samples((2.0, 3.0, 100.0))) == 2.0


def test_what_was_not_measured_has_no_ratio() -> None:
    assert ratio(Samples((1.0,)), None) is None
    assert ratio(None, Samples((1.0,))) is None
    assert ratio(Samples((1.0,)), Samples((0.0,))) is None


def test_means_leave_out_what_was_not_measured() -> None:
    assert geomean([2.0, None, 8.0]) == pytest.approx(4.0)
    assert least([2.0, None, 8.0]) == 2.0
    assert geomean([None]) is None
    assert least([]) is None


def test_summary() -> None:
    assert summarize(make_results()) == {
        "train_vs_pytorch_geomean": pytest.approx(2.0),
        "train_vs_pytorch_min": pytest.approx(1.0),
        "train_bf16_vs_pytorch_bf16_min": pytest.approx(2.0),
        "rltools_task_vs_pytorch": pytest.approx(2.0),
        "peak_fraction_min": None,
        "peak_fraction_lstm_64": 0.5,
        "peak_fraction_lstm_128": None,
        "train_vs_numpy_min": pytest.approx(5.0),
        "decode_vs_pytorch_min": None,
        "decode_vs_jax_min": pytest.approx(0.5),
        "decode_vs_earlier_min": None,
        "decode_vs_jax_all_cores_min": None,
        "decode_64_vs_1_min": pytest.approx(10.0),
        "score_vs_onnxruntime_min": None,
        "int8_decode_vs_jax_min": pytest.approx(5.0),
        "int8_decode_vs_fp32_min": pytest.approx(2.0),
        "int8_decode_vs_earlier_fp32_min": None,
        "int8_decode_vs_pytorch_int8_min": None,
        "int8_64_vs_fp32_min": pytest.approx(4.0),
        "int8_64_vs_pytorch_int8_min": None,
        "int8_score_lstm_vs_onnxruntime_min": pytest.approx(2.5),
        "int8_score_vs_onnxruntime_min": pytest.approx(2.0),
        "int8_score_vs_onnxruntime_int8_min": pytest.approx(0.8),
        "int8_score_vs_pytorch_int8_min": None,
        "int8_score_vs_fp32_min": None,
        "busy_slowdown": 1.0,
        "busy_slowdown_pytorch": None,
        "start_s": 100.0,
        "warm_s": 100.0,
        "cold_s": None,
        "cold_cpu_s": None,
        "serving_s": None,
        "trained_s": None,
    }


def test_losses_are_what_a_rival_does_faster() -> None:
    behind = {"section": "decode", "label": "LSTM 64", "rival": "jax", "ratio": 0.5}
    rival = "onnxruntime_int8"
    other = {"section": "int8", "label": "GRU 64", "rival": rival, "ratio": 0.8}
    assert losses(make_results()) == [behind, other]
    assert losses(dict.fromkeys(SECTIONS)) == []


def test_summary_of_nothing() -> None:
    summary = summarize(dict.fromkeys(SECTIONS))
    assert set(summary) == set(summarize(make_results()))
    assert set(summary.values()) == {None}
