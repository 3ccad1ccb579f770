"""What is PostgreSQL's alone: outages, many servers at once, notifications, older tables."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from services.postgresql import PostgresqlServer, served

from treadle.server.failures import (
    DatabaseError,
    DatabaseUnavailableError,
    DuplicateRowError,
    is_full,
)
from treadle.server.storage.database import Database, migrations
from treadle.server.storage.database.change import QUEUED, Change, ChangeKind
from treadle.server.storage.database.change_feed import ANYTHING, ChangeFeed
from treadle.server.storage.schema import (
    SCHEMA_VERSION,
    UNKNOWN_VERSION,
    NewerDatabaseError,
    VersionRow,
)

from .samples import job_row

pytest.importorskip("psycopg", reason="psycopg is missing: pip install 'treadle[postgresql]'")

import psycopg

from treadle.server.storage.database.postgresql import connection_pool
from treadle.server.storage.database.postgresql.connection_failure import translated
from treadle.server.storage.database.postgresql.connection_settings import ConnectionSettings
from treadle.server.storage.database.postgresql.engine import PostgresqlEngine, as_postgresql
from treadle.server.storage.database.postgresql.opening import open_database

PATIENCE_S = 60.0


@pytest.fixture
def open_new(postgresql_url: str) -> Iterator[Callable[[], Database]]:
    """Opens one empty database, as often as it is called."""
    opened: list[Database] = []

    def opening() -> Database:
        opened.append(open_database(postgresql_url))
        return opened[-1]

    yield opening
    for database in opened:
        database.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresqlServer]:
    """A server that these tests stop and start again."""
    yield from served()


def test_many_servers_that_start_at_once_make_the_tables_once(
    open_new: Callable[[], Database],
) -> None:
    with ThreadPoolExecutor(8) as threads:
        databases = list(threads.map(lambda _: open_new(), range(8)))
    databases[0].add_job(job_row("a"))
    assert all(database.job("a") == job_row("a") for database in databases)
    assert databases[0].engine.rows("SELECT version FROM treadle_schema") == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_tables_of_an_older_version_are_brought_up_to_date(
    postgresql_url: str, version: int
) -> None:
    row = job_row("a", request_id="r", init_from="m")
    with psycopg.connect(postgresql_url) as older:
        for number in range(1, version + 1):
            for statement in migrations.statements(number):
                older.execute(as_postgresql(statement))
        older.execute("CREATE TABLE treadle_schema (version BIGINT NOT NULL)")
        older.execute("INSERT INTO treadle_schema VALUES (%s)", [version])
        columns = older.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'jobs'"
        )
        names = [name for (name,) in columns]
        places = ", ".join(["%s"] * len(names))
        older.execute(
            f"INSERT INTO jobs ({', '.join(names)}) VALUES ({places})".encode(),
            [getattr(row, name) for name in names],
        )
    for _ in range(2):
        database = open_database(postgresql_url)
        asked = UNKNOWN_VERSION if version == 1 else 0
        assert database.job("a") == replace(row, init_from_version=asked)
        assert database.add_job(job_row("b", request_id="r")).id == "a"
        database.close()


def test_a_dump_is_a_backup(own_server: PostgresqlServer) -> None:
    name = own_server.new_database()
    database = open_database(own_server.url(name))
    database.add_job(job_row("a", files='[{"sha256": "aa"}]', owner="ann"), b"\0first")
    database.set_alias("m", "prod", 3)
    held = database.acquire_next("r1", 1000.0)
    assert held is not None
    database.close()
    own_server.dump(name, own_server.root / "dump")
    copy = own_server.new_database()
    own_server.restore(copy, own_server.root / "dump")
    restored = open_database(own_server.url(copy))
    assert restored.job("a") == held
    assert [payload for _, _, payload in restored.events("a", 0)] == [b"\0first"]
    assert restored.aliases("m") == {"prod": 3}
    assert restored.owns_corpus("ann", "aa")
    assert restored.engine.rows("SELECT version FROM treadle_schema") == [(SCHEMA_VERSION,)]
    restored.close()


def test_newer_tables_are_refused_and_left_as_they_are(postgresql_url: str) -> None:
    with psycopg.connect(postgresql_url) as newer:
        newer.execute("CREATE TABLE treadle_schema (version BIGINT NOT NULL)")
        newer.execute("INSERT INTO treadle_schema VALUES (99)")
    with pytest.raises(NewerDatabaseError, match=r"version 99.*use a newer Treadle"):
        open_database(postgresql_url)
    with psycopg.connect(postgresql_url) as newer:
        assert newer.execute("SELECT to_regclass('jobs')").fetchone() == (None,)


def test_a_database_of_another_encoding_is_refused(postgresql_server: PostgresqlServer) -> None:
    with psycopg.connect(postgresql_server.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(DatabaseError, match="encoding LATIN1: make one with ENCODING"):
        open_database(postgresql_server.url("latin"))
    postgresql_server.drop_database("latin")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:geheim@[host/x",
        "postgresql://ann:geheim@/x?shoe=1",
        "postgresql://%",
        "postgresql://ann:a@geheim@host/x",
        "postgresql://ann:1/geheim@host/x",
        "postgresql://ann:geheim/a@host/x",
        "postgresql://ann:geheim/x",
    ],
)
def test_a_malformed_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(DatabaseError, match="write postgresql://USER") as caught:
        open_database(url)
    assert "geheim" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_password_is_in_an_error(postgresql_server: PostgresqlServer) -> None:
    url = postgresql_server.url("missing").replace("treadle@", "treadle:geheim@")
    with pytest.raises(DatabaseError, match=r"'missing' at 127\.0\.0\.1") as caught:
        open_database(url)
    assert "geheim" not in f"{caught.value} {caught.value.__cause__}"


def test_texts_are_ordered_by_their_characters_and_hold_any(
    open_new: Callable[[], Database],
) -> None:
    database = open_new()
    for alias in ("b", "B", "a-b", "ab", "é", "_"):
        database.set_alias("m", alias, 1)
    assert list(database.aliases("m")) == sorted(["b", "B", "a-b", "ab", "é", "_"])
    database.add_job(job_row("a", reason="one\0two % ? \N{SNOWMAN}", request_id="r\0"))
    found = database.job_of_request("", "r\0")
    assert found is not None
    assert found.reason == "one\N{SYMBOL FOR NULL}two % ? \N{SNOWMAN}"


def test_two_servers_give_one_job_for_a_request_id(open_new: Callable[[], Database]) -> None:
    databases = [open_new(), open_new()]
    for round_ in range(10):
        with ThreadPoolExecutor(4) as threads:
            rows = threads.map(
                lambda number: databases[number % 2].add_job(
                    job_row(f"j-{round_}-{number}", request_id=f"r{round_}"),  # noqa: B023
                ),
                range(4),
            )
        assert len({row.id for row in rows}) == 1
    assert databases[0].count_jobs(["queued"]) == 10


def test_two_servers_reserve_different_versions(open_new: Callable[[], Database]) -> None:
    databases = [open_new(), open_new()]
    for number in range(12):
        databases[0].add_job(job_row(f"j{number}"))
    with ThreadPoolExecutor(6) as threads:
        versions = threads.map(
            lambda number: databases[number % 2].reserve_version(f"j{number}", "m"), range(12)
        )
    assert sorted(versions) == list(range(1, 13))


def test_looking_at_an_empty_queue_waits_for_nobody(open_new: Callable[[], Database]) -> None:
    busy = open_new()
    other = open_new()
    with busy.engine.transaction("acquire"), ThreadPoolExecutor(1) as thread:
        assert thread.submit(other.acquire_next, "r", 100.0).result(PATIENCE_S) is None


def test_a_thread_takes_one_connection_at_a_time(open_new: Callable[[], Database]) -> None:
    engine = open_new().engine
    with engine.transaction(), pytest.raises(RuntimeError, match="one connection at a time"):
        engine.rows("SELECT 1")
    assert engine.rows("SELECT 1") == [(1,)]


def test_more_threads_than_connections_take_turns(postgresql_url: str) -> None:
    database = Database(PostgresqlEngine(postgresql_url, connections=2))
    database.add_job(job_row("a"))
    with ThreadPoolExecutor(16) as threads:
        numbers = [*threads.map(lambda _: database.append_event("a", b"x" * 5000, 1.0), range(100))]
    assert sorted(numbers) == list(range(1, 101))
    with psycopg.connect(postgresql_url) as other:
        used = other.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name = 'treadle' AND datname = current_database()"
        )
        assert used.fetchone() == (2,)
    assert [number for number, _, _ in database.events("a", 7)] == list(range(8, 22))
    database.close()


def test_a_statement_that_fails_leaves_its_connection_usable(
    open_new: Callable[[], Database],
) -> None:
    database = open_new()
    for _ in range(20):
        with pytest.raises(DatabaseError, match="cannot be used"):
            database.engine.rows("SELECT nothing")
        with pytest.raises(ZeroDivisionError):
            fail_within(database)
    assert database.all_aliases() == []


def test_a_server_that_stops_and_starts_is_used_again(
    own_server: PostgresqlServer,
) -> None:
    server = own_server
    database = open_database(server.url(server.new_database()))
    database.add_job(job_row("a"))
    with ThreadPoolExecutor(6) as threads:  # several connections, which all break
        list(threads.map(lambda _: database.job("a"), range(12)))
    server.stop()
    for _ in range(3):
        with pytest.raises(DatabaseUnavailableError, match="cannot be reached"):
            database.append_event("a", b"x", 1.0, after=0)
    began = time.monotonic()
    with ThreadPoolExecutor(6) as threads:
        failures = [*threads.map(lambda _: is_unavailable(database), range(600))]
    assert all(failures)
    # Not one attempt to connect for each call.
    assert time.monotonic() - began < PATIENCE_S
    server.start()
    wait_until(lambda: not is_unavailable(database))
    assert database.append_event("a", b"x", 1.0, after=0) == 1
    # A second end and start between two calls goes unnoticed.
    server.stop()
    server.start()
    assert database.job("a") is not None
    database.close()


def test_a_lost_connection_fails_one_call_at_most(
    open_new: Callable[[], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_pool, "_ATTEMPT_S", PATIENCE_S)
    database = open_new()
    database.add_job(job_row("a"))
    with psycopg.connect(database_url(database), autocommit=True) as admin:
        for _ in range(5):
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(lambda _: database.job("a"), range(8)))
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'treadle' AND datname = current_database()"
            )
            with ThreadPoolExecutor(4) as threads:
                failed = [*threads.map(lambda _: is_unavailable(database), range(8))]
            assert sum(failed) <= 4  # those in the moment of the end, but not those after it
            assert not is_unavailable(database)


def database_url(database: Database) -> str:
    """Returns the URL of a database, from its own connection."""
    [(name, port)] = database.engine.rows("SELECT current_database(), inet_server_port()")
    return f"postgresql://treadle@127.0.0.1:{port}/{name}"


def test_a_server_that_hangs_is_given_up_in_time(
    own_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = own_server
    database = open_database(server.url(server.new_database()))
    database.add_job(job_row("a"))
    monkeypatch.setattr(connection_pool.BoundedConnection, "answer_s", 0.3)
    server.freeze()
    assert is_unavailable(database)
    assert is_unavailable(database)
    server.thaw()
    monkeypatch.undo()
    wait_until(lambda: not is_unavailable(database))
    database.close()


def test_a_host_that_does_not_answer_is_given_up_in_time() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        port = deaf.getsockname()[1]
        with pytest.raises(
            DatabaseUnavailableError, match=r"'x' at 127\.0\.0\.1 cannot be reached"
        ):
            open_database(f"postgresql://ann@127.0.0.1:{port}/x?connect_timeout=2")


def fail_within(database: Database) -> None:
    """Fails in a transaction that has changed something."""
    with database.engine.transaction() as transaction:
        transaction.run("INSERT INTO aliases VALUES ('m', 'a', 1)")
        raise ZeroDivisionError


def is_unavailable(database: Database) -> bool:
    try:
        database.job("a")
    except DatabaseUnavailableError:
        return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("08006", DatabaseUnavailableError),
        ("57P01", DatabaseUnavailableError),
        ("57P03", DatabaseUnavailableError),
        ("57014", DatabaseUnavailableError),
        ("53300", DatabaseUnavailableError),
        ("40P01", DatabaseUnavailableError),
        ("25006", DatabaseUnavailableError),
        ("25P03", DatabaseUnavailableError),
        ("53100", OSError),
        ("23505", DuplicateRowError),
        ("42P01", DatabaseError),
        ("22021", DatabaseError),
    ],
)
def test_each_failure_has_its_meaning(code: str, kind: type[Exception]) -> None:
    error = psycopg.errors.lookup(code)("it failed\nand how")
    found = translated(error, "the database 'x'")
    assert type(found) is kind
    assert is_full(found) == (kind is OSError)
    assert "and how" not in str(found)


def test_a_transaction_that_was_stopped_holds_no_lock_for_long(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was stopped within a transaction must not keep others from their jobs."""
    monkeypatch.setattr(connection_pool, "_SILENT_S", 0.2)
    stopped = open_database(postgresql_url)
    stopped.add_job(job_row("a"))
    monkeypatch.undo()
    other = open_database(postgresql_url)
    held = threading.Event()
    released = threading.Event()

    def hold() -> None:
        with stopped.engine.transaction("acquire") as own:
            own.run("UPDATE jobs SET reason = 'x'")
            held.set()
            released.wait(PATIENCE_S)
            own.run("UPDATE jobs SET reason = 'y'")

    def fail() -> None:
        with pytest.raises(DatabaseUnavailableError):
            hold()

    thread = threading.Thread(target=fail)
    thread.start()
    assert held.wait(PATIENCE_S)
    row = other.acquire_next("r2", 100.0)
    assert row is not None
    assert row.reason == ""
    released.set()
    thread.join(PATIENCE_S)
    stopped.close()
    other.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_every_change_is_announced_with_its_commit(open_new: Callable[[], Database]) -> None:
    database = open_new()
    other = open_new()
    heard: list[Change] = []

    async def listening() -> None:
        feed = ChangeFeed(database)
        feed.subscribe(heard.append)
        task = asyncio.create_task(feed.run())
        await until(lambda: heard == [ANYTHING])
        for change, announced in CHANGES:
            heard.clear()
            await asyncio.to_thread(change, other)
            await until(lambda: len(heard) >= len(announced))  # noqa: B023
            assert heard == announced
        heard.clear()
        with pytest.raises(DatabaseError):
            other.append_event("a", b"x", 1.0, reason=None)
        other.set_alias("n", "last", 1)
        await until(lambda: bool(heard))
        assert heard == [Change(ChangeKind.MODEL, "n")]
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(listening())


CHANGES: list[tuple[Callable[[Database], object], list[Change]]] = [
    (lambda database: database.add_job(job_row("a")), [QUEUED]),
    (
        lambda database: database.append_event("a", b"x", 1.0),
        [Change(ChangeKind.JOB, "a", 1)],
    ),
    (
        lambda database: database.append_event("a", b"x", 1.0, state="queued"),
        [Change(ChangeKind.JOB, "a", 2), QUEUED],
    ),
    (
        lambda database: database.update_job("a", request="cancel"),
        [Change(ChangeKind.REQUEST, "a")],
    ),
    (
        lambda database: database.update_job("a", state="paused"),
        [Change(ChangeKind.JOB, "a", 2)],
    ),
    (lambda database: database.set_alias("it's", "x", 1), [Change(ChangeKind.MODEL, "it's")]),
    (lambda database: database.delete_alias("m", "x"), [Change(ChangeKind.MODEL, "m")]),
    (lambda database: database.forget_aliases("m", [1]), [Change(ChangeKind.MODEL, "m")]),
    (
        lambda database: database.add_version(VersionRow("m", 1, "aa")),
        [Change(ChangeKind.MODEL, "m")],
    ),
    (lambda database: database.delete_versions("m", [1]), [Change(ChangeKind.MODEL, "m")]),
    (lambda database: database.delete_job("a"), [Change(ChangeKind.JOB, "a")]),
]


def test_a_feed_that_hears_nothing_says_so_again_and_again(
    own_server: PostgresqlServer,
) -> None:
    server = own_server
    database = open_database(server.url(server.new_database()))
    heard: list[Change] = []

    async def listening() -> None:
        feed = ChangeFeed(database, poll_s=0.05)
        feed.subscribe(lambda _: 1 / 0)  # the others hear it all the same
        feed.subscribe(heard.append)
        task = asyncio.create_task(feed.run())
        await until(lambda: len(heard) == 1)
        server.stop()
        await until(lambda: len(heard) > 3)
        assert set(heard) == {ANYTHING}
        server.start()
        wait_until(lambda: not is_unavailable(database))
        await asyncio.sleep(0.5)  # it listens again by now, or hears of nothing but ANYTHING below
        database.add_job(job_row("a"))
        await until(lambda: QUEUED in heard or heard[-1] == ANYTHING)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(listening())
    database.close()


@pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("odd"), DatabaseError("away")])
def test_the_feed_goes_on_after_any_error(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(tmp_path / "treadle.db")
    failing = asyncio.Event()
    attempts: list[bool] = []

    async def listen() -> AsyncGenerator[Change, None]:
        attempts.append(feed.is_listening)
        yield QUEUED
        if len(attempts) == 1:
            await failing.wait()
            raise error
        await asyncio.Event().wait()

    monkeypatch.setattr(database.engine, "listen", listen)
    feed = ChangeFeed(database, poll_s=0.01)
    heard: list[Change] = []
    feed.subscribe(heard.append)

    async def listening() -> None:
        task = asyncio.create_task(feed.run())
        await until(lambda: feed.is_listening)
        failing.set()
        await until(lambda: len(heard) == 3)
        assert feed.is_listening
        task.cancel()
        await asyncio.wait([task])
        assert not feed.is_listening

    asyncio.run(listening())
    assert heard == [QUEUED, ANYTHING, QUEUED]
    assert attempts == [False, False]
    database.close()


def test_a_database_of_its_own_has_no_feed(tmp_path: Path) -> None:
    database = Database(tmp_path / "treadle.db")
    asyncio.run(ChangeFeed(database).run())
    database.close()


@pytest.mark.parametrize(
    "change",
    [QUEUED, Change(ChangeKind.JOB, "a", 7), Change(ChangeKind.JOB, "a"), ANYTHING],
)
def test_a_change_is_read_as_it_was_written(change: Change) -> None:
    assert Change.parse(change.payload()) == change


@pytest.mark.parametrize("payload", ["", "colour", "job a b"])
def test_what_only_a_newer_server_knows_may_be_anything(payload: str) -> None:
    assert Change.parse(payload) == ANYTHING


def test_connections_work_beyond_a_thousand_open_files(postgresql_url: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 1200:
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 1200), before[1]))
    opened = [os.open(os.devnull, os.O_RDONLY)]
    database: Database | None = None
    try:
        while opened[-1] < 1024:
            opened.append(os.dup(opened[0]))
        database = open_database(postgresql_url)
        database.add_job(job_row("a"))
        assert database.job("a") == job_row("a")
    finally:
        if database is not None:
            database.close()
        for one in opened:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_settings_in_a_traceback_hold_no_password() -> None:
    settings = ConnectionSettings.of("postgresql://ann:a%40%2Fgeheim@h/x")
    assert settings.parameters["password"] == "a@/geheim"
    assert "geheim" not in repr(settings)


@pytest.mark.parametrize(
    "url", ["postgresql:///x?host=/run/a@b", "postgresql://a,b:1/x", "postgresql:///x?host=@a"]
)
def test_unusual_hosts_are_taken(url: str) -> None:
    assert ConnectionSettings.of(url).parameters["dbname"] == "x"


def test_settings_of_the_url_come_before_ours() -> None:
    settings = ConnectionSettings.of("postgresql://h/x?connect_timeout=9&application_name=a")
    assert settings.parameters["connect_timeout"] == "9"
    assert settings.parameters["application_name"] == "a"
    assert settings.place == "the database 'x' at h"
