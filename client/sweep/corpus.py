"""`SweepCorpus` sends the files of a sweep once; later trials name them by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from treadle.client.errors import InputError
from treadle.client.files.corpus import CorpusFile
from treadle.client.files.paths import display_path, open_file
from treadle.client.sweep.spec import SweepFile

_BLOCK_BYTES = 1 << 20


class SweepCorpus:
    """The files that every trial trains on.

    Args:
        files: The files, which are read to be hashed.

    Raises:
        InputError: One cannot be read.
    """

    def __init__(self, files: Sequence[SweepFile]) -> None:
        self._files = files
        self.hashes = [_sha256(file) for file in files]
        """The SHA-256 of each file."""

    def stored(self) -> list[CorpusFile]:
        """Returns the files for a server that has them already."""
        return [
            CorpusFile(file.path, role=file.role, weight=file.weight, sha256=sha256)
            for file, sha256 in zip(self._files, self.hashes, strict=True)
        ]

    def whole(self) -> list[CorpusFile]:
        """Returns the files to send.

        Raises:
            InputError: One has changed since the sweep began.
        """
        for file, sha256 in zip(self._files, self.hashes, strict=True):
            if _sha256(file) != sha256:
                raise InputError(
                    f"{display_path(file.path)} has changed while the sweep ran: restore it, or "
                    "begin a sweep with another name"
                )
        return [CorpusFile(file.path, role=file.role, weight=file.weight) for file in self._files]


def _sha256(file: SweepFile) -> str:
    """Returns the hash of a file."""
    digest = hashlib.sha256()
    with open_file(file.path) as opened:
        try:
            while block := opened.read(_BLOCK_BYTES):
                digest.update(block)
        except OSError as error:
            shown = display_path(file.path)
            raise InputError(f"cannot read {shown}: {error.strerror or error}") from error
    return digest.hexdigest()
