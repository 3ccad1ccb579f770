"""`CorpusFile` is the file of `treadle run`: its hash, its layout, and a name for its model."""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from statistics import median

from treadle.client.errors import InputError
from treadle.client.files.paths import open_file

SAMPLE_BYTES = 1 << 20
"""How much of the beginning of a file its layout is found by."""

MIN_LINES = 50
"""Lines that a list of names has at least."""

TYPICAL_CHARACTERS = 24
"""The greatest median length of its lines."""

MOST_CHARACTERS = 60
"""The length that nearly no line of it exceeds."""

NEARLY_NONE = 0.02
"""The share of lines that may be different."""

_MAX_NAME = 100


class CorpusFile:
    """A file that is trained on.

    Args:
        path: Its path.

    Raises:
        InputError: It cannot be read, or is not a file with a beginning and an end.
    """

    def __init__(self, path: str) -> None:
        if path == "-":
            raise InputError(
                "`treadle run` reads its file more than once, which standard input does not "
                "allow: save it as a file, or use `treadle train -`"
            )
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder: name one file")
        if os.path.exists(path) and not os.path.isfile(path):
            raise InputError(f"{path} is not a regular file, which can be read more than once")
        self.path = path
        self._sample = self._read(SAMPLE_BYTES)
        if not self._sample:
            raise InputError(f"{path} is empty: there is nothing to train on")

    def _read(self, size: int) -> bytes:
        with open_file(self.path) as file:
            return file.read(size) or b""

    @cached_property
    def sha256(self) -> str:
        """The hash of its bytes."""
        with open_file(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def model_name(self) -> str:
        """A name for its model: that of the file, in the letters that a model's name may have."""
        stem = os.path.basename(self.path).partition(".")[0]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
        return name[:_MAX_NAME] or "model"

    @property
    def is_list(self) -> bool:
        """Whether it looks like a list of names or words: many short lines, hardly one empty."""
        lines = self._sample.decode("utf-8", "replace").splitlines()
        if len(self._sample) == SAMPLE_BYTES:
            lines.pop()  # it may be cut
        if len(lines) < MIN_LINES:
            return False
        odd = sum(
            not line.strip() or line[0].isspace() or len(line) > MOST_CHARACTERS for line in lines
        )
        few = NEARLY_NONE * len(lines)
        return odd <= few and median(map(len, lines)) <= TYPICAL_CHARACTERS
