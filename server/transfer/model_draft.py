"""`ModelDraft` is a model that arrives: its file under `tmp/`, until it is a version or gone.

A call may be cancelled while one of its threads works. So a draft that was closed removes what such
a thread makes afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.server.resources.hashed_file import HashedFile
from treadle.server.storage import model_version
from treadle.server.storage.model_version import MODEL_FILE

if TYPE_CHECKING:
    from treadle.server.storage.models import ModelStore

_SOURCE_FILE = "state_dict.safetensors"


class ModelDraft:
    """The file of one import. All methods block on the disk and may be called from any thread.

    Args:
        store: Where the version will be.
        count: Called with the number of new bytes before they are written, and with the negative
            sum of all in the end; an error of it ends the import.
        is_converted: Whether the file that arrives is not the model yet.
    """

    def __init__(
        self, store: ModelStore, count: Callable[[int], None], is_converted: bool = False
    ) -> None:
        self._store = store
        self._count = count
        self._counted = 0
        self._is_converted = is_converted
        self._lock = threading.Lock()
        self._file: HashedFile | None = None
        self._closed = False
        self.folder: Path | None = None
        """The directory that becomes the version; None before `open`."""

    def open(self, size: int) -> None:
        """Makes the file.

        Args:
            size: Bytes that it will have, as far as they are known.

        Raises:
            OSError: The disk failed or is full.
        """
        self._store.space.require(size)
        with self._lock:
            self.folder = self._store.new_draft()
            name = _SOURCE_FILE if self._is_converted else MODEL_FILE
            self._file = HashedFile(self.folder / name, self._store.space.require)
            if self._closed:
                self._discard()

    def write(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            StatusError: A quota is used up.
            OSError: The disk failed or is full.
        """
        self._recount(len(data))
        assert self._file is not None
        self._file.write(data)

    def finish(self) -> tuple[str, int]:
        """Ends the file; returns its SHA-256 and its size in bytes."""
        assert self._file is not None
        return self._file.finish()

    @property
    def source(self) -> Path:
        """The file that has arrived."""
        assert self._file is not None
        return self._file.path

    @property
    def model(self) -> Path:
        """The file of the model."""
        assert self.folder is not None
        return self.folder / MODEL_FILE

    def settle(self, sha256: str) -> str:
        """Leaves the model alone in the directory, with its hash.

        Args:
            sha256: The hash of the file that has arrived.

        Returns:
            The hash of the model.

        Raises:
            StatusError: A quota is used up.
            OSError: The disk failed or is full.
        """
        assert self.folder is not None
        if self._is_converted:
            arrived = self.source.stat().st_size
            self.source.unlink()
            sha256 = model_version.file_hash(self.model)
            self._recount(self.model.stat().st_size - arrived)
        model_version.record(self.folder, sha256)
        return sha256

    def close(self) -> None:
        """Removes what is left of it.

        Raises:
            OSError: The disk failed.
        """
        with self._lock:
            if not self._closed:
                self._count(-self._counted)
            self._closed = True
            self._discard()

    def _recount(self, size: int) -> None:
        with self._lock:
            if self._closed:
                return
            self._counted += size
        self._count(size)

    def _discard(self) -> None:
        if self._file is not None:
            self._file.discard()
        if self.folder is not None:
            self._store.discard(self.folder)
