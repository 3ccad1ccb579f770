"""`ServerProcess`: a server on a free port of 127.0.0.1, and everything that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from treadle.benchmarks.scenarios.memory_use import MemorySampler, resident_bytes, start_time

_START_S = 180.0
_END_S = 20.0


class StartError(Exception):
    """The server does not start. The message has the end of its log."""


class ServerProcess:
    """A server that has started.

    Args:
        command: What runs a server, without flags.
        data_dir: Its data directory.
        flags: Its flags besides.
        prefix: A command that runs its command line.

    Raises:
        StartError: It ended instead.
    """

    def __init__(
        self,
        command: Sequence[str],
        data_dir: Path,
        flags: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self.log_path = data_dir.with_name(f"{data_dir.name}.log")
        self._log = self.log_path.open("ab")
        line = [*prefix, *command, "--address", "127.0.0.1:0", "--data-dir", str(data_dir), *flags]
        self._process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=self._log, stdin=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        if not said:
            self._process.wait()
            self._log.close()
            raise StartError(self.log_path.read_text(errors="replace")[-500:])
        self.address = said.split()[-1]
        self.pid = self._process.pid
        self.memory = MemorySampler(self.pid)
        self.idle_bytes = resident_bytes(self.pid)

    @property
    def exit_code(self) -> int | None:
        """How it ended, a signal's number negative; None while it runs."""
        return self._process.poll()

    def open_files(self) -> int:
        """Returns how many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def terminate(self, patience_s: float = 60.0) -> float:
        """Sends SIGTERM; returns the seconds until its end, or those waited where it stays."""
        began = time.perf_counter()
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        return time.perf_counter() - began

    def close(self) -> None:
        """Ends it and everything that it has started."""
        if self.exit_code is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
            self._process.kill()
        self._process.wait()
        self.memory.close()
        for pid, began in self.memory.seen.items():
            if began and start_time(pid) == began:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()
