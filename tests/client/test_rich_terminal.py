"""What a person sees where rich is installed: the command line on a pseudo-terminal."""

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
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.text import Text

from treadle.client.cli.display.console import Console
from treadle.client.cli.display.tables import fit, pad, print_table
from treadle.client.cli.display.terminal.cell_width import cut, cut_middle
from treadle.client.cli.display.terminal.live_region import LiveRegion
from treadle.client.cli.display.terminal.rich_table import surprisal_style
from treadle.client.cli.display.terminal.training_view import TrainingView, sparkline
from treadle.v1 import sequence_pb2 as v1

from .fake import STUCK, FakeServer, FakeService
from .shell import PATIENCE_S, command, environment
from .test_terminal import watch

ESCAPES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
HIDE = "\x1b[?25l"
SHOW = "\x1b[?25h"

WIDE = ["世界モデル" * 6, "🧵🧵🧵" * 8, "e\u0301" * 40, "نموذج-" * 9]
"""Names of wide characters, emoji, combining marks, and characters from right to left."""


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "30")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Console(Terminal(), {"TERM": "xterm"})


def seen_by(console: Console) -> str:
    assert isinstance(console.out, Terminal)
    return ESCAPES.sub("", console.out.getvalue())


def test_training_is_drawn_and_what_stays_is_above(server: FakeServer) -> None:
    seen = watch(server.address, "train", __file__, "--model", "hello", rich=True)
    text = ESCAPES.sub("", seen)
    assert "waiting for the server to begin ..." in text
    assert "hello   running" in text
    assert "step 200/200" in text
    assert "train 0.500   valid 0.750" in text
    assert "note: the batch was shrunk to 1" in text
    assert "step 200  loss 0.500  valid 0.750" in text
    assert "    hello\ufffd[31m\n    hell\n" in text
    assert "━" in text
    assert "hello version 1: " in text
    assert seen.rindex(SHOW) > seen.rindex(HIDE)
    assert "hello\x1b[31m" not in seen


@pytest.mark.parametrize("width", [40, 200])
def test_no_line_is_wider_than_the_terminal(server: FakeServer, width: int) -> None:
    words = ["train", __file__, "--model", "hello"]
    seen = watch(server.address, *words, width=width, rich=True)
    lines = [re.split(r"\r|\n", ESCAPES.sub("", part)) for part in seen.split("\x1b[2K")]
    assert all(cell_len(line) <= width for part in lines for line in part)
    small = watch(server.address, *words, width=width, height=12, rich=True)
    assert "┤" not in small
    assert re.search("[▁█]", small)


def test_markup_and_controls_of_the_server_are_shown(
    server: FakeServer, service: FakeService
) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    hostile = (
        "[bold]x[/bold] \x1b]8;;http://a\x07link\x1b]8;;\x07 :smile: 世界 \x1b[2J\x9b31m\u202e"
    )
    for event in service.events[job]:
        if event.HasField("progress"):
            event.progress.notices.append(hostile)
            event.progress.sample = hostile
    seen = watch(server.address, "watch", job, rich=True)
    assert "[bold]x[/bold]" in seen
    assert ":smile: 世界" in seen
    assert "\x1b]" not in seen
    assert "\x07" not in seen
    assert "\x1b[2J" not in seen
    assert "\x9b" not in seen
    assert "\u202e" not in seen


@pytest.mark.parametrize("rich", [True, False])
def test_notices_of_a_finished_run_are_printed_once(
    server: FakeServer, service: FakeService, rich: bool
) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    service.events[job][-1].completed.training.notices.append("time was the limit")
    seen = ESCAPES.sub("", watch(server.address, "watch", job, rich=rich))
    assert seen.count("note: time was the limit") == 1


def test_a_broken_connection_is_shown(server: FakeServer, service: FakeService) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    service.breaks = [(3, 14, "the server restarts")]
    seen = ESCAPES.sub("", watch(server.address, "watch", job, width=120, rich=True))
    assert "the server restarts; the job continues, reconnecting to it ..." in seen
    assert "m version 1: " in seen


def test_lists_and_details_are_tables(server: FakeServer, service: FakeService) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    models = ESCAPES.sub("", watch(server.address, "models", width=140, rich=True))
    assert "model-1" in models
    assert "stored" in models
    assert "too narrow for" not in models
    narrow = ESCAPES.sub("", watch(server.address, "models", width=40, rich=True))
    assert "too narrow for: tokens, vocabulary," in narrow
    assert all(cell_len(line) <= 40 for line in narrow.splitlines())
    seen = watch(server.address, "jobs", rich=True)
    assert "\x1b[32msucceeded" in seen
    assert f"id        {job}" in ESCAPES.sub(
        "", watch(server.address, "jobs", "show", job, rich=True)
    )
    assert "threads" in watch(server.address, "info", rich=True)


def test_tokens_have_the_color_of_their_surprisal(server: FakeServer) -> None:
    seen = watch(server.address, "score", "m", "--text", "a世", "--tokens", rich=True)
    assert "世" in seen
    assert "-1.000" in ESCAPES.sub("", seen)
    assert [surprisal_style(nats) for nats in ("-0.1", "-2", "-3", "-6", "-9", "-inf", "-")] == [
        "green",
        "",
        "yellow",
        "red",
        "bold red",
        "bold red",
        "",
    ]


@pytest.mark.parametrize(
    ("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("PYTHONIOENCODING", "ascii")]
)
def test_rich_draws_in_color_and_unicode_alone(
    server: FakeServer, variable: str, value: str
) -> None:
    changes: dict[str, Any] = {variable: value}
    seen = watch(server.address, "train", __file__, "--model", "m", rich=True, **changes)
    assert "\x1b[?25" not in seen


def test_plain_is_lines(server: FakeServer) -> None:
    seen = watch(server.address, "train", __file__, "--model", "m", "--plain", rich=True)
    assert "\x1b" not in seen
    assert "\r" not in seen
    dumb = watch(server.address, "train", __file__, "--model", "m", TERM="dumb")
    assert seen.splitlines()[1:] == dumb.splitlines()[1:]


@pytest.mark.parametrize("width", [40, 80])
def test_ctrl_c_brings_the_cursor_back(server: FakeServer, width: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    env = environment(TERM="xterm", PYTHONIOENCODING="utf-8")
    words = command(server.address, "train", __file__, "--model", STUCK)
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        seen = b""
        while b"note:" not in seen:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        while b"interrupted" not in seen or not seen.endswith(b"\n"):
            seen += os.read(ours, 4096)
    os.close(ours)
    assert seen.rindex(SHOW.encode()) > seen.rindex(HIDE.encode())
    *_, last = ESCAPES.sub("", seen.decode()).splitlines()
    assert last.startswith("treadle: interrupted; the job continues at the server: ")


@pytest.mark.parametrize("columns", [5, 12, 13, 100])
@pytest.mark.parametrize("name", WIDE)
def test_texts_are_cut_by_columns(name: str, columns: int) -> None:
    for shown in (cut(name, columns), cut_middle(name, columns)):
        assert cell_len(shown) <= columns
        assert (shown == name) == (cell_len(name) <= columns)
        assert shown == name or "…" in shown
    assert cell_len(cut_middle(name, columns)) >= min(cell_len(name), columns - 3)


def test_cutting_leaves_no_mark_alone() -> None:
    assert cut_middle("abcdefgh" + "e\u0301" * 4, 6).endswith("…e\u0301e\u0301")
    assert cut("abc", 0) == ""
    assert cut("世界", 3) == "世…"


def test_a_table_of_wide_names_lines_up(console: Console) -> None:
    rows = [(name, "1", "x") for name in [*WIDE, "世", "plain"]]
    print_table(console, ("name", "version", "note"), rows, cut=0)
    lines = seen_by(console).splitlines()
    assert len(lines) == 7
    assert all(cell_len(line) <= 60 for line in lines)
    assert {cell_len(line[: line.rindex("1")]) for line in lines[1:]} == {
        cell_len(lines[0][: lines[0].index("note")]) - 3
    }


@pytest.mark.parametrize("curve_rows", [0, 7])
def test_a_view_fits_every_terminal(curve_rows: int) -> None:
    drawn = TrainingView(curve_rows)
    spec = v1.TrainSpec(model="世界" * 20)
    drawn.update(v1.JobEvent(job="j" * 20, started=v1.TrainingStarted(spec=spec)))
    for step in range(1, 30):
        drawn.update(v1.JobEvent(progress=v1.TrainingProgress(step=step, train_loss=3 / step)))
    for width in (1, 5, 12, 43, 44, 80, 200):
        for height in (1, 19, 20, 60):
            out = io.StringIO()
            RichConsole(file=out, width=width, height=height).print(drawn)
            assert all(cell_len(line) <= width for line in out.getvalue().splitlines())


def test_texts_are_padded_by_columns(console: Console) -> None:
    assert pad(console, "世", 4) == "世  "
    assert pad(Console(io.StringIO(), {}), "世", 4) == "世   "


def test_the_end_of_a_line_is_cut_by_columns(console: Console) -> None:
    assert cell_len(fit(console, "世" * 100, 10)) <= 49
    assert fit(console, "世\x1b", 10) == "世\\x1b"


def test_a_narrower_terminal_takes_wrapped_lines_back(console: Console) -> None:
    region = LiveRegion(console)
    region.open()
    region.draw(Text("a" * 59 + "\n" + "b" * 59))
    region._rich.width = 30
    region.draw(Text("c"), Text("stays"))
    assert isinstance(console.out, Terminal)
    # Four rows now: the cursor moves up three, and is one below the first for rich.
    assert "\r\x1b[3A\x1b[J\n" in console.out.getvalue()
    region.close()


def view(*events: v1.JobEvent) -> str:
    drawn = TrainingView()
    for event in events:
        drawn.update(event)
    rich = RichConsole(file=io.StringIO(), width=80, height=40, force_terminal=False)
    with rich.capture() as capture:
        rich.print(drawn)
    return capture.get()


def test_losses_are_a_curve_with_an_axis() -> None:
    steps = [v1.TrainingProgress(step=step, train_loss=1 / step) for step in (1, 2, 3)]
    seen = view(*(v1.JobEvent(progress=step) for step in steps))
    assert "┤" in seen
    assert "┬" in seen


def test_a_run_without_end_has_no_bar() -> None:
    progress = v1.TrainingProgress(step=1, train_loss=float("nan"), elapsed_s=12.0)
    seen = view(v1.JobEvent(progress=progress))
    assert "━" not in seen
    assert "12 s" in seen
    progress.tokens_per_second = 12_345
    assert "step 1   epoch 0.00   12.3k tok/s" in view(v1.JobEvent(progress=progress))
    assert "train nan" in seen


def test_the_view_reports_validation_and_the_best_loss() -> None:
    progress = v1.TrainingProgress(step=9, train_loss=1, valid_loss=2, best_valid_loss=1.5)
    validation = v1.ValidationProgress(step=9, tokens_done=5, tokens_total=10)
    seen = view(v1.JobEvent(progress=progress), v1.JobEvent(validation=validation))
    assert "valid 2.000 (best 1.500)" in seen
    assert "validating  5 of 10 tokens   50%" in seen or "validating  5 of 10 tokens  50%" in seen


def test_many_points_are_thinned() -> None:
    drawn = TrainingView()
    for step in range(1, 20_000):
        drawn.update(v1.JobEvent(progress=v1.TrainingProgress(step=step, train_loss=1 + 1 / step)))
    assert len(drawn._train) <= 4001
    assert drawn._train[-1].step == 19_999


@pytest.mark.parametrize(
    ("values", "columns", "drawn"),
    [
        ([1, 2, 3], 3, "▁▅█"),
        ([1, 1], 5, "▁▁"),
        ([float("nan")], 5, ""),
        ([3, 3, 1, 1], 2, "█▁"),
        ([1], 0, ""),
    ],
)
def test_sparkline(values: list[float], columns: int, drawn: str) -> None:
    assert sparkline(values, columns) == drawn
