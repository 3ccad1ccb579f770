"""The examples of docs/client.md say what the command line and the client really take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from treadle.client.cli import make_parser
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs" / "client.md").read_text())


def commands() -> list[str]:
    """Every command of the page; the summary at its head is none."""
    lines = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
    found = [line for line in lines if line.startswith("treadle ") and "FILE" not in line]
    return [line for line in found if not re.search(r"\S {2,}[a-z]|JOB|MODEL|NAME|\|$", line)]


def commands_of_readme() -> list[str]:
    """Every command of the README, those behind a pipe included."""
    shell = [text for kind, text in BLOCK.findall((ROOT / "README.md").read_text()) if kind == "sh"]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in re.split(r" \| | && ", line)]
    return [part for part in parts if part.startswith("treadle ")]


@pytest.mark.parametrize("line", commands() + commands_of_readme())
def test_every_command_is_one(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for state in re.findall(r"--state (\S+)", line):  # read with the command line itself
        Path(state).write_bytes(b"state")
    line = line.partition(" > ")[0]
    words = shlex.split(line.replace("$'\\n'", "'\n'").partition("<")[0], comments=True)
    parsed = make_parser().parse_args(words[1:])
    assert callable(parsed.run)


def test_there_are_commands() -> None:
    kinds = {line.split()[1] for line in commands()}
    assert kinds >= {
        *("train", "jobs", "watch", "curve", "models", "generate", "chat"),
        *("score", "score-stream", "embed"),
    }


def run_example(mark: str, address: str, blocks: list[tuple[str, str]] = BLOCKS) -> None:
    """Runs the one Python example of a page that has a mark."""
    (code,) = [text for kind, text in blocks if kind == "python" and mark in text]
    exec(compile(code.replace("127.0.0.1:50051", address), "client.md", "exec"), {})


def test_the_example_of_many_texts_runs(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.service.novel = {f"name {i}": i > 5 for i in range(60)}
    run_example("generate_many(", server.address)
    *items, found, one, first, twin, again = capsys.readouterr().out.splitlines()
    assert [one, first, twin, again] == ["ello"] * 4
    assert len({item.rpartition(" -")[0] for item in items}) == len(items) == 20
    assert re.fullmatch(r"0 of 20 were not found in \d+ tries", found)


def test_the_readmes_example_of_a_memory_runs(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example(".session(", server.address, BLOCK.findall((ROOT / "README.md").read_text()))
    assert capsys.readouterr().out == "ello\nello\n"
    first, second = server.service.requests
    assert second.state == b"ROMEO:\nWhat say you to ello"
    assert (first.version, second.version) == (0, 1)


def test_the_example_of_streams_runs(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run_example("open_learn_stream(", server.address)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "-2.0 [13, 1]",
        "-3.0 [2, 9, 1]",
        "1.4427",
        "2.71828",
        "1",
        "-3.0",
        "-3.0",
        "2",
        "4",
    ]


def test_the_example_of_jobs_runs(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [text for kind, text in BLOCKS if kind == "python" and "detach()" in text]
    exec(compile(code.replace("127.0.0.1:50051", server.address), "client.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["3 100", "4 200", "1", "ello", "ello", "a1-job 200"]
    assert [file.role for file in server.service.files] == [
        v1.CORPUS_ROLE_TRAIN,
        v1.CORPUS_ROLE_VALID,
    ]
    assert server.service.jobs == {}
