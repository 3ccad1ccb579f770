"""`VersionIndex` knows the versions of each model, and reads a directory only after a change."""

from __future__ import annotations

import os
import time
from pathlib import Path

from treadle.server.storage import model_version
from treadle.server.storage.model_version import MODEL_FILE

_TICK_NS = 2_500_000_000
"""A directory may change again within the same tick of its clock, which some file systems count in
seconds. A directory with a newer change is read again the next time."""


class VersionIndex:
    """The version numbers of every model of a directory. May be used from any thread.

    Args:
        models: The directory of the models' directories.
    """

    def __init__(self, models: Path) -> None:
        self._models = models
        self._known: dict[str, tuple[int, tuple[int, ...]]] = {}

    def numbers(self, name: str) -> tuple[int, ...]:
        """Returns a model's versions, oldest first; none where there is no such model.

        Raises:
            OSError: The disk failed.
        """
        home = self._models / name
        try:
            changed_ns = os.stat(home).st_mtime_ns
        except OSError:  # `model_version.numbers` knows which errors mean that there is no model
            changed_ns = time.time_ns()
        known = self._known.get(name)
        if known is not None and known[0] == changed_ns:
            return known[1]
        numbers = model_version.numbers(home)
        found = tuple(n for n in numbers if (home / str(n) / MODEL_FILE).is_file())
        # A file that is put into an empty directory does not change the model's directory.
        if len(found) == len(numbers) and changed_ns < time.time_ns() - _TICK_NS:
            self._known[name] = changed_ns, found
        else:
            self._known.pop(name, None)
        return found

    def forget(self, name: str) -> None:
        """Reads a model's directory again the next time."""
        self._known.pop(name, None)
