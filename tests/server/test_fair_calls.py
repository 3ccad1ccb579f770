"""Every call that computes takes its turns from the time of its caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
from small_models import model_of

from treadle.server.access.caller import Caller, Role, set_current_caller
from treadle.server.access.quota_book import QuotaBook
from treadle.server.access.state_sealer import StateSealer
from treadle.server.inference.admission import Admission, InferenceAdmission
from treadle.server.inference.generate import GenerateHandler
from treadle.server.inference.learn import LearnHandler
from treadle.server.inference.model_cache import ResolvedModel
from treadle.server.inference.open_streams import OpenStreams, PendingStreams
from treadle.server.inference.scheduler import Scheduler
from treadle.server.inference.score import ScoreHandler
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.storage.models import ModelStore
from treadle.v1 import sequence_pb2 as pb

MODEL = model_of()


class Resolver:
    """Always gives the same model."""

    async def resolve(self, request: object) -> ResolvedModel:
        return ResolvedModel(MODEL, version=1)

    async def stored(self, model: str, version: int) -> ResolvedModel:
        return ResolvedModel(MODEL, version=1)

    async def at_precision(self, found: ResolvedModel, *_: object) -> ResolvedModel:
        return found

    async def require(self, *_: object) -> None:
        """Waits for no kernel."""

    async def await_kernels(self, *_: object) -> None:
        """Waits for no kernel."""


@dataclass
class Handlers:
    """What answers calls."""

    scheduler: Scheduler
    generating: GenerateHandler
    scoring: ScoreHandler
    learning: LearnHandler


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    scheduler = Scheduler(2)
    budget = MemoryBudget(1 << 30)
    streams = OpenStreams(9, "streams", 60)
    calls = Admission(9, "calls")
    admission = InferenceAdmission(calls, Admission(99, "texts"), streams, streams, QuotaBook())
    pending = PendingStreams(9, 60)
    resolver: Any = Resolver()
    common: dict[str, Any] = {"max_call_s": 3600, "max_message_bytes": 4 << 20}
    yield Handlers(
        scheduler,
        GenerateHandler(
            resolver,
            admission,
            scheduler,
            budget,
            max_new_tokens_limit=1000,
            sealer=StateSealer(),
            **common,
        ),
        ScoreHandler(
            resolver, admission, pending, scheduler, budget, sealer=StateSealer(), **common
        ),
        LearnHandler(
            resolver, cast(ModelStore, None), admission, pending, scheduler, budget, **common
        ),
    )
    scheduler.close()


async def sent(messages: Sequence[Any]) -> AsyncIterator[Any]:
    for message in messages:
        yield message


async def all_of(replies: AsyncIterator[Any]) -> int:
    return len([reply async for reply in replies])


async def generate(handlers: Handlers) -> None:
    request = pb.GenerateRequest(model="m", prompt="ab", max_new_tokens=50, n=3)
    assert await all_of(handlers.generating.generate(request)) > 0


async def score(handlers: Handlers) -> None:
    await handlers.scoring.score(pb.ScoreRequest(model="m", texts=["abc"]))


async def embed(handlers: Handlers) -> None:
    await handlers.scoring.embed(pb.EmbedRequest(model="m", texts=["abc"]))


async def score_stream(handlers: Handlers) -> None:
    messages = [
        pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m")),
        pb.ScoreStreamRequest(piece=pb.TextPiece(text="abc")),
    ]
    assert await all_of(handlers.scoring.score_stream(sent(messages))) == 2


async def learn(handlers: Handlers) -> None:
    messages = [
        pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="m")),
        pb.LearnStreamRequest(learn=pb.TextPiece(text="abc")),
    ]
    assert await all_of(handlers.learning.learn_stream(sent(messages))) == 1


@pytest.mark.parametrize("call", [generate, score, embed, score_stream, learn])
@pytest.mark.parametrize("name", ["team-a", ""])
def test_a_call_takes_the_time_of_its_caller(
    handlers: Handlers, call: Callable[[Handlers], Any], name: str
) -> None:
    async def run() -> None:
        if name:
            set_current_caller(Caller(name, Role.TRAINER))
        await call(handlers)

    shares = {caller: handlers.scheduler.share(caller) for caller in ("", "team-a")}
    asyncio.run(run())
    assert set(handlers.scheduler._shares) == {"", "team-a"}
    assert {caller for caller, share in shares.items() if share.used_s > 0} == {name}
