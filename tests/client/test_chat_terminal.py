"""`treadle chat` on a pseudo-terminal: what signals do, and how the terminal is left."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from treadle.client import CancelledError, Client
from treadle.client.cli.conversation import chat_terminal
from treadle.v1 import sequence_pb2 as v1

from .fake import STUCK, FakeServer, FakeService
from .shell import PATIENCE_S, command, environment

PROMPT = "> "
LFLAG = 3
"""Where `tcgetattr` has the flags for echo and whole lines."""


class Talk:
    """A chat on a terminal of its own."""

    def __init__(self, address: str, model: str) -> None:
        self._ours, self._theirs = pty.openpty()
        self.before = termios.tcgetattr(self._theirs)
        self.seen = ""
        self.process = subprocess.Popen(
            command(address, "chat", model),
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=environment(TERM="xterm", PYTHONIOENCODING="utf-8"),
        )

    def wait_for(self, text: str) -> None:
        """Reads until a text has been written that was not waited for before."""
        end = time.monotonic() + PATIENCE_S
        while text not in self.seen:
            assert time.monotonic() < end, self.seen[-500:]
            if select.select([self._ours], [], [], 0.1)[0]:
                self.seen += os.read(self._ours, 65536).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]

    def say(self, line: str) -> None:
        """Types a line."""
        os.write(self._ours, line.encode() + b"\r")

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def signal_until_the_end(self, number: int) -> None:
        """Sends a signal as a person does who sees nothing happen, until the process has ended.

        The prompt is shown a moment before readline waits for input, and a signal between the two
        is looked at only when something else comes.
        """
        end = time.monotonic() + PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < end
            self.signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)

    def end(self) -> int:
        """Waits for the end, and returns how it ended; the terminal must be as it was."""
        code = self.process.wait(PATIENCE_S)
        assert termios.tcgetattr(self._theirs) == self.before
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def talks(server: FakeServer) -> Iterator[Any]:
    """Begins chats with models of the fake server."""
    begun: list[Talk] = []

    def begin(model: str = "m") -> Talk:
        begun.append(Talk(server.address, model))
        begun[-1].wait_for(PROMPT)
        assert termios.tcgetattr(begun[-1]._theirs)[LFLAG] != begun[-1].before[LFLAG]
        return begun[-1]

    yield begin
    for talk in begun:
        talk.close()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGHUP, -signal.SIGHUP),
    ],
)
def test_a_signal_at_the_prompt_ends_the_chat_and_leaves_the_terminal_as_it_was(
    talks: Any, number: signal.Signals, code: int
) -> None:
    talk = talks()
    talk.say("h")
    talk.wait_for("ello")
    talk.wait_for(PROMPT)
    talk.signal_until_the_end(number)
    assert talk.end() == code


def test_the_end_of_the_input_leaves_the_terminal_as_it_was(talks: Any) -> None:
    talk = talks()
    os.write(talk._ours, b"\x04")
    assert talk.end() == 0


@pytest.mark.parametrize("model", ["endless", STUCK])
def test_ctrl_c_during_a_reply_ends_the_reply_only(
    talks: Any, service: FakeService, model: str
) -> None:
    talk = talks(model)
    for line in ("first", "second"):
        service.begun.clear()
        talk.say(line)
        assert service.begun.wait(PATIENCE_S)
        talk.wait_for("el")
        talk.signal(signal.SIGINT)
        talk.wait_for("the memory is as it was before this line")
        talk.wait_for(PROMPT)
    asked = [each for each in service.requests if isinstance(each, v1.GenerateRequest)]
    assert [(each.state, each.prompt) for each in asked] == [(b"", "first\n"), (b"", "second\n")]
    talk.say("/quit")
    assert talk.end() == 0


def test_an_interrupt_ends_no_later_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_terminal, "_AGAIN_S", 0.2)
    first = threading.Event()
    second = threading.Event()
    stopped: list[int] = []

    def stop() -> None:
        stopped.append(signals._replies)
        first.set()

    signals = chat_terminal._Signals(stop)
    with signals.handled():
        with signals.replying():
            signal.raise_signal(signal.SIGINT)
            assert first.wait(PATIENCE_S)
        with signals.replying():
            assert not second.wait(0.5)  # the thread looks again meanwhile
    assert stopped == [1]


def test_the_memory_survives_a_reply_that_was_ended(talks: Any, service: FakeService) -> None:
    talk = talks()
    talk.say("h")
    talk.wait_for(PROMPT)
    service.stuck_prompts = {"stop me\n"}
    talk.say("stop me")
    talk.wait_for("el")
    talk.signal(signal.SIGINT)
    talk.wait_for(PROMPT)
    talk.say("j")
    talk.wait_for(PROMPT)
    states = {each.prompt: each.state for each in service.requests[1:]}
    assert states["stop me\n"] == states["j\n"] == b"h\nello\n"


def test_sigterm_during_a_reply_ends_the_chat(talks: Any) -> None:
    talk = talks("endless")
    talk.say("h")
    talk.wait_for("el")
    talk.signal(signal.SIGTERM)
    assert talk.end() == -signal.SIGTERM


def test_a_session_is_stopped_from_another_thread(client: Client, service: FakeService) -> None:
    session = client.session("endless")
    session.stop()  # nothing is under way
    reply = session.stream("h")
    next(reply)
    session.stop()
    with pytest.raises(CancelledError, match="the reply was stopped"):
        list(reply)
    assert (session.state, session.result) == (b"", None)
