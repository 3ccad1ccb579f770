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

START_S = 120.0
"""The longest that a server may take until it listens; its kernels may take longer."""

STOP_S = 15.0
"""The longest that a server may take to stop, which has a grace period of its own."""

LAST_BYTES = 4096
"""How much of the end of the log is read for the reason of a failure."""

ENDING_SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT")
"""Signals besides Ctrl-C that end the command, and so the server."""


class ServerStartError(TreadleError):
    """The server on this machine could not start."""


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

    @property
    def id(self) -> int | None:
        """The id of its process; None before it is started."""
        return None if self._process is None else self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts it, and waits until it listens.

        Raises:
            ServerStartError: It ended, or took too long; the message has its last words.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        ready = self._first_line()
        if "listening on" not in ready:
            reason = self.last_words()
            self.stop()
            raise ServerStartError(f"no server could be started on this machine: {reason}")
        self.address = ready.split()[-1]

    def _first_line(self) -> str:
        """Returns the line in which it says where it listens; empty if it ended instead."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        late = threading.Timer(START_S, process.kill)
        late.start()
        try:
            return process.stdout.readline().decode(errors="replace").strip()
        finally:
            late.cancel()

    def last_words(self) -> str:
        """Returns the last line of its log, without its own name."""
        with contextlib.suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, os.path.getsize(self.log) - LAST_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
            if lines:
                return lines[-1].removeprefix("treadle-server: ")
        return f"see {self.log}"

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
        if process.stdout is not None:
            process.stdout.close()


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
