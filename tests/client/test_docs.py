"""The examples of docs/client.md say what the command line and the client really take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from treadle.client.cli import make_parser
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[str]:
    """Every command of the page; the summary at its head is none."""
    lines = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
    found = [line for line in lines if line.startswith("treadle ") and "FILE" not in line]
    return [line for line in found if not re.search(r"\S {2,}[a-z]|JOB|MODEL|NAME|\|$", line)]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one(line: str) -> None:
    words = shlex.split(line.replace("$'\\n'", "'\n'").partition("<")[0], comments=True)
    parsed = make_parser().parse_args(words[1:])
    assert callable(parsed.run)


def test_there_are_commands() -> None:
    kinds = {line.split()[1] for line in commands()}
    assert kinds >= {"train", "jobs", "watch", "curve", "generate", "score", "models"}


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
