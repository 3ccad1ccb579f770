"""`Database` stores jobs, events, aliases, owners, files, versions, leases and requests.

It is the one object for callers. Each of its methods is that of a table, where it is described, and
the tables share one engine. Every method blocks and may be called from any thread.
"""

from __future__ import annotations

from pathlib import Path

from treadle.server.storage.database.alias_table import AliasTable
from treadle.server.storage.database.corpus_table import CorpusTable
from treadle.server.storage.database.engine import Engine
from treadle.server.storage.database.event_table import EventTable
from treadle.server.storage.database.file_table import FileTable
from treadle.server.storage.database.job_table import JobTable
from treadle.server.storage.database.lease_table import LeaseTable
from treadle.server.storage.database.replica_table import ReplicaTable
from treadle.server.storage.database.request_table import RequestTable
from treadle.server.storage.database.row_repair import RowRepair
from treadle.server.storage.database.sqlite_engine import SqliteEngine
from treadle.server.storage.database.version_table import VersionTable


class Database:
    """The database of one server, or of several that share it.

    Args:
        source: The file of a SQLite database, which is made if it is missing; or an engine.
        upgrade: For a file: whether to upgrade the tables of an older Treadle; see `SqliteEngine`.

    Raises:
        DatabaseError: It is damaged, of a newer Treadle, or cannot be opened.
        OSError: The disk failed or is full.
    """

    def __init__(self, source: Path | Engine, *, upgrade: bool = True) -> None:
        engine = SqliteEngine(source, upgrade=upgrade) if isinstance(source, Path) else source
        self.engine: Engine = engine
        """What runs the statements."""
        self.check_structure = engine.check_structure
        self.close = engine.close

        jobs = JobTable(engine)
        self.add_job = jobs.add_job
        self.job = jobs.job
        self.job_of_request = jobs.job_of_request
        self.jobs = jobs.jobs
        self.count_jobs = jobs.count_jobs
        self.pending_claims = jobs.pending_claims
        self.update_job = jobs.update_job
        self.delete_job = jobs.delete_job
        self.over_before = jobs.over_before
        self.newest_s = jobs.newest_s
        self.corpora_in_use = jobs.corpora_in_use
        self.owned_corpora_in_use = jobs.owned_corpora_in_use

        events = EventTable(engine)
        self.append_event = events.append_event
        self.events = events.events

        leases = LeaseTable(engine)
        self.acquire_next = leases.acquire_next
        self.acquire_job = leases.acquire_job
        self.renew = leases.renew
        self.release = leases.release
        self.backlog = leases.backlog
        self.take_duty = leases.take_duty

        requests = RequestTable(engine)
        self.add_request = requests.add_request
        self.remove_request = requests.remove_request
        self.requests = requests.requests
        self.left_requests = requests.left_requests

        aliases = AliasTable(engine)
        self.set_alias = aliases.set_alias
        self.delete_alias = aliases.delete_alias
        self.aliases = aliases.aliases
        self.aliased = aliases.aliased
        self.aliases_of = aliases.aliases_of
        self.all_aliases = aliases.all_aliases
        self.forget_aliases = aliases.forget_aliases

        versions = VersionTable(engine)
        self.reserve_version = versions.reserve_version
        self.next_version = versions.next_version
        self.add_version = versions.add_version
        self.version = versions.version
        self.versions = versions.versions
        self.newest_versions = versions.newest_versions
        self.count_models = versions.count_models
        self.delete_versions = versions.delete_versions
        self.set_version_owner = versions.set_version_owner
        self.version_owners = versions.version_owners
        self.model_bytes = versions.model_bytes
        self.forget_versions = versions.forget_versions

        corpora = CorpusTable(engine)
        self.touch_corpus = corpora.touch_corpus
        self.touch_known_corpus = corpora.touch_known_corpus
        self.has_corpus = corpora.has_corpus
        self.corpora = corpora.corpora
        self.forget_corpus = corpora.forget_corpus
        self.owns_corpus = corpora.owns_corpus
        self.corpus_owners = corpora.corpus_owners
        self.touch_corpus_owner = corpora.touch_corpus_owner
        self.forget_corpus_owner = corpora.forget_corpus_owner
        self.corpus_bytes = corpora.corpus_bytes

        files = FileTable(engine, jobs)
        self.add_file = files.add_file
        self.files = files.files
        self.forget_file = files.forget_file
        self.needs_corpus = files.needs_corpus
        self.forget_lost_files = files.forget_lost_files

        replicas = ReplicaTable(engine)
        self.see_replica = replicas.see_replica
        self.replicas = replicas.replicas
        self.forget_replica = replicas.forget_replica
        self.forget_silent_replicas = replicas.forget_silent_replicas
        self.now_s = replicas.now_s

        if isinstance(engine, SqliteEngine):  # nothing else can be repaired row by row
            rows = RowRepair(engine)
            self.check = rows.check
            self.scan = rows.scan
            self.load = rows.load
            self.lost_events = rows.lost_events
            self.uncounted_events = rows.uncounted_events
            self.count_events = rows.count_events
            self.add_lost_event = rows.add_lost_event
