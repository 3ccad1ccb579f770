"""`Keys` reads single keys of a terminal, without waiting for the end of a line."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from types import TracebackType
from typing import Any, Self

NO_KEY = ""


class Keys:
    """The keys of standard input, in a `with` block; where it is no terminal, there are none."""

    def __init__(self) -> None:
        is_terminal = sys.stdin is not None and sys.stdin.isatty()
        self._descriptor = sys.stdin.fileno() if is_terminal else None
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        if self._descriptor is not None:
            self._before = termios.tcgetattr(self._descriptor)
            tty.setcbreak(self._descriptor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the terminal back as it was."""
        if self._descriptor is not None and self._before:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)
            self._before = []

    def wait(self, timeout_s: float) -> str:
        """Waits for a key.

        Args:
            timeout_s: The longest to wait.

        Returns:
            The key, or NO_KEY.
        """
        if self._descriptor is None:
            time.sleep(timeout_s)
            return NO_KEY
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        if not ready:
            return NO_KEY
        data = os.read(self._descriptor, 64)
        if not data:  # the terminal is gone
            self._descriptor = None
        return data.decode("ascii", "replace")
