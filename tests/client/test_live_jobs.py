"""`treadle jobs --follow` and `treadle curve --live`: lists and curves that are drawn again."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.terminal import live_jobs
from treadle.client.cli.display.terminal.keys import NO_KEY
from treadle.client.errors import PermissionDeniedError, ServerError, UnavailableError
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService
from .shell import PATIENCE_S, command, complaint, environment, run
from .test_rich_terminal import ESCAPES, SHOW, Terminal
from .test_terminal import watch

HEAD = ("id", "model", "state", "loss")


class Typed:
    """Keys that are typed, one at a time."""

    def __init__(self, keys: str) -> None:
        self._keys = iter(keys)

    def __call__(self) -> Typed:
        return self

    def __enter__(self) -> Typed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass

    def wait(self, timeout_s: float) -> str:
        key = next(self._keys)
        return NO_KEY if key == "." else key


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return Console(Terminal(), {"TERM": "xterm"})


def test_jobs_are_drawn_until_q(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_jobs, "Keys", Typed("." * 10 + "q"))
    asked = []

    def load(most: int) -> list[tuple[str, ...]]:
        asked.append(most)
        return [("a1", "世界[bold]\x1b[31m", "running", f"{len(asked)}.0")]

    live_jobs.show_jobs(console, HEAD, load, (3,))
    assert isinstance(console.out, Terminal)
    seen = ESCAPES.sub("", console.out.getvalue())
    assert asked == [21, 21]
    assert "世界[bold]\\x1b[31m" in seen
    assert seen.index("1.0") < seen.index("2.0")
    assert "q or Ctrl-C leaves" in seen


def test_a_broken_connection_is_retried(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_jobs, "Keys", Typed("." * 30 + "q"))
    broken = ServerError("the token has expired")
    broken.broken = True
    replies: Iterator[object] = iter([[], UnavailableError("it is gone"), broken, []])

    def load(most: int) -> list[tuple[str, ...]]:
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return []

    live_jobs.show_jobs(console, HEAD, load, ())
    assert isinstance(console.out, Terminal)
    seen = console.out.getvalue()
    assert "no jobs yet" in seen
    assert "it is gone; trying again ..." in seen
    assert "the token has expired; trying again ..." in seen


def test_another_error_ends_the_list(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_jobs, "Keys", Typed("." * 10))
    replies: Iterator[object] = iter([[], PermissionDeniedError("no")])

    def load(most: int) -> list[tuple[str, ...]]:
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return []

    with pytest.raises(PermissionDeniedError):
        live_jobs.show_jobs(console, HEAD, load, ())
    assert isinstance(console.out, io.StringIO)
    assert console.out.getvalue().endswith(SHOW + "\r\x1b[2K\x1b[1A\x1b[2K") or SHOW in (
        console.out.getvalue()
    )


@contextmanager
def following(address: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Runs `treadle jobs --follow` on a terminal until its first list is there."""
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm", PYTHONIOENCODING="utf-8")
    words = command(address, "jobs", "--follow")
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        killer = threading.Timer(PATIENCE_S, process.kill)
        killer.start()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        seen = b""
        while b"leaves" not in seen:
            seen += os.read(ours, 4096)
        yield process, ours
        killer.cancel()
        assert termios.tcgetattr(theirs)[3] & termios.ECHO
        os.close(theirs)
    os.close(ours)


def test_q_leaves(server: FakeServer) -> None:
    with following(server.address) as (process, terminal):
        os.write(terminal, b"q")
        assert process.wait(PATIENCE_S) == 0


def test_ctrl_c_gives_the_terminal_back(server: FakeServer) -> None:
    with following(server.address) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130


def test_without_a_terminal_each_change_is_a_row(server: FakeServer, service: FakeService) -> None:
    first = service.accept(v1.TrainSpec(model="first"))
    second = service.accept(v1.TrainSpec(model="second"))
    words = command(server.address, "jobs", "--follow")
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        rows = [process.stdout.readline().decode().split("\t") for _ in range(2)]
        third = service.accept(v1.TrainSpec(model="third"))
        rows.append(process.stdout.readline().decode().split("\t"))
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    assert [row[:2] for row in rows] == [[first, "first"], [second, "second"], [third, "third"]]


def test_a_live_curve_stays_at_the_end(server: FakeServer, service: FakeService) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    seen = ESCAPES.sub("", watch(server.address, "curve", job, "--live", rich=True))
    assert "m   running" in seen
    assert re.search(r"train +● valid", seen.splitlines()[-1])
    assert "note:" not in seen


def test_a_live_curve_needs_a_terminal(server: FakeServer) -> None:
    piped = complaint(run(server.address, "curve", "latest", "--live"), 2)
    assert "--live needs a terminal with color and the extra [cli]" in piped
    both = complaint(run(server.address, "curve", "latest", "--live", "--out", "a.svg"), 2)
    assert "leave --out out" in both
