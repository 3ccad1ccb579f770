"""`StoredFiles` are the files of all callers: each is a row of the database and a corpus.

All methods block on the disk and may be called from any thread.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from treadle.server.errors import exhausted, file_not_found
from treadle.server.storage.schema import FileRow

if TYPE_CHECKING:
    from treadle.server.storage.data_dir import DataDir
    from treadle.server.storage.upload_files import UploadFiles

_MOST_FILES = 1000
"""The most files of one caller."""

_RETRY_S = 60.0
"""Seconds after which a caller may have deleted a file."""


class StoredFiles:
    """The files of a data directory.

    Args:
        data_dir: The data directory.
    """

    def __init__(self, data_dir: DataDir) -> None:
        self._database = data_dir.database
        self._corpora = data_dir.corpora

    def check_count(self, owner: str) -> None:
        """Checks that a caller may store one more file.

        Args:
            owner: The caller's name; empty: no known one.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: it has too many.
            DatabaseError: The database failed.
        """
        count = sum(row.owner == owner for row in self._database.files(owner or None))
        if count >= _MOST_FILES:
            text = f"{count:,} files are stored, and {_MOST_FILES:,} may be: delete some"
            raise exhausted(text, _RETRY_S)

    def add(self, upload: UploadFiles, owner: str, name: str, sha256: str, size: int) -> FileRow:
        """Returns the row of a file whose upload is complete, and which is stored now.

        Args:
            upload: The upload, which has written one file.
            owner: The caller; empty: no known one.
            name: The name that it gave the file.
            sha256: The hash of its bytes.
            size: Its size in bytes.

        Raises:
            OSError: The disk failed or is full.
            DatabaseError: The database failed.
        """
        upload.store()
        row = FileRow(f"file-{secrets.token_hex(12)}", owner, name, sha256, size, time.time())
        self._database.add_file(row)
        upload.keep()
        return row

    def find(self, file: str, owner: str | None) -> FileRow:
        """Returns a file.

        Args:
            file: Its id.
            owner: The caller to whom it must belong; None: anyone.

        Raises:
            StatusError: NOT_FOUND.
            DatabaseError: The database failed.
        """
        rows = self._database.files(owner, file)
        if not rows:
            raise file_not_found(file)
        return rows[0]

    def page(self, owner: str | None, after: tuple[float, str] | None, limit: int) -> list[FileRow]:
        """Returns files, the newest first.

        Args:
            owner: The caller to whom they must belong; None: anyone.
            after: The place of the last file of the previous page; None: the first page.
            limit: The most files.

        Raises:
            DatabaseError: The database failed.
        """
        return self._database.files(owner, after=after, limit=limit)

    def open(self, row: FileRow) -> int:
        """Returns a handle that reads the bytes of a file, also once it is deleted.

        Raises:
            StatusError: NOT_FOUND: it was deleted just now.
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        self._corpora.touch(row.sha256)
        try:
            return self._corpora.open(row.sha256)
        except FileNotFoundError:
            raise file_not_found(row.id) from None

    def delete(self, row: FileRow) -> None:
        """Deletes a file, with its bytes where nothing else needs them.

        Raises:
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        # A job that is submitted meanwhile uses the corpus later than this, and so keeps it.
        now_s = time.time()
        self._database.forget_file(row)
        if not self._database.needs_corpus(row.sha256):
            self._corpora.expire(row.sha256, now_s)
