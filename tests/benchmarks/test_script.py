"""A script whose file cannot be used ends with a sentence, before it measures anything."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from treadle.benchmarks.script import exit_code, input_file
from treadle.model.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

ONE = "none.txt"
SCRIPTS = {
    "abuse": ["--compare", ONE, ONE],
    "auto_batches": [ONE],
    "hdfs": [ONE, ONE],
    "hdfs_sessions": [ONE, ONE],
    "large_corpus": [ONE],
    "names": [ONE],
    "ngram_baseline": [ONE, "5"],
    "online": [ONE],
    "recipes": [ONE],
    "shakespeare": [ONE],
    "softmax": [ONE],
}
"""Arguments with a file that is missing."""

OTHER_PATHS = {"--constants", "--data", "--json", "--plot"}
"""Arguments for what a script writes."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_missing_file_is_a_sentence(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    main: Callable[[list[str]], object] = importlib.import_module(f"treadle.benchmarks.{name}").main
    with pytest.raises(SystemExit) as caught:
        main(SCRIPTS[name])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].endswith("cannot read none.txt: No such file or directory")
    assert printed.out == ""


def test_every_script_that_takes_a_file_is_tried() -> None:
    takers = set()
    for path in BENCHMARKS.glob("*.py"):
        text = path.read_text()
        for flag in re.findall(r'add_argument\(\s*"([^"]+)",\s*type=Path', text):
            assert flag in OTHER_PATHS or path.stem == "int8_loss", (path.name, flag)
        if "type=input_file" in text:
            takers.add(path.stem)
    assert takers == set(SCRIPTS)


def test_what_can_be_read_is_a_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert input_file(str(file)) == file


def test_what_a_model_refuses_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise ConfigError("the vocabulary is too small")

    assert exit_code(main) == 2
    assert capsys.readouterr().err.endswith(": the vocabulary is too small\n")
    assert exit_code(lambda: 1) == 1
