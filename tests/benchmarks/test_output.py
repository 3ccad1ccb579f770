"""Tables and chart of made-up results."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from treadle.benchmarks import chart
from treadle.benchmarks.machine import describe
from treadle.benchmarks.settings import SECTIONS
from treadle.benchmarks.summary import losses, summarize
from treadle.benchmarks.tables import losses_text, section_text, summary_text

from .reports import make_results

NAMESPACE = {"svg": "http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_has_a_table(section: str) -> None:
    text = section_text(section, make_results()[section])
    title, _, table = text.partition("\n\n")
    assert title
    assert table
    assert "None" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_comparison_shows_figures_ratios_and_settings() -> None:
    text = section_text("train", make_results()["train"])
    assert "LSTM 64 B32 T64" in text
    assert "100 ±20%" in text
    assert "4.00x" in text
    assert "its best" in text
    assert "RLtools" in text


def test_a_missing_peer_is_named_once() -> None:
    text = section_text("decode", make_results()["decode"])
    assert text.count("torch is not installed") == 1
    assert "0.50x" in text


def test_a_busy_machine_is_named_so() -> None:
    assert "other programs" not in section_text("machine", {**describe(), "load_average": 0.1})
    assert "(load 3.2)" in section_text("machine", {**describe(), "load_average": 3.2})
    assert describe()["processor"] in section_text("machine", describe())


def test_a_machine_of_one_processor_has_no_disturbance() -> None:
    assert "needs two" in section_text("busy", {"notes": ["needs two processors"]})


def test_summary_leaves_out_what_was_not_measured() -> None:
    text = summary_text(summarize(make_results()))
    assert "train_vs_pytorch_geomean" in text
    assert "cold_s" not in text
    assert summary_text({"start_s": None}) == ""


def test_losses_name_case_and_rival() -> None:
    text = losses_text(losses(make_results()))
    assert "decode LSTM 64  0.50x  JAX, one core" in text
    assert losses_text([]) == ""


def test_int8_is_held_against_float32_and_int8_elsewhere() -> None:
    text = section_text("int8", make_results()["int8"])
    assert [line for line in text.splitlines() if "int8 weights" in line] == [
        "Decoding with int8 weights, one session, one thread, tokens a second",
        "Decoding 64 sessions together with int8 weights, one thread, tokens a second",
        "Scoring a batch with int8 weights (rivals: to logits only), tokens a second",
    ]
    assert "int8 GRU 64     0.80x  ONNX Runtime int8" in losses_text(losses(make_results()))


def test_the_chart_is_well_formed(tmp_path: Path) -> None:
    path = tmp_path / "ratios.svg"
    chart.write(make_results(), path)
    root = ElementTree.parse(path).getroot()
    bars = root.findall("svg:rect", NAMESPACE)
    assert len(bars) == 5  # three of training, one of JAX, one of NumPy
    assert [bar.get("class") for bar in bars].count("behind") == 1
    width = float(root.get("width", "0"))
    for bar in bars:
        assert 0 < float(bar.get("x", "0")) + float(bar.get("width", "0")) < width
    assert "prefers-color-scheme: dark" in path.read_text("utf-8")


def test_bars_are_as_long_as_their_ratios(tmp_path: Path) -> None:
    (panel, *_) = chart.panels(make_results())
    assert panel.bars == (("LSTM 64", 4.0), ("GRU 64", 1.0), ("GRU 64 RLtools", 2.0))
    root = ElementTree.fromstring(chart.svg({"train": make_results()["train"]}))
    widths = [float(bar.get("width", "0")) for bar in root.findall("svg:rect", NAMESPACE)]
    assert [width / widths[1] for width in widths] == pytest.approx([4.0, 1.0, 2.0], rel=1e-2)


def test_a_chart_of_nothing_says_so() -> None:
    assert "Nothing was measured" in chart.svg(dict.fromkeys(SECTIONS))
