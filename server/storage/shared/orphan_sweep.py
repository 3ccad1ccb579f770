"""`sweep_orphans` deletes blobs that belong to nothing, such as what a killed server has begun.

A blob is stored before the row that names it. So only those count that are older than that can
take. The rows are read after the blobs were listed, and no key is used twice, except those of
corpora: a server that stores a corpus without a row always writes its blob.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from treadle.server.failures import DatabaseError
from treadle.server.storage.schema import VersionRow
from treadle.server.storage.shared.job_checkpoint import read_checkpoint
from treadle.server.storage.shared.keys import CORPORA, JOBS, MODELS, claim_key, model_key

if TYPE_CHECKING:
    from treadle.server.storage.blobs.blob_store import Blob, BlobStore
    from treadle.server.storage.database import Database

logger = logging.getLogger(__name__)

_PROBES = "probes/"
"""Where servers try whether the store takes blobs."""


def sweep_orphans(blobs: BlobStore, database: Database, orphan_s: float, now_s: float) -> int:
    """Deletes the blobs that belong to nothing.

    Args:
        blobs: The blobs.
        database: The rows that name them.
        orphan_s: Seconds after which a blob counts as left behind.
        now_s: The time, in seconds since the epoch.

    Returns:
        The number of blobs that were deleted.

    Raises:
        BlobsUnavailableError: The store cannot be reached.
        DatabaseError: The database failed.
    """
    before_s = now_s - orphan_s
    count = 0
    for keys in (
        _of_models(blobs, database, before_s),
        _of_jobs(blobs, database, before_s),
        _of_corpora(blobs, database, before_s),
        (blob.key for blob in blobs.list(_PROBES) if blob.modified_s < before_s),
    ):
        found = [*keys]
        blobs.delete(found)
        count += len(found)
    return count


def _of_models(blobs: BlobStore, database: Database, before_s: float) -> Iterator[str]:
    versions: defaultdict[tuple[str, int], list[Blob]] = defaultdict(list)
    for blob in blobs.list(MODELS):
        name, _, rest = blob.key.removeprefix(MODELS).partition("/")
        number = rest.partition("/")[0]
        if number.isdecimal():
            versions[name, int(number)].append(blob)
    stored = {(row.model, row.version): row for row in database.versions()}
    for (name, version), found in versions.items():
        row = stored.get((name, version))
        old = [blob.key for blob in found if blob.modified_s < before_s]
        if row is None and len(old) == len(found):
            # Takes the number, so that nobody who claimed it can enter the version any more.
            row = database.add_version(VersionRow(name, version))
        if row is None:
            continue
        kept = {claim_key(name, version), model_key(name, version, row.sha256)}
        yield from (key for key in old if not row.sha256 or key not in kept)


def _of_jobs(blobs: BlobStore, database: Database, before_s: float) -> Iterator[str]:
    jobs: defaultdict[str, list[Blob]] = defaultdict(list)
    for blob in blobs.list(JOBS):
        jobs[blob.key.removeprefix(JOBS).partition("/")[0]].append(blob)
    for job, found in jobs.items():
        row = database.job(job)
        try:
            named = {blob.key for blob in read_checkpoint(row.checkpoint if row else "").values()}
        except DatabaseError as error:
            logger.warning("the files of job %s stay: %s", job, error)
            continue
        yield from (
            blob.key for blob in found if blob.modified_s < before_s and blob.key not in named
        )


def _of_corpora(blobs: BlobStore, database: Database, before_s: float) -> Iterator[str]:
    old = [blob.key for blob in blobs.list(CORPORA) if blob.modified_s < before_s]
    known = {sha256 for sha256, _, _ in database.corpora()}
    for key in old:
        sha256 = key.removeprefix(CORPORA)
        if sha256 not in known and not database.has_corpus(sha256):
            found = blobs.head(key)
            if found is not None and found.modified_s < before_s:
                yield key
