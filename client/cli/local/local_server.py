"""`LocalServer` is a server that a command starts on this machine and stops when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from treadle.client.cli.display.notices import print_notice
from treadle.client.errors import TreadleError

STOP_S = 15.0
"""The longest that a server may take to stop, which has a grace period of its own."""

LAST_BYTES = 65_536
"""How much of the end of the log is read for the reason of a failure."""

NAME = "treadle-server: "
"""What the line begins with in which a server says why it does not start."""

ENDING_SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT")
"""Signals besides Ctrl-C that end the command, and so the server."""


class ServerStartError(TreadleError):
    """The server on this machine did not start, or has ended."""


class LocalServer:
    """A server process of this command.

    It has a session of its own, so that Ctrl-C in the terminal reaches the command alone.

    Args:
        address: Where it listens.
        log: The file that its log is appended to.
        words: Further words of its command line.
    """

    def __init__(self, address: str, log: Path, words: Sequence[str] = ()) -> None:
        self.address = address
        self.log = log
        self.is_kept = False
        """Whether it stays when the command ends."""
        self._words = [sys.executable, "-m", "treadle.server", "--address", address, *words]
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def id(self) -> int | None:
        """The id of its process; None before it is started."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it; it answers soon, and serves once its kernels are compiled.

        Raises:
            ServerStartError: Its log cannot be written.
        """
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            log = open(self.log, "ab")  # noqa: SIM115 - closed below
        except OSError as error:
            raise ServerStartError(
                f"cannot start a server on this machine: its log {self.log} cannot be written: "
                f"{error.strerror or error}; set XDG_STATE_HOME to another folder"
            ) from error
        with log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def check(self) -> None:
        """Checks that it runs.

        Raises:
            ServerStartError: It has ended; the message has its last words.
        """
        if not self.is_running:
            raise ServerStartError(
                f"the server on this machine has ended: {self.last_words()} (log {self.log})"
            )

    def last_words(self) -> str:
        """Returns the reason in its log: the last line with its name, or else the last one.

        Other servers of this machine may write to the same file.
        """
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(self._log_start, os.path.getsize(self.log) - LAST_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
            reasons = [line for line in lines if line.startswith(NAME)]
            if lines:
                return (reasons or lines)[-1].removeprefix(NAME)
        return "it says nothing"

    def stop(self) -> None:
        """Stops it by its id, unless it is to be kept; a second Ctrl-C ends it at once."""
        process = self._process
        if process is None or self.is_kept:
            return
        with _interrupts_kill(process):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _interrupts_kill(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Makes a Ctrl-C kill a process; only the main thread can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def kill(number: int, frame: FrameType | None) -> None:
        process.kill()

    before = signal.signal(signal.SIGINT, kill)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def stopped_by_signals(server: LocalServer) -> Iterator[None]:
    """Makes the signals that end this process stop the server first, and at the end as well."""

    def end(number: int, frame: FrameType | None) -> None:
        server.stop()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    numbers = [getattr(signal, name) for name in ENDING_SIGNALS if hasattr(signal, name)]
    before = {
        number: signal.signal(number, end)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # as `nohup` has it
    }
    try:
        yield
    finally:
        server.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


def log_file() -> Path:
    """Returns the file for the log of servers that commands start."""
    base = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "state"
    return folder / "treadle" / "server.log"


def announce(server: LocalServer) -> None:
    """Says on standard error which server was started, and where its log is."""
    print_notice(f"started a server at {server.address} (process {server.id}, log {server.log})")
