"""How much of an upload or a download is done: a bar, lines, or nothing."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import pytest

from treadle.client.cli.display import transfer_progress
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.transfer_progress import (
    TransferLines,
    TransferProgress,
    transfer_text,
)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal, and no time to wait for a display."""
    terminal = Terminal()
    monkeypatch.setattr(transfer_progress, "BEGIN_S", 0.0)
    monkeypatch.setattr(transfer_progress, "LINE_INTERVAL_S", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return terminal


def transfer(
    errors: io.StringIO,
    console: Console,
    *pieces: int,
    quiet: bool = False,
    total: int | None = 3_000_000,
) -> None:
    verb = "pulling 世界\x1b[31m"
    with (
        redirect_stderr(errors),
        TransferProgress(console, verb, total, quiet=quiet) as progress,
    ):
        for piece in pieces:
            progress.advance(piece)
    progress.advance(1)
    assert progress.done_bytes == sum(pieces) + 1


def test_a_terminal_with_rich_has_a_bar_that_is_removed(terminal: Terminal) -> None:
    transfer(terminal, Console(io.StringIO(), {"TERM": "xterm"}), 1_000_000, 1_000_000)
    seen = terminal.getvalue()
    assert "pulling 世界\\x1b[31m" in seen
    assert "1.0/3.0 MB" in seen
    assert "━" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    assert seen.endswith("\x1b[2K")


def test_a_transfer_of_unknown_size_has_no_bar(terminal: Terminal) -> None:
    transfer(terminal, Console(io.StringIO(), {"TERM": "xterm"}), 1_000_000, total=None)
    assert "1.0 MB" in terminal.getvalue()
    assert "━" not in terminal.getvalue()
    assert "/?" not in terminal.getvalue()


@pytest.mark.parametrize("environment", [{}, {"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_a_plain_terminal_has_lines(terminal: Terminal, environment: dict[str, str]) -> None:
    transfer(terminal, Console(io.StringIO(), environment), 1_000_000, 2_000_000)
    first, last = terminal.getvalue().splitlines()
    assert first.startswith("treadle: pulling 世界\\x1b[31m: 1 MB of 3 MB, ")
    assert last.endswith("/s, 0.0 s left")


def test_plain_lines_may_be_chosen(terminal: Terminal) -> None:
    console = Console(io.StringIO(), {"TERM": "xterm"})
    console.use_plain_lines()
    transfer(terminal, console, 1_000_000)
    assert len(terminal.getvalue().splitlines()) == 1


def test_what_is_no_terminal_or_quiet_has_nothing(terminal: Terminal) -> None:
    transfer(terminal, Console(io.StringIO(), {"TERM": "xterm"}), 1_000_000, quiet=True)
    assert terminal.getvalue() == ""
    pipe = io.StringIO()
    transfer(pipe, Console(io.StringIO(), {"TERM": "xterm"}), 1_000_000)
    assert pipe.getvalue() == ""


def test_lines_are_seldom(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_progress, "LINE_INTERVAL_S", 1e9)
    lines = TransferLines(Console(terminal, {}), "uploading", 0.0)
    lines.show(1, 2)
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    ("total", "elapsed_s", "text"),
    [
        (300_000_000, 10.0, "20 MB of 300 MB, 2 MB/s, 2:20 left"),
        (None, 10.0, "20 MB, 2 MB/s"),
        (300_000_000, 0.0, "20 MB of 300 MB"),
        (10_000_000, 10.0, "20 MB of 10 MB, 2 MB/s, 0.0 s left"),
    ],
)
def test_transfer_text(total: int | None, elapsed_s: float, text: str) -> None:
    assert transfer_text(20_000_000, total, elapsed_s) == text
