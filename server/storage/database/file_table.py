"""`FileTable` keeps the files that callers have stored by name; the bytes of each are a corpus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.server.storage.database.corpus_table import own_corpus
from treadle.server.storage.schema import TABLES, FileRow

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine
    from treadle.server.storage.database.job_table import JobTable

_FILE_IS_KEPT = (
    "EXISTS (SELECT 1 FROM corpora WHERE corpora.sha256 = files.sha256) AND (files.owner = '' OR "
    "EXISTS (SELECT 1 FROM corpus_owners WHERE corpus_owners.sha256 = files.sha256 "
    "AND corpus_owners.owner = files.owner))"
)
"""The condition that the corpus of a file is stored, and still its owner's."""

_FILE_TYPES = (str, str, str, str, int, float)
"""The types of the columns of a file."""


class FileTable:
    """The files of all callers.

    Args:
        engine: The database.
        jobs: The jobs, whose corpora stay.
    """

    def __init__(self, engine: Engine, jobs: JobTable) -> None:
        self._engine = engine
        self._jobs = jobs

    def add_file(self, row: FileRow) -> None:
        """Adds a file; its corpus belongs to its owner from now on."""
        values = (row.id, row.owner, row.name, row.sha256, row.size, row.created_s)
        with self._engine.transaction() as transaction:
            transaction.run("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?)", *values)
            if row.owner:
                own_corpus(transaction, row.sha256, row.owner, row.size, row.created_s)

    def files(
        self,
        owner: str | None = None,
        file: str | None = None,
        after: tuple[float, str] | None = None,
        limit: int = -1,
    ) -> list[FileRow]:
        """Returns files whose bytes are still there, the newest first.

        Args:
            owner: Their owner; None: any; empty: no file.
            file: The id of the only one; None: all.
            after: The place of the last file of the previous page; None: the first page.
            limit: The most files to return; -1: all.
        """
        terms = [_FILE_IS_KEPT]
        values = list[object]()
        if owner is not None:
            terms.append("owner = ? AND owner != ''")
            values.append(owner)
        if file is not None:
            terms.append("id = ?")
            values.append(file)
        if after is not None:
            terms.append("(created_s, id) < (?, ?)")
            values += after
        where = f"WHERE {' AND '.join(terms)} ORDER BY created_s DESC, id DESC"
        if limit >= 0:
            where += " LIMIT ?"
            values.append(limit)
        names = ", ".join(TABLES["files"])
        rows = self._engine.rows(f"SELECT {names} FROM files {where}", *values)
        return [FileRow(*row) for row in rows if all(map(isinstance, row, _FILE_TYPES))]

    def forget_file(self, row: FileRow) -> None:
        """Deletes the row of a file, and takes its corpus from the owner if nothing else needs it.

        A corpus stays the owner's while another file of the owner or an unfinished job has it.
        """
        key = (row.sha256, row.owner)
        is_used = key in self._jobs.owned_corpora_in_use()

        def forget() -> None:
            with self._engine.transaction() as transaction:
                transaction.run("DELETE FROM files WHERE id = ?", row.id)
                if not is_used:
                    transaction.run(
                        "DELETE FROM corpus_owners WHERE sha256 = ? AND owner = ? AND NOT EXISTS "
                        "(SELECT 1 FROM files WHERE files.sha256 = ? AND files.owner = ?)",
                        *(key * 2),
                    )

        self._engine.urgent(forget)

    def needs_corpus(self, sha256: str) -> bool:
        """Returns whether an owner, a file or an unfinished job has a corpus."""
        owned = self._engine.rows("SELECT 1 FROM corpus_owners WHERE sha256 = ?", sha256)
        filed = self._engine.rows("SELECT 1 FROM files WHERE sha256 = ?", sha256)
        return bool(owned or filed) or sha256 in self._jobs.corpora_in_use()

    def forget_lost_files(self) -> int:
        """Deletes the rows of files whose bytes are gone; returns how many there were."""
        statement = f"DELETE FROM files WHERE NOT ({_FILE_IS_KEPT})"
        return self._engine.urgent(lambda: self._engine.run(statement))
