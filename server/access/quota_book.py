"""`QuotaBook` counts what every caller uses, and refuses what is beyond its quotas.

The counts hold for one server process: they are not kept when it ends. Jobs and bytes are read
from the database by those who store them.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.server.access.caller import Caller, current_caller
from treadle.server.access.quotas import NO_QUOTAS, Quotas
from treadle.server.access.token_bucket import TokenBucket
from treadle.server.errors import StatusError, exhausted
from treadle.server.telemetry import metrics

_RETRY_S = 1.0
"""Seconds after which one of the caller's own calls may be over."""

_RETRY_JOBS_S = 5.0
"""Seconds after which one of the caller's jobs may have begun to run."""

_RETRY_BYTES_S = 60.0
"""Seconds after which somebody may have deleted something."""

_LONGEST_RETRY_S = 3600.0

_REFUSALS = {
    each.name: metrics.QUOTA_REFUSALS.labels(each.name) for each in dataclasses.fields(Quotas)
}

_MANY = 10_000
"""Callers from which those that use nothing are forgotten."""


def quota_exceeded(caller: str, quota: str, limit: int, why: str, retry_s: float) -> StatusError:
    """Returns RESOURCE_EXHAUSTED with QuotaFailure and RetryInfo.

    Args:
        caller: The caller's name.
        quota: The quota, as a field of `Quotas`.
        limit: What it allows.
        why: What is wrong and the remedy, as a clause.
        retry_s: Seconds after which a retry is worthwhile.
    """
    _REFUSALS[quota].inc()
    failure = error_details_pb2.QuotaFailure()
    failure.violations.add(
        subject=f"caller:{caller}", description=why, quota_id=quota, quota_value=limit
    )
    message = f"your quota {quota} is used up: {why}"
    return exhausted(message, min(retry_s, _LONGEST_RETRY_S), failure)


class Countable(Protocol):
    """A piece of a reply that says how many tokens there are up to it."""

    @property
    def new_tokens(self) -> int:
        """Tokens of the part of the call up to this piece."""


Paid = TypeVar("Paid", bound=Countable)


class CallerUse:
    """What one caller uses now.

    Args:
        name: The caller's name.
        clock: Returns the time in seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.quotas = NO_QUOTAS
        """The limits of the caller, as its last call had them."""
        self.calls = 0
        """Calls that run."""
        self.sessions = 0
        """Texts that are generated, and streams that are scored or learned from."""
        self.uploads = 0
        """Corpora that are being uploaded."""
        self.tokens = TokenBucket(clock)
        """The tokens that it may use."""
        self.repeats = 0
        """Corpora of jobs that exist, which are being uploaded once more."""
        self._uploading_bytes = 0
        self._importing_bytes = 0
        self._lock = threading.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost if this is forgotten."""
        counts = self.calls + self.sessions + self.uploads + self.repeats
        return not counts and self.tokens.is_full

    def limit(self, quotas: Quotas) -> None:
        """Sets the limits."""
        if quotas is not self.quotas:
            self.quotas = quotas
            self.tokens.limit(quotas.tokens_per_minute)

    @contextmanager
    def admit_call(self) -> Iterator[None]:
        """Counts a call for as long as the context is entered.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `calls` is used up.
        """
        limit = self.quotas.calls
        if limit is not None and self.calls >= limit:
            why = f"{self.calls} of {limit} calls run; wait until one has ended"
            raise quota_exceeded(self.name, "calls", limit, why, _RETRY_S)
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    @contextmanager
    def admit_sessions(self, count: int = 1) -> Iterator[None]:
        """Counts texts to generate, or a stream, for as long as the context is entered.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `sessions` or `tokens_per_minute` is used
                up.
        """
        self.check_tokens()
        limit = self.quotas.sessions
        if limit is not None and self.sessions + count > limit:
            why = f"{self.sessions} of {limit} sessions run, and {count} more do not fit"
            raise quota_exceeded(self.name, "sessions", limit, why, _RETRY_S)
        self.sessions += count
        try:
            yield
        finally:
            self.sessions -= count

    @contextmanager
    def admit_upload(self, jobs: Callable[[], int]) -> Iterator[None]:
        """Counts an upload for as long as the context is entered.

        Args:
            jobs: Returns how many jobs of the caller wait or are paused.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `jobs_queued` is used up.
        """
        limit = self.quotas.jobs_queued
        held = self.uploads + jobs()
        if limit is not None and held >= limit:
            why = (
                f"{held} of {limit} jobs wait, are paused or are uploaded; wait until one runs, or "
                "delete one"
            )
            raise quota_exceeded(self.name, "jobs_queued", limit, why, _RETRY_JOBS_S)
        self.uploads += 1
        try:
            yield
        finally:
            self.uploads -= 1

    @contextmanager
    def admit_repeat(self) -> Iterator[None]:
        """Counts an upload that repeats an earlier one for as long as the context is entered.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: as many run as the quota `jobs_queued` has jobs.
        """
        limit = self.quotas.jobs_queued
        if limit is not None and self.repeats >= max(1, limit):
            why = f"{self.repeats} corpora are uploaded once more; wait until one is complete"
            raise quota_exceeded(self.name, "jobs_queued", limit, why, _RETRY_JOBS_S)
        self.repeats += 1
        try:
            yield
        finally:
            self.repeats -= 1

    def check_model_bytes(self, stored: int, more: int = 0) -> None:
        """Checks that a caller may store another version of a model.

        Args:
            stored: Bytes of the versions that it made, and of those that its jobs will make.
            more: Bytes of the new version; of one that is not made yet, the least that it has.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `model_bytes` is used up.
        """
        limit = self.quotas.model_bytes
        if limit is not None and (stored + more > limit or stored >= limit):
            new = f", and the new one has {more:,}" if more else ""
            taken = f"{stored:,} of {limit:,} bytes of models are stored or being trained"
            why = f"{taken}{new}; delete versions or jobs"
            raise quota_exceeded(self.name, "model_bytes", limit, why, _RETRY_BYTES_S)

    def count_upload(self, size: int, stored: int = 0) -> None:
        """Counts bytes of an upload that is not stored yet; from any thread.

        Args:
            size: The bytes; negative: these are stored or gone; 0: only checks.
            stored: Bytes of the caller's stored corpora.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `corpus_bytes` is used up.
        """
        with self._lock:
            self._uploading_bytes += size
            total = stored + self._uploading_bytes
        if size >= 0:
            self.check_corpus_bytes(total)

    def count_import(self, size: int, stored: int = 0) -> None:
        """Counts bytes of a model that is imported and not stored yet; from any thread.

        Args:
            size: The bytes; negative: these are stored or gone; 0: only checks.
            stored: Bytes of the caller's models, stored and being trained.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `model_bytes` is used up.
        """
        with self._lock:
            self._importing_bytes += size
            coming = self._importing_bytes
        if size >= 0:
            self.check_model_bytes(stored, coming)

    def check_corpus_bytes(self, stored: int) -> None:
        """Checks that a caller may store so many bytes of corpora.

        Args:
            stored: Bytes of its corpora, with those of the current upload.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `corpus_bytes` is used up.
        """
        limit = self.quotas.corpus_bytes
        if limit is not None and stored > limit:
            why = (
                f"with this corpus, {stored:,} of {limit:,} bytes would be stored; send a smaller "
                "corpus, or wait until the server has deleted older ones"
            )
            raise quota_exceeded(self.name, "corpus_bytes", limit, why, _RETRY_BYTES_S)

    def check_tokens(self) -> None:
        """Checks that a call with tokens may begin.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `tokens_per_minute` is used up.
        """
        wait_s = self.tokens.wait_s
        limit = self.quotas.tokens_per_minute
        if wait_s and limit is not None:
            when = f"in {math.ceil(wait_s)} s" if math.isfinite(wait_s) else "never"
            why = f"{limit} tokens per minute are allowed; the next call may begin {when}"
            raise quota_exceeded(self.name, "tokens_per_minute", limit, why, wait_s)

    def meter(self) -> TokenMeter:
        """Returns what counts the tokens of a call that gives its replies bit by bit."""
        return TokenMeter(self.tokens)

    @contextmanager
    def spend_tokens(self, estimate: int) -> Iterator[TokenCount]:
        """Takes the tokens of a call that gives one reply; the estimate counts while it runs.

        Args:
            estimate: About as many tokens as the call will use.

        Yields:
            Where the call notes how many tokens it did use.

        Raises:
            StatusError: RESOURCE_EXHAUSTED: the quota `tokens_per_minute` is used up.
        """
        self.check_tokens()
        self.tokens.take(estimate)
        count = TokenCount()
        try:
            yield count
        finally:
            self.tokens.take(count.tokens - estimate)


class TokenCount:
    """The tokens that a call has used."""

    def __init__(self) -> None:
        self.tokens = 0


class TokenMeter:
    """Pays for the tokens of one call before their replies are sent.

    Args:
        bucket: Where the tokens are taken from.
    """

    def __init__(self, bucket: TokenBucket) -> None:
        self._bucket = bucket
        self._paid: dict[int | str, int] = {}

    async def pay(self, part: int | str, tokens: int) -> None:
        """Waits until the tokens of a part of the call are there.

        Args:
            part: The part, such as the index of a text.
            tokens: All tokens of the part up to now; those paid for before are not paid again.
        """
        if not self._bucket.is_limited:
            return
        more = tokens - self._paid.get(part, 0)
        if more > 0:
            self._paid[part] = tokens
            await self._bucket.pay(more)

    async def paid(self, part: int | str, pieces: list[Paid]) -> AsyncGenerator[list[Paid]]:
        """Yields consecutive pieces of a part once their tokens are there, as many as there are.

        Args:
            part: The part.
            pieces: The pieces, each with the number of all tokens of the part up to it.
        """
        if not self._bucket.is_limited:
            yield pieces
            return
        ready = list[Paid]()
        for piece in pieces:
            more = piece.new_tokens - self._paid.get(part, 0)
            if ready and more > self._bucket.level:
                yield ready
                ready = []
            await self.pay(part, piece.new_tokens)
            ready.append(piece)
        if ready:
            yield ready


class QuotaBook:
    """The use of all callers.

    Args:
        quotas_of: Returns the quotas of a caller by its name; None where it is not known.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        quotas_of: Callable[[str], Quotas | None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quotas_of = quotas_of
        self._clock = clock
        self._uses: dict[str, CallerUse] = {}

    def of(self, caller: Caller) -> CallerUse:
        """Returns the use of a caller, with the quotas that it has now."""
        use = self._uses.get(caller.name)
        if use is None:
            if len(self._uses) >= _MANY:
                self._uses = {name: use for name, use in self._uses.items() if not use.is_idle}
            use = self._uses[caller.name] = CallerUse(caller.name, self._clock)
        use.limit(caller.quotas)
        return use

    def current(self) -> CallerUse:
        """Returns the use of the caller of the running call."""
        return self.of(current_caller())

    def quotas_of(self, name: str) -> Quotas:
        """Returns the quotas of a caller that may make no call just now.

        Args:
            name: The caller's name.
        """
        quotas = self._quotas_of(name)
        if quotas is not None:
            return quotas
        use = self._uses.get(name)
        return NO_QUOTAS if use is None else use.quotas
