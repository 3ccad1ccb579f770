"""`converse` runs the prompt of `treadle chat` and handles its signals.

While a line is typed, readline controls the terminal: it does not echo and does not wait for whole
lines. A process that ended then would leave it so. So a signal at the prompt is raised as an
exception out of `input`, where readline restores the terminal. During a reply the terminal is
in its normal state, and no exception may be raised, since gRPC may hold a lock: a thread ends the
reply.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit code after a Ctrl-C."""

_AGAIN_S = 0.05
"""Seconds between two attempts to stop a reply, which may not have begun at the first."""


_ENDING_SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT")
"""Signals that end the process, where the system has them."""


class _Terminated(BaseException):
    """A signal that ends the process came at the prompt.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def converse(take: Callable[[str], bool], stop: Callable[[], None]) -> int:
    """Asks for lines on the terminal and passes each to `take`.

    Args:
        take: Answers a line; returns False where the line ends the conversation.
        stop: Ends the reply that `take` waits for. It is called from another thread, and
            more than once.

    Returns:
        The exit code: INTERRUPTED where a Ctrl-C at the prompt ended the conversation, else 0.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() edits lines and knows the last ones by it

    signals = _Signals(stop)
    print("/help lists the commands, Ctrl-D ends, Ctrl-C ends a reply.", file=sys.stderr)
    try:
        with signals.handled():
            while _take_next(take, signals):
                pass
    except EOFError:
        _end_line()
    except KeyboardInterrupt:
        _end_line()
        return INTERRUPTED
    except _Terminated as ending:
        _end_line()
        os.kill(os.getpid(), ending.number)
    return 0


def _take_next(take: Callable[[str], bool], signals: _Signals) -> bool:
    """Asks for one line and passes it to `take`; returns its result."""
    with signals.prompting():
        line = input("> ")
    with signals.replying():
        return take(line)


def _end_line() -> None:
    """Ends the line of the prompt, so that the shell begins a new one."""
    with contextlib.suppress(OSError):
        print(file=sys.stderr, flush=True)


class _Signals:
    """Handles signals by what they mean at the prompt or during a reply.

    Args:
        stop: Ends the reply under way.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._prompting = False
        self._replying = False
        self._replies = 0
        self._before: dict[int, Any] = {}
        """The handlers of signals before the conversation."""
        # A signal handler may put into a SimpleQueue. The queue holds numbers of interrupted
        # replies; 0 ends the thread.
        self._interrupts: SimpleQueue[int] = SimpleQueue()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals while it is entered."""
        stopper = threading.Thread(target=self._stop_replies, daemon=True)
        stopper.start()
        ending = [getattr(signal, name) for name in _ENDING_SIGNALS if hasattr(signal, name)]
        before = self._before
        before[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_interrupt)
        for number in ending:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
                before[number] = signal.signal(number, self._on_terminate)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._interrupts.put(0)
            stopper.join()

    @contextlib.contextmanager
    def prompting(self) -> Iterator[None]:
        """Marks that a line is being typed while it is entered."""
        try:
            self._prompting = True
            yield
        finally:
            self._prompting = False

    @contextlib.contextmanager
    def replying(self) -> Iterator[None]:
        """Marks that a line is being answered while it is entered."""
        self._replies += 1
        self._replying = True
        try:
            yield
        finally:
            self._replying = False

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._prompting:
            raise KeyboardInterrupt
        self._interrupts.put(self._replies)

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        if self._prompting:
            raise _Terminated(number)
        signal.signal(number, self._before.get(number) or signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _stop_replies(self) -> None:
        """Stops a reply for each interrupt, until the conversation is over."""
        while reply := self._interrupts.get():
            # The next reply may begin within the pause; the interrupt was not meant for it.
            while self._replying and self._replies == reply:
                self._stop()
                time.sleep(_AGAIN_S)
