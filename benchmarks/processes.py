"""`Worker` is a child process that measures on command, and may be missing, die or hang.

See `treadle.benchmarks.workers.serve` for the other side of the pipe. A worker lives as long as
the bench does and holds one case at a time; a child that died is started again for the next case.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from treadle.benchmarks.settings import Case

START_S = 120.0
MAKE_S = 180.0
RUN_S = 60.0
"""How long a child may take to start, to make a case, and to run past its time."""


class WorkerError(Exception):
    """A child could not do a command; the message says why, in a few words."""


class NotInstalledError(WorkerError):
    """The package to measure is not there."""


class Worker:
    """One child process, started when first asked."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Describe a worker.

        Args:
            name: for messages.
            command: what to run.
            environment: variables that this child has besides those of the parent.
        """
        self.name = name
        self.version: str | None = None
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._unread = b""
        self._missing: str | None = None

    def make(self, case: Case, options: Mapping[str, Any], patience_s: float = MAKE_S) -> None:
        """Makes the child build a case and warm up.

        Raises:
            NotInstalledError: what it needs is not installed.
            WorkerError: it failed, died or hung.
        """
        self._start()
        self._ask({"do": "make", "case": case.as_json(), "options": dict(options)}, patience_s)

    def run(self, seconds: float, patience_s: float = RUN_S) -> float:
        """Lets the child time its case.

        Args:
            seconds: How long to repeat it.
            patience_s: Seconds after which the child counts as hanging.

        Returns:
            Work per second.

        Raises:
            WorkerError: it failed, died or hung.
        """
        if self._process is None:
            raise WorkerError(f"{self.name} is not running")
        answer = self._ask({"do": "run", "seconds": seconds}, seconds + patience_s)
        return float(answer["work"]) / float(answer["seconds"])

    def answers(self, patience_s: float = RUN_S) -> dict[str, Any]:
        """Lets the child compute its case from the beginning and tell what came out.

        Args:
            patience_s: Seconds after which the child counts as hanging.

        Returns:
            What `treadle.benchmarks.answers` compares.

        Raises:
            WorkerError: it failed, died or hung, or has no answers to its case.
        """
        if self._process is None:
            raise WorkerError(f"{self.name} is not running")
        return self._ask({"do": "answer"}, patience_s)

    def close(self) -> None:
        """Ends the child."""
        process = self._process
        self._process = None
        if process is not None:
            process.kill()
            process.communicate()
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _start(self) -> None:
        if self._missing is not None:
            raise NotInstalledError(f"{self._missing} is not installed")
        if self._process is not None:
            return
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child lives
        self._unread = b""
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        hello = self._read(START_S)
        if "missing" in hello:
            self._missing = str(hello["missing"])
            self.close()
            raise NotInstalledError(f"{self._missing} is not installed")
        self.version = str(hello["version"])

    def _ask(self, command: Mapping[str, Any], patience_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except OSError:
            raise self._died() from None
        return self._read(patience_s)

    def _read(self, patience_s: float) -> dict[str, Any]:
        """Reads one answer; whatever is no good answer ends the child."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + patience_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self.close()
                raise WorkerError(f"{self.name} did not answer within {patience_s:.0f} s")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise self._died()
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name} failed: {answer['error']}")
        return answer

    def _died(self) -> WorkerError:
        """Clears up after a child that is gone; returns what to raise."""
        assert self._process is not None
        assert self._errors is not None
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        last = f": {said[-1]}" if said else ""
        return WorkerError(f"{self.name} died with exit code {code}{last}")


def python(*arguments: str) -> list[str]:
    """Returns the command that runs this interpreter; the working folder hides no package."""
    return [sys.executable, "-P", *arguments]
