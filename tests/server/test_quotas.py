"""Quotas of callers: what `QuotaBook` counts, and what `TokenBucket` lets through."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.access import quota_book
from treadle.server.access.caller import ANONYMOUS, Caller, Role, set_current_caller
from treadle.server.access.quota_book import CallerUse, QuotaBook
from treadle.server.access.quotas import NO_QUOTAS, Quotas
from treadle.server.access.token_bucket import BURST_S, TokenBucket
from treadle.server.errors import StatusError


class Clock:
    """A time that passes while something sleeps, and otherwise when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers = list[tuple[float, int, asyncio.Event]]()
        self._numbers = itertools.count()

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._numbers), woken))
        await woken.wait()

    async def run(self, until_s: float) -> None:
        """Lets time pass, and wakes those who sleep until then."""
        while True:
            for _ in range(3):  # what was woken continues
                await asyncio.sleep(0)
            if not self._sleepers or self._sleepers[0][0] > until_s:
                self.now_s = until_s
                return
            self.now_s, _, woken = heapq.heappop(self._sleepers)
            woken.set()


def caller(name: str = "ann", **quotas: int) -> Caller:
    return Caller(name, Role.TRAINER, quotas=Quotas(**quotas))


def refused(attempt: Callable[[], object]) -> StatusError:
    """Returns the error of something that is beyond a quota."""
    with pytest.raises(StatusError) as caught:
        attempt()
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value


def detail(error: StatusError, kind: str) -> Any:
    """Returns a detail of an error."""
    found = getattr(error_details_pb2, kind)()
    return next(each for each in error.details if isinstance(each, type(found)))


def retry_s(error: StatusError) -> float:
    delay = detail(error, "RetryInfo").retry_delay
    return float(delay.seconds + delay.nanos / 1e9)


def enter(context: Any) -> Callable[[], object]:
    return lambda: ExitStack().enter_context(context)


@pytest.mark.parametrize(("count", "chunk"), [(1, 1), (1, 200), (7, 13), (200, 13), (20, 200)])
def test_any_number_of_streams_gets_the_tokens_of_a_minute_and_no_more(
    count: int, chunk: int
) -> None:
    async def run() -> None:
        clock = Clock()
        bucket = TokenBucket(clock, clock.sleep)
        bucket.limit(6000)
        sent = [0.0]

        async def stream() -> None:
            while True:
                await bucket.pay(chunk)
                sent.append(sent[-1] + chunk)

        streams = [asyncio.create_task(stream()) for _ in range(count)]
        for minute in (1, 2, 3):
            before = sent[-1]
            await clock.run(60.0 * minute)
            assert sent[-1] - before == pytest.approx(6000, rel=0.05)
        for each in streams:
            each.cancel()

    asyncio.run(run())


def test_those_who_pay_first_are_served_first_and_equal_ones_get_equal_shares() -> None:
    async def run() -> None:
        clock = Clock()
        bucket = TokenBucket(clock, clock.sleep)
        bucket.limit(600)
        counts = [0, 0, 0]

        async def stream(index: int) -> None:
            while True:
                await bucket.pay(10)
                counts[index] += 1

        streams = [asyncio.create_task(stream(index)) for index in range(3)]
        await clock.run(120.0)
        assert max(counts) - min(counts) <= 600 / 60 * BURST_S / 10  # of the burst at first
        for each in streams:
            each.cancel()

    asyncio.run(run())


def test_a_bucket_fills_up_to_its_burst_and_no_further() -> None:
    clock = Clock()
    bucket = TokenBucket(clock)
    bucket.limit(6000)
    assert bucket.level == 100 * BURST_S
    bucket.take(1000)
    assert bucket.level == 100 * BURST_S - 1000
    assert bucket.wait_s == pytest.approx(8.01)
    clock.now_s = 8.02
    assert bucket.wait_s == 0
    clock.now_s = 1000
    assert bucket.level == 100 * BURST_S
    assert bucket.is_full


def test_a_new_rate_keeps_the_debt() -> None:
    clock = Clock()
    bucket = TokenBucket(clock)
    bucket.limit(60)
    bucket.take(62)
    bucket.limit(600)
    assert bucket.level == -60
    bucket.limit(None)
    assert bucket.level == math.inf
    assert not bucket.is_limited


def test_no_tokens_at_all() -> None:
    use = QuotaBook().of(caller(tokens_per_minute=0))
    error = refused(use.check_tokens)
    assert "the next call may begin never" in error.message
    assert retry_s(error) == 3600


def test_calls_and_sessions_are_counted_for_each_caller() -> None:
    book = QuotaBook()
    ann = book.of(caller(calls=1, sessions=3))
    bob = book.of(caller("bob", calls=1))
    with ann.admit_call(), ann.admit_sessions(2):
        error = refused(enter(ann.admit_call()))
        assert error.message == (
            "your quota calls is used up: 1 of 1 calls run; wait until one has ended"
        )
        assert retry_s(error) == 1
        violation = detail(error, "QuotaFailure").violations[0]
        assert (violation.subject, violation.quota_id) == ("caller:ann", "calls")
        assert violation.quota_value == 1
        error = refused(enter(ann.admit_sessions(2)))
        assert detail(error, "QuotaFailure").violations[0].quota_id == "sessions"
        with ann.admit_sessions(1), bob.admit_call(), bob.admit_sessions(1000):
            assert (ann.calls, ann.sessions, bob.sessions) == (1, 3, 1000)
    assert (ann.calls, ann.sessions, bob.calls, bob.sessions) == (0, 0, 0, 0)


def test_a_session_needs_tokens_to_begin() -> None:
    clock = Clock()
    use = QuotaBook(clock=clock).of(caller(tokens_per_minute=60))
    use.tokens.take(10)
    error = refused(enter(use.admit_sessions()))
    assert detail(error, "QuotaFailure").violations[0].quota_id == "tokens_per_minute"
    assert retry_s(error) == pytest.approx(9)
    assert use.sessions == 0
    clock.now_s = retry_s(error) + 0.01
    with use.admit_sessions():
        pass


def test_the_estimate_counts_while_a_call_runs_and_its_tokens_afterwards() -> None:
    clock = Clock()
    use = QuotaBook(clock=clock).of(caller(tokens_per_minute=600))
    with use.spend_tokens(500) as spent:
        assert use.tokens.level == 20 - 500
        refused(enter(use.spend_tokens(1)))
        spent.tokens = 7
    assert use.tokens.level == 13
    with suppress(ZeroDivisionError), use.spend_tokens(500) as spent:
        spent.tokens = 3
        raise ZeroDivisionError
    assert use.tokens.level == 10


def test_a_meter_pays_for_each_token_once() -> None:
    async def run() -> None:
        use = QuotaBook(clock=Clock()).of(caller(tokens_per_minute=60_000))
        meter = use.meter()
        for part, tokens in ((0, 5), (1, 7), (0, 5), (0, 9), (1, 3), ("prompt", 4)):
            await meter.pay(part, tokens)
        assert use.tokens.level == 2000 - (9 + 7 + 4)

    asyncio.run(run())


class Piece(NamedTuple):
    """A piece of a text."""

    new_tokens: int


def test_pieces_are_sent_as_soon_as_they_are_paid_for_and_not_all_at_once() -> None:
    async def run() -> None:
        clock = Clock()
        use = QuotaBook(clock=clock).of(caller(tokens_per_minute=60))
        use.tokens = TokenBucket(clock, clock.sleep)
        use.tokens.limit(60)
        pieces = [Piece(1), Piece(2), Piece(10), Piece(20), Piece(20)]
        sent = list[tuple[float, list[Piece]]]()

        async def send() -> None:
            async for some in use.meter().paid(0, pieces):
                sent.append((clock.now_s, some))

        task = asyncio.create_task(send())
        await clock.run(100.0)
        await task
        assert sent == [
            (0.0, pieces[:2]),
            (8.0, pieces[2:3]),
            (18.0, pieces[3:]),
        ]
        unlimited = [some async for some in QuotaBook().of(caller()).meter().paid(0, pieces)]
        assert unlimited == [pieces]

    asyncio.run(run())


def test_a_call_that_ends_while_it_waits_leaves_no_debt() -> None:
    async def run() -> None:
        clock = Clock()
        bucket = TokenBucket(clock, clock.sleep)
        bucket.limit(60)
        waiting = asyncio.create_task(bucket.pay(500))
        await clock.run(10.0)
        assert bucket.level == 2 - 500 + 10
        waiting.cancel()
        await asyncio.wait([waiting])
        assert bucket.level == 2

    asyncio.run(run())


def test_the_quotas_of_the_last_call_hold() -> None:
    book = QuotaBook()
    use = book.of(caller(calls=1))
    with use.admit_call():
        book.of(caller(calls=2))
        with use.admit_call():
            refused(enter(use.admit_call()))
    assert book.of(ANONYMOUS).quotas is NO_QUOTAS


def test_the_current_caller_is_counted() -> None:
    async def run() -> None:
        book = QuotaBook()
        set_current_caller(caller("cat"))
        assert book.current() is book.of(caller("cat"))

    asyncio.run(run())


def test_quotas_are_found_by_name_even_of_those_who_do_not_call() -> None:
    quotas = Quotas(jobs_running=3)
    book = QuotaBook({"ann": quotas}.get)
    assert book.quotas_of("ann") is quotas
    assert book.quotas_of("bob") is NO_QUOTAS
    bob = caller("bob", jobs_running=1)
    book.of(bob)
    assert book.quotas_of("bob") is bob.quotas


def test_callers_that_use_nothing_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_book, "_MANY", 10)
    clock = Clock()
    book = QuotaBook(clock=clock)
    busy = book.of(caller("busy"))
    in_debt = book.of(caller("debt", tokens_per_minute=6))
    in_debt.tokens.take(1)
    with busy.admit_call():
        for number in range(100):
            book.of(caller(str(number)))
        assert book.of(caller("busy")) is busy
        assert book.of(caller("debt", tokens_per_minute=6)) is in_debt
        assert len(book._uses) <= 10


def test_every_count_of_a_use_is_idle_at_first() -> None:
    assert CallerUse("ann").is_idle
