"""`CorpusTable` keeps when corpora were used last, and whose they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.server.storage.database.engine import Engine, Statements


class CorpusTable:
    """The corpora, and the owners of each.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def touch_corpus(self, sha256: str, size: int, now_s: float) -> None:
        """Notes that a corpus of `size` bytes was used at `now_s`."""
        self._engine.run(
            "INSERT INTO corpora VALUES (?, ?, ?) ON CONFLICT (sha256) "
            "DO UPDATE SET size = excluded.size, used_s = excluded.used_s",
            *(sha256, size, now_s),
        )

    def touch_known_corpus(self, sha256: str, now_s: float) -> bool:
        """Notes that a corpus was used at `now_s`, if there is a row of it; returns whether."""
        statement = "UPDATE corpora SET used_s = ? WHERE sha256 = ?"
        return bool(self._engine.run(statement, now_s, sha256))

    def has_corpus(self, sha256: str) -> bool:
        """Returns whether there is a row of a corpus."""
        return bool(self._engine.rows("SELECT 1 FROM corpora WHERE sha256 = ?", sha256))

    def corpora(self) -> list[tuple[str, int, float]]:
        """Returns hash, size and time of last use of every corpus; leaves out damaged rows."""
        rows = self._engine.rows("SELECT sha256, size, used_s FROM corpora ORDER BY sha256")
        kinds = (str, int, float)
        return [row for row in rows if all(map(isinstance, row, kinds))]

    def forget_corpus(self, sha256: str, before_s: float | None = None) -> bool:
        """Deletes the row of a corpus and those of its owners, if there are any.

        Args:
            sha256: The hash of the corpus.
            before_s: Only if it was last used before this time, in seconds since the epoch; None:
                in any case.

        Returns:
            Whether it is forgotten; False where no row of it was last used before that time.
        """
        condition = "" if before_s is None else " AND used_s < ?"
        values = () if before_s is None else (before_s,)

        def forget() -> bool:
            with self._engine.transaction() as transaction:
                statement = f"DELETE FROM corpora WHERE sha256 = ?{condition}"
                if not transaction.run(statement, sha256, *values) and before_s is not None:
                    return False
                transaction.run("DELETE FROM corpus_owners WHERE sha256 = ?", sha256)
            return True

        return self._engine.urgent(forget)

    def owns_corpus(self, owner: str, sha256: str) -> bool:
        """Returns whether a corpus belongs to an owner."""
        statement = "SELECT 1 FROM corpus_owners WHERE sha256 = ? AND owner = ?"
        return bool(self._engine.rows(statement, sha256, owner))

    def corpus_owners(self) -> list[tuple[str, str, float]]:
        """Returns hash, owner and time of last use for each owner of every corpus."""
        rows = self._engine.rows(
            "SELECT sha256, owner, used_s FROM corpus_owners ORDER BY sha256, owner"
        )
        return [row for row in rows if all(map(isinstance, row, (str, str, float)))]

    def touch_corpus_owner(self, sha256: str, owner: str, now_s: float) -> None:
        """Notes that an owner used a corpus of its own at `now_s`."""
        statement = "UPDATE corpus_owners SET used_s = ? WHERE sha256 = ? AND owner = ?"
        self._engine.run(statement, now_s, sha256, owner)

    def forget_corpus_owner(self, sha256: str, owner: str, before_s: float) -> bool:
        """Takes a corpus from an owner that last used it before a time.

        Returns:
            Whether it was one of the owner, and is not any more.
        """
        statement = "DELETE FROM corpus_owners WHERE sha256 = ? AND owner = ? AND used_s < ?"
        return bool(
            self._engine.urgent(lambda: self._engine.run(statement, sha256, owner, before_s))
        )

    def corpus_bytes(self, owner: str) -> int:
        """Returns the bytes of all corpora of an owner."""
        [(size,)] = self._engine.rows("SELECT SUM(size) FROM corpus_owners WHERE owner = ?", owner)
        return int(size or 0)


def own_corpus(transaction: Statements, sha256: str, owner: str, size: int, used_s: float) -> None:
    """Makes a corpus an owner's.

    Args:
        transaction: The transaction.
        sha256: The hash of the corpus.
        owner: The owner.
        size: Bytes of the corpus.
        used_s: When it was used last, in seconds since the epoch.
    """
    transaction.run(
        "INSERT INTO corpus_owners VALUES (?, ?, ?, ?) ON CONFLICT (sha256, owner) "
        "DO UPDATE SET size = excluded.size, used_s = excluded.used_s",
        *(sha256, owner, size, used_s),
    )
