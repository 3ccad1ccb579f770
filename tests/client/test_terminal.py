"""What a person sees: the command line on a pseudo-terminal, without rich.

test_rich_terminal.py has what rich draws.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading

import pytest

from treadle.client.cli.display.console import one_line, printable, table
from treadle.v1 import sequence_pb2 as v1

from .fake import STUCK, FakeServer, FakeService
from .shell import PATIENCE_S, bare_command, command, environment

CLEAR = "\r\x1b[K"


def watch(
    address: str,
    *words: str,
    width: int = 80,
    height: int = 24,
    typed: bytes = b"",
    rich: bool = False,
    **changes: str,
) -> str:
    """Runs a command on a terminal and returns all that it wrote there, what is typed included."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    env = environment(**{"TERM": "xterm", "PYTHONIOENCODING": "utf-8", **changes})
    with subprocess.Popen(
        (command if rich else bare_command)(address, *words),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
    ) as process:
        os.close(theirs)
        killer = threading.Timer(PATIENCE_S, process.kill)
        killer.start()
        written = b""
        os.write(ours, typed)
        try:
            while piece := os.read(ours, 4096):
                written += piece
        except OSError:  # Linux' way of saying that the other end is closed
            pass
        killer.cancel()
        assert process.wait(PATIENCE_S) == 0
    os.close(ours)
    return written.decode().replace("\r\n", "\n")


def test_training_draws_a_bar_and_what_stays_above_it(server: FakeServer) -> None:
    seen = watch(server.address, "train", __file__, "--model", "hello")
    drawn = seen.split(CLEAR)
    assert drawn[0] == ""
    assert drawn[1] == "waiting for the server to begin ..."
    stays = "".join(part for part in drawn if part.endswith("\n"))
    first, note, validation, *sample, model = stays.splitlines()
    assert "12,345 parameters; 200 steps" in first
    assert note == "note: the batch was shrunk to 1"
    assert validation.startswith("step 200/200")
    assert "valid 0.750" in validation
    assert sample == ["    hello\ufffd[31m", "    hell"]
    assert model.startswith("hello version 1: ")
    bars = [part for part in drawn if "━" in part or "─" in part]
    assert len(bars) == 2
    assert "valid" not in bars[0]
    assert "valid 0.750" in bars[1]
    assert all("\x1b[36m" in part and "\n" not in part for part in bars)


def test_what_becomes_of_a_job_is_told(server: FakeServer, service: FakeService) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    queued, started, *rest = service.events[job]
    queued.state.reason = "2 jobs are before it"
    again = v1.JobStateChange(state=v1.JOB_STATE_RUNNING, reason="went on from step 50\x1b[31m")
    fine = v1.JobStateChange(state=v1.JOB_STATE_RUNNING)
    events = [queued, v1.JobEvent(state=fine), started, v1.JobEvent(state=again), *rest]
    for number, event in enumerate(events, 1):
        event.sequence = number
    service.events[job] = events
    drawn = watch(server.address, "watch", job).split(CLEAR)
    assert drawn[2] == "queued: 2 jobs are before it"
    stays = "".join(part for part in drawn if part.endswith("\n")).splitlines()
    assert "running: went on from step 50\ufffd[31m" in stays
    assert "running" not in stays
    lines = watch(server.address, "watch", job, TERM="dumb").splitlines()
    assert lines[0] == "queued: 2 jobs are before it"
    narrow = watch(server.address, "watch", job, width=15).split(CLEAR)
    assert narrow[2] == "queued: 2 j..."


def test_a_broken_connection_is_told_until_it_is_mended(
    server: FakeServer, service: FakeService
) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    why = "the server restarts; the job continues, reconnecting to it ..."
    service.breaks = [(3, 14, "the server restarts")]
    drawn = watch(server.address, "watch", job).split(CLEAR)
    assert why in drawn
    service.breaks = [(3, 14, "the server restarts")]
    assert why in watch(server.address, "watch", job, TERM="dumb").splitlines()
    service.breaks = [(3, 14, "the server restarts")]
    assert why not in watch(server.address, "watch", job, "--quiet")


def test_a_curve_in_color_and_in_ascii(server: FakeServer, service: FakeService) -> None:
    job = service.accept(v1.TrainSpec(model="m"))
    seen = watch(server.address, "curve", job, width=50)
    assert "\x1b[33m●\x1b[0m" in seen
    assert all(len(re.sub(r"\x1b\[\d*m", "", line)) < 50 for line in seen.splitlines()[:-1])
    plain = watch(server.address, "curve", job, PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert plain.isascii()
    assert "o" in plain
    assert "\x1b" not in plain


def test_a_narrow_terminal_has_short_lines(server: FakeServer) -> None:
    seen = watch(server.address, "train", __file__, "--model", "m", width=40, NO_COLOR="1")
    drawn = [part for part in seen.split(CLEAR) if "%" in part]
    assert drawn
    assert all(len(part) < 40 for part in drawn)


def test_no_color_is_no_color(server: FakeServer) -> None:
    seen = watch(server.address, "train", __file__, "--model", "m", NO_COLOR="1")
    assert "━" in seen
    assert set(re.findall(r"\x1b\[\d*.", seen)) == {"\x1b[K"}


def test_ascii_where_the_terminal_has_no_more(server: FakeServer) -> None:
    seen = watch(server.address, "train", __file__, "--model", "m", PYTHONIOENCODING="ascii")
    assert "#" in seen
    assert seen.isascii()


def test_a_dumb_terminal_gets_lines(server: FakeServer) -> None:
    seen = watch(server.address, "train", __file__, "--model", "m", TERM="dumb")
    assert "\x1b" not in seen
    assert "\r" not in seen
    assert len(seen.splitlines()) == 6


def test_quiet_and_json_hold_on_a_terminal_too(server: FakeServer) -> None:
    words = ["train", __file__, "--model", "m"]
    assert watch(server.address, *words, "--quiet").startswith("m version 1: ")
    assert len(watch(server.address, *words, "--json").splitlines()) == 5


def test_generated_text_cannot_command_the_terminal(server: FakeServer) -> None:
    assert watch(server.address, "generate", "m") == "ello\n"
    table = watch(server.address, "score", "m", "--text", "a\x1b[31m" + "b" * 100)
    assert "\x1b" not in table
    assert "\\x1b[31mb" in table
    assert all(len(line) < 80 for line in table.splitlines())


def test_ctrl_c_takes_the_bar_away(server: FakeServer) -> None:
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm")
    words = bare_command(server.address, "train", __file__, "--model", STUCK)
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
    assert seen.endswith(
        b"treadle: interrupted; the job continues at the server: "
        b"`treadle watch a1-job` shows it again\r\n"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a\nb\tc"),
        ("a\r\nb", "a\ufffd\nb"),
        ("\x1b[2J\x07\x7f\x9b", "\ufffd[2J\ufffd\ufffd\ufffd"),
        ("世 é\u200b", "世 é\u200b"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line() -> None:
    assert one_line("a\nb\r\t\x1b世") == "a\\nb\\r\\t\\x1b世"
    assert one_line("abcdef", 5) == "ab..."
    assert one_line("abcde", 5) == "abcde"
    assert one_line("abcdef", 2) == ".."
    assert one_line("abcdef", 0) == ""


def test_tables_line_up() -> None:
    assert table(("name", "n", "text"), [("a", "10", "x"), ("bcdef", "9", "")]) == [
        "name    n  text",
        "a      10  x",
        "bcdef   9",
    ]


def test_a_chat_asks_and_answers(server: FakeServer, service: FakeService) -> None:
    seen = watch(server.address, "chat", "m", typed=b"h\n/sing\n/quit\n")
    assert "/help lists the commands, Ctrl-D ends, Ctrl-C ends a reply." in seen
    answers = re.sub(r"\x1b\[\?\d+[hl]", "", seen)  # escape sequences of readline
    assert "> " in answers
    assert "ello\n" in answers
    assert "there is no /sing" in answers
    assert service.requests[1].prompt == "h\n"


def test_items_stand_in_columns(server: FakeServer, service: FakeService) -> None:
    service.novel = {"ann": True}
    seen = watch(server.address, "generate", "m", "-n", "1", "--with-likelihood", "--novelty")
    assert seen == "ann" + " " * 21 + "      -3.000  new".rjust(17) + "\n"


def test_long_lines_of_a_stream_are_cut(server: FakeServer) -> None:
    seen = watch(server.address, "score-stream", "m", width=30, typed=b"x" * 50 + b"\n\x04")
    assert "treadle: reading from the terminal; Ctrl-D ends it\n" in seen
    assert "    51.000  " + "x" * 14 + "...\n" in seen
