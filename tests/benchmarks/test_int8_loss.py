"""What int8 costs: the table, and a run on small corpora."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import model_of

from treadle.benchmarks import int8_loss
from treadle.benchmarks.int8_loss import SOURCES, TRAINED, Measured, line, product_bytes
from treadle.model import InferencePrecision, train


def test_a_row_has_both_losses_their_difference_and_the_bytes() -> None:
    row = line("names", "LSTM 128", Measured(2.0, 2.00125, 4096, 1024))
    assert row == "| names | LSTM 128 | 2.00000 | 2.00125 | +0.00125 | 4 KiB | 1 KiB | 4.00 |"


def test_a_row_says_where_int8_costs_more_than_is_asked() -> None:
    assert "+0.00300 (more than 0.002)" in line("a", "b", Measured(2.0, 2.003, 4, 1))


def test_every_corpus_has_a_network_and_every_kind_a_case() -> None:
    assert {case.source for case in TRAINED} == set(SOURCES)
    labels = [case.label for case in TRAINED]
    assert len(set(zip((case.source for case in TRAINED), labels, strict=True))) == len(TRAINED)
    for word in ("LSTM 256", "GRU", "2x", "tied", "one-hot"):
        assert any(word in label for label in labels)


def test_without_a_corpus_there_is_nothing_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        int8_loss.main([])
    assert raised.value.code == 2
    assert "give one of --text, --lines, --events, --words" in capsys.readouterr().err


def test_a_model_that_is_missing_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    assert int8_loss.main(["--model", str(tmp_path / "none"), "--text", str(text)]) == 2
    assert capsys.readouterr().err.startswith("int8_loss.py: [Errno 2] No such file")


def test_int8_panels_are_about_a_quarter_as_large() -> None:
    model = model_of(hidden_size=64)
    fp32 = product_bytes(model.weights)
    int8 = product_bytes(model.at(InferencePrecision.INT8).weights)
    assert 3 < fp32 / int8 < 4


@pytest.mark.jit
def test_a_run_prints_a_row_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    words = tmp_path / "words.txt"
    words.write_bytes(" ".join(rng.choice(["wo", "der", "f\xfcr"], 400)).encode("latin-1"))
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{'ab' * int(n)}\n" for n in rng.integers(1, 6, 300)))
    code = int8_loss.main(["--words", str(words), "--lines", str(lines), "--tokens", "4000"])
    _, _, _, *rows, _, verdict = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[1] for row in rows] == ["LSTM 128", "LSTM 200", "LSTM 200, tied"]
    assert code == 0, verdict
    assert verdict.startswith("int8 costs at most")


@pytest.mark.jit
def test_a_model_file_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text to read. " * 30)
    train(text.read_text(), max_steps=2).save(tmp_path / "small.safetensors")
    arguments = ["--model", str(tmp_path / "small.safetensors"), "--text", str(text)]
    assert int8_loss.main(arguments) == 0
    assert "| text.txt | small.safetensors |" in capsys.readouterr().out
