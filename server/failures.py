"""`is_full`, `is_out_of_files` and errors of the storage: failures that have a status of their own.

They stand below everything else, so that both the storage and `errors` can name them.
"""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)


class NoSpaceError(OSError):
    """The disk has too little space for more bytes.

    Args:
        size: Bytes to be written.
        free: Bytes that are free.
        least_free: Bytes that must stay free.
    """

    def __init__(self, size: int, free: int, least_free: int) -> None:
        text = f"{free:,} bytes of it are free, of which {least_free:,} are to stay so"
        super().__init__(errno.ENOSPC, text)
        self.size = size
        """Bytes to be written."""


class DamagedBlobError(OSError):
    """The content of a blob is not what was stored."""


class BlobsUnavailableError(Exception):
    """The store of the blobs cannot be reached now. The message is one sentence."""


class DatabaseError(Exception):
    """The database cannot be used, or not for what was asked. The message is one sentence."""


class DatabaseUrlError(DatabaseError):
    """The URL of the database is malformed. The message does not repeat it."""


class DamagedDatabaseError(DatabaseError):
    """The file of the database is damaged where it was read."""


class DuplicateRowError(DatabaseError):
    """There is a row with the same key already."""


class DatabaseUnavailableError(DatabaseError):
    """The server of the database cannot be reached for now.

    Whether a change that was under way was made is unknown.
    """


class LostLeaseError(DatabaseError):
    """Another server may work on the job by now, so that nothing was written."""


def is_full(error: BaseException) -> bool:
    """Returns whether an error says that the disk is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_out_of_files(error: BaseException) -> bool:
    """Returns whether an error says that the process may open no more files."""
    return isinstance(error, OSError) and error.errno in _OUT_OF_FILES
