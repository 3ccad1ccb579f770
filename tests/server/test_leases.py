"""Who runs a job where several servers share a database: leases, fences, duties, replicas."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from treadle.server.failures import LostLeaseError
from treadle.server.storage.database import Database
from treadle.server.storage.schema import JobRow, NoSuchJobError, VersionRow

from .samples import job_row

LONG_S = 1000.0
"""A lease that outlasts every test."""
OVER_S = -1.0
"""A lease that is over at once."""


def taken(row: JobRow | None) -> JobRow:
    """Returns the row of a job whose lease was taken."""
    assert row is not None
    return row


def test_a_job_is_acquired_by_one_server_until_its_lease_is_over(database: Database) -> None:
    database.add_job(job_row("a"))
    first = taken(database.acquire_next("r1", OVER_S))
    assert (first.id, first.holder, first.fence) == ("a", "r1", 1)
    assert database.job("a") == first
    second = taken(database.acquire_next("r2", LONG_S))
    assert (second.holder, second.fence) == ("r2", 2)
    assert second.lease_until_s > first.lease_until_s + LONG_S / 2
    assert database.acquire_next("r1", LONG_S) is None
    assert database.acquire_job("r1", "a", LONG_S) is None


def test_jobs_that_run_nowhere_any_more_are_acquired_and_those_that_are_over_are_not(
    database: Database,
) -> None:
    for state in ("paused", "succeeded", "failed", "cancelled", "running", "queued"):
        database.add_job(job_row(state, state=state))
    acquired = [taken(database.acquire_next("r", LONG_S)).id for _ in range(2)]
    assert sorted(acquired) == ["queued", "running"]
    assert database.acquire_next("r", LONG_S) is None
    assert taken(database.acquire_job("r", "paused", LONG_S)).fence == 1
    assert database.acquire_job("r", "failed", LONG_S) is None
    assert database.acquire_job("r", "missing", LONG_S) is None


def test_the_owner_with_the_fewest_running_jobs_comes_first(database: Database) -> None:
    for number, owner in enumerate(["ann", "ann", "ann", "bob", "bob", "cy"]):
        database.add_job(job_row(f"{owner}-{number}", owner=owner, queued_s=float(number)))
    order = []
    while (row := database.acquire_next("r", LONG_S)) is not None:
        order.append(row.id)
    assert order == ["ann-0", "bob-3", "cy-5", "ann-1", "bob-4", "ann-2"]


def test_quotas_of_running_jobs_hold_for_all_servers_together(database: Database) -> None:
    for number in range(3):
        database.add_job(job_row(f"ann-{number}", owner="ann", queued_s=float(number)))
        database.add_job(job_row(f"bob-{number}", owner="bob", queued_s=9.0 + number))

    def most(owner: str) -> int | None:
        return 1 if owner == "ann" else None

    order = [taken(database.acquire_next(f"r{n}", LONG_S, most)).id for n in range(4)]
    assert order == ["ann-0", "bob-0", "bob-1", "bob-2"]
    assert database.acquire_next("r", LONG_S, most) is None
    database.release("ann-0", 1)
    assert taken(database.acquire_next("r", LONG_S, most, skipped=["ann-0"])).id == "ann-1"


def test_many_servers_acquire_each_job_once(database: Database) -> None:
    for number in range(24):
        database.add_job(job_row(f"j{number}", owner=f"o{number % 3}"))
    acquired: list[str] = []

    def acquire(replica: str) -> None:
        while (row := database.acquire_next(replica, LONG_S)) is not None:
            acquired.append(row.id)

    threads = [threading.Thread(target=acquire, args=(f"r{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(acquired) == sorted(f"j{number}" for number in range(24))


def test_leases_are_renewed_together_and_lost_ones_are_named(database: Database) -> None:
    for name in ("a", "b", "c"):
        database.add_job(job_row(name))
    fences = {name: taken(database.acquire_job("r1", name, OVER_S)).fence for name in "abc"}
    assert taken(database.acquire_job("r2", "b", LONG_S)).fence == 2
    database.delete_job("c")
    assert database.renew("r1", fences, LONG_S) == {"b", "c"}
    assert database.acquire_job("r2", "a", LONG_S) is None
    assert database.renew("r2", {"a": 1}, LONG_S) == {"a"}
    assert database.renew("r2", {}, LONG_S) == set()


def test_a_released_job_is_free_at_once(database: Database) -> None:
    database.add_job(job_row("a"))
    fence = taken(database.acquire_next("r1", LONG_S)).fence
    database.release("a", fence + 1)  # not the fence of this lease
    assert database.acquire_next("r2", LONG_S) is None
    database.release("a", fence)
    row = taken(database.job("a"))
    assert (row.holder, row.lease_until_s) == ("", 0.0)
    assert taken(database.acquire_next("r2", LONG_S)).fence > fence


WRITES: dict[str, Callable[[Database, int], object]] = {
    "update_job": lambda database, fence: database.update_job("a", fence=fence, reason="x"),
    "no change": lambda database, fence: database.update_job("a", fence=fence),
    "append_event": lambda database, fence: database.append_event(
        "a", b"x", 1.0, fence=fence, state="succeeded"
    ),
    "delete_job": lambda database, fence: database.delete_job("a", fence=fence),
    "reserve_version": lambda database, fence: database.reserve_version("a", "m", fence=fence),
    "add_version": lambda database, fence: database.add_version(
        VersionRow("m", 1, "aa"), job="a", fence=fence
    ),
    "set_version_owner": lambda database, fence: database.set_version_owner(
        "m", 1, "ann", 1, 1.0, job="a", fence=fence
    ),
}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("lost", ["taken", "released"])
def test_nothing_is_written_under_a_lost_lease(database: Database, name: str, lost: str) -> None:
    database.add_job(job_row("a"))
    fence = taken(database.acquire_next("r1", OVER_S)).fence
    if lost == "taken":
        taken(database.acquire_next("r2", LONG_S))
    else:
        database.release("a", fence)
    before = database.job("a")
    with pytest.raises(LostLeaseError, match="lease of job 'a'"):
        WRITES[name](database, fence)
    assert database.job("a") == before
    assert database.events("a", 0) == []
    assert database.versions() == []
    assert database.version_owners() == []


@pytest.mark.parametrize("name", WRITES)
def test_what_is_written_under_a_lease_is_there(database: Database, name: str) -> None:
    database.add_job(job_row("a"))
    fence = taken(database.acquire_next("r1", OVER_S)).fence  # over, but nobody has taken it
    WRITES[name](database, fence)
    assert (database.job("a") is None) == (name == "delete_job")
    assert len(database.events("a", 0)) == (name == "append_event")
    assert len(database.versions("m")) == (name == "add_version")
    assert len(database.version_owners()) == (name == "set_version_owner")


def test_a_job_that_is_gone_has_no_lease(database: Database) -> None:
    for write in WRITES.values():
        with pytest.raises(NoSuchJobError, match="'a'"):
            write(database, 1)


def test_an_event_that_is_sent_again_is_stored_once(database: Database) -> None:
    """After a lost connection nobody knows whether it was stored."""
    database.add_job(job_row("a"), b"first")
    for _ in range(2):
        assert database.append_event("a", b"second", 2.0, after=1, restarts=1) == 2
    assert database.append_event("a", b"third", 2.0, after=2) == 3
    assert [payload for _, _, payload in database.events("a", 0)] == [b"first", b"second", b"third"]
    assert taken(database.job("a")).last_sequence == 3


def test_versions_have_one_row_each(database: Database) -> None:
    row = VersionRow("m", 1, "aa", 5, 1.5, b"about it")
    assert database.add_version(row) == row
    assert database.add_version(VersionRow("m", 1, "bb", 6, 2.5, b"other")) == row
    assert database.version("m", 1) == row
    assert database.version("m", 2) is None
    database.add_version(VersionRow("m", 3, "cc", 7, 2.5))
    database.add_version(VersionRow("k", 2, "dd", 8, 3.5))
    assert [(found.model, found.version) for found in database.versions()] == [
        ("k", 2),
        ("m", 1),
        ("m", 3),
    ]
    assert database.versions("m")[0] == VersionRow("m", 1, "aa", 5, 1.5)
    database.delete_versions("m", [1, 2])
    assert [found.version for found in database.versions("m")] == [3]


def test_reserved_versions_are_above_stored_and_reserved_ones(database: Database) -> None:
    for name in ("a", "b", "c"):
        database.add_job(job_row(name))
    database.add_version(VersionRow("m", 4, "aa"))
    assert database.reserve_version("a", "m") == 5
    assert database.reserve_version("b", "m") == 6
    assert database.reserve_version("c", "n") == 1
    assert taken(database.job("a")).claim == 5
    database.update_job("b", state="failed")
    assert database.reserve_version("a", "m") == 6


def test_a_duty_is_one_servers_until_it_is_over(database: Database) -> None:
    assert database.take_duty("sweep", "r1", LONG_S)
    assert database.take_duty("sweep", "r1", OVER_S)
    assert database.take_duty("sweep", "r2", LONG_S)
    assert not database.take_duty("sweep", "r1", LONG_S)
    assert database.take_duty("retention", "r1", LONG_S)


def test_replicas_are_seen_by_the_clock_of_the_database(database: Database) -> None:
    before_s = database.now_s()
    database.see_replica("r1", "host:1")
    database.see_replica("r2", "host:2")
    first = database.replicas(LONG_S)
    database.see_replica("r1", "host:3")
    second = {replica.id: replica for replica in database.replicas(LONG_S)}
    assert {replica.id for replica in first} == {"r1", "r2"}
    assert second["r1"].address == "host:3"
    assert second["r1"].seen_s >= first[0].seen_s >= second["r1"].started_s >= before_s
    assert database.replicas(-LONG_S) == []
    database.forget_replica("r2")
    assert database.forget_silent_replicas(LONG_S) == 0
    assert database.forget_silent_replicas(-LONG_S) == 1
    assert database.replicas(LONG_S) == []


def test_jobs_are_counted_by_state_and_owner(database: Database) -> None:
    for number, owner in enumerate(["ann", "ann", "bob"]):
        database.add_job(job_row(f"j{number}", owner=owner))
    database.update_job("j0", state="paused")
    assert database.count_jobs(["queued"]) == 2
    assert database.count_jobs(["queued", "paused"], "ann") == 2
    assert database.count_jobs(["queued"], "bob") == 1


def test_a_server_that_is_patient_leaves_leases_alone_that_were_not_given_up(
    database: Database,
) -> None:
    database.add_job(job_row("dead"))
    taken(database.acquire_next("r1", OVER_S))
    assert database.acquire_next("r2", LONG_S, is_patient=True) is None
    database.add_job(job_row("new"))
    assert taken(database.acquire_next("r2", LONG_S, is_patient=True)).id == "new"
    database.release("new", 1)
    assert taken(database.acquire_next("r2", LONG_S, is_patient=True)).id == "new"
    assert taken(database.acquire_next("r2", LONG_S)).id == "dead"


def test_leases_that_are_left_alone_count_for_the_quota_of_their_owner(database: Database) -> None:
    for number in range(2):
        database.add_job(job_row(f"ann-{number}", owner="ann"))
    taken(database.acquire_job("r1", "ann-0", OVER_S))
    assert database.acquire_next("r2", LONG_S, lambda _: 1, is_patient=True) is None
    assert taken(database.acquire_next("r2", LONG_S, lambda _: 2, is_patient=True)).id == "ann-1"
    assert database.acquire_next("r2", LONG_S, lambda _: 1) is None


def test_the_holder_of_a_job_is_told_what_others_ask_of_it(database: Database) -> None:
    for name in ("a", "b"):
        database.add_job(job_row(name))
        taken(database.acquire_job("r1", name, LONG_S))
    assert database.requests("r1") == []
    database.update_job("b", fence=1, request="pause")
    assert database.requests("r1") == [("b", "pause")]
    assert database.requests("r2") == []
    with pytest.raises(LostLeaseError):
        database.update_job("b", fence=2, request="cancel")
    database.update_job("b", fence=1, request="")
    assert database.requests("r1") == []


def test_requests_are_found_that_their_servers_do_not_live_to_heed(database: Database) -> None:
    for name, state in {"gone": "running", "here": "running", "over": "failed"}.items():
        database.add_job(job_row(name, state=state, request="cancel"))
    taken(database.acquire_job("r1", "gone", OVER_S))
    taken(database.acquire_job("r2", "here", LONG_S))
    database.add_job(job_row("quiet"))
    assert database.left_requests() == ["gone"]


def test_the_backlog_is_what_is_not_over_in_the_order_of_the_queue(database: Database) -> None:
    for number, state in enumerate(("running", "succeeded", "queued", "paused")):
        database.add_job(
            job_row(state, state=state, owner="ann", queued_s=9.0 - number, waits_for_bytes=number)
        )
    rows = database.backlog()
    assert [(row.id, row.owner, row.model, row.waits_for_bytes) for row in rows] == [
        ("paused", "ann", "m", 3),
        ("queued", "ann", "m", 2),
        ("running", "ann", "m", 0),
    ]
