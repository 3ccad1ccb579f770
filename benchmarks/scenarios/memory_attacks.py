"""`unread_replies` and others attack memory: long replies, large pieces, learners, queued specs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from treadle.benchmarks.scenarios import template
from treadle.benchmarks.scenarios.memory_use import MIB
from treadle.benchmarks.scenarios.report import Figure
from treadle.benchmarks.scenarios.target import MESSAGE, Target, aio_status, counted, scenario
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as AsyncStub

_PROMPT = 500_000
_SPEC_BYTES = 3_900_000
_WORKER_LIMIT = 512 * MIB


async def echo_all(stub: AsyncStub, calls: int, prompt: str) -> list[str]:
    """Sends echoed prompts with 20 alternatives a token and reads the replies."""

    async def read() -> None:
        request = pb.GenerateRequest(
            model="characters",
            prompt=prompt,
            echo=True,
            top_log_probabilities=20,
            max_new_tokens=1,
        )
        async for _ in stub.Generate(request, timeout=60.0):
            pass

    return await asyncio.gather(*(aio_status(read()) for _ in range(calls)))


@scenario("echo-alternatives")
def echo_alternatives(target: Target) -> list[Figure]:
    """Four prompts of 500,000 characters, echoed with 20 alternatives."""
    prompt = template.words(target.few(_PROMPT))
    statuses = target.run(lambda stub: echo_all(stub, 4, prompt))
    grew = target.grew_mib()
    each = grew * MIB / (4 * len(prompt))
    return [
        Figure("server grew", grew, "MiB", 512.0, counted(statuses)),
        Figure("bytes a character", each, "bytes"),
    ]


async def send_pieces(stub: AsyncStub, streams: int, seconds: float, text: str) -> list[str]:
    """Sends the largest pieces there are on many ScoreStreams for a while."""
    ended = asyncio.Event()

    async def pieces() -> AsyncIterator[pb.ScoreStreamRequest]:
        yield pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="characters"))
        while not ended.is_set():
            yield pb.ScoreStreamRequest(piece=pb.TextPiece(text=text))

    async def read() -> None:
        async for _ in stub.ScoreStream(pieces(), timeout=seconds + 60):
            pass

    tasks = [asyncio.create_task(aio_status(read())) for _ in range(streams)]
    await asyncio.wait(tasks, timeout=seconds)
    ended.set()
    statuses = [task.result() if task.done() else "cut off" for task in tasks]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return statuses


@scenario("large-pieces")
def large_pieces(target: Target) -> list[Figure]:
    """154 ScoreStreams with pieces of 4 MB."""
    text = template.words(MESSAGE)
    seconds = 5.0 if target.is_quick else 15.0
    statuses = target.run(lambda stub: send_pieces(stub, target.few(154), seconds, text))
    return [
        Figure("server grew", target.grew_mib(), "MiB", 1536.0, counted(statuses)),
        target.kept(),
    ]


async def ignore_replies(stub: AsyncStub, calls: int, seconds: float) -> list[str]:
    """Begins long generations and reads nothing of them."""
    request = pb.GenerateRequest(
        model="characters", max_new_tokens=50_000, top_log_probabilities=20, prompt="a"
    )
    started = [stub.Generate(request, timeout=seconds + 30) for _ in range(calls)]
    await asyncio.sleep(seconds)
    statuses = [(await call.code()).name if call.done() else "unread" for call in started]
    for call in started:
        call.cancel()
    return statuses


@scenario("unread-replies")
def unread_replies(target: Target) -> list[Figure]:
    """500 generations with 20 alternatives whose callers read nothing."""
    seconds = 5.0 if target.is_quick else 20.0
    statuses = target.run(lambda stub: ignore_replies(stub, target.few(500), seconds))
    return [
        Figure("server grew", target.grew_mib(), "MiB", 1024.0, counted(statuses)),
        target.kept(),
    ]


async def learn_all(stub: AsyncStub, streams: int, model: str, seconds: float) -> list[str]:
    """Opens learning streams, has each learn and keep a snapshot, and leaves them open."""
    answered = asyncio.Event()

    async def messages() -> AsyncIterator[pb.LearnStreamRequest]:
        spec = pb.LearnStreamSpec(model=model, optimizer=pb.OPTIMIZER_ADAM, window=8)
        yield pb.LearnStreamRequest(spec=spec)
        yield pb.LearnStreamRequest(learn=pb.TextPiece(text="abcd efgh "))
        yield pb.LearnStreamRequest(snapshot=pb.Snapshot())
        await answered.wait()

    async def read() -> str:
        seen = 0
        try:
            async for _ in stub.LearnStream(messages(), timeout=seconds + 30):
                seen += 1
        except aio.AioRpcError as error:
            return error.code().name
        except asyncio.CancelledError:
            return "answered" if seen >= 2 else "cut off"
        return "OK"

    tasks = [asyncio.create_task(read()) for _ in range(streams)]
    await asyncio.wait(tasks, timeout=seconds)
    answered.set()
    for task in tasks:
        task.cancel()
    return [str(status) for status in await asyncio.gather(*tasks, return_exceptions=True)]


@scenario("large-learners")
def large_learners(target: Target) -> list[Figure]:
    """16 LearnStreams of a model of 68 MB, each with Adam and a snapshot."""
    seconds = 5.0 if target.is_quick else 20.0
    statuses = target.run(lambda stub: learn_all(stub, 16, "large", seconds))
    return [
        Figure("server grew", target.grew_mib(), "MiB", 2560.0, counted(statuses)),
        target.kept(),
    ]


@scenario("queued-specs")
def queued_specs(target: Target) -> list[Figure]:
    """60 queued jobs with specs of 3.9 MB, of fields that the contract does not have."""
    corpus = template.words(20_000).encode()
    target.begin(template.upload(template.endless_spec("busy"), corpus))
    statuses = []
    for number in range(target.few(60)):
        spec = template.spec(f"m{number}")
        spec.MergeFromString(template.unknown_field(_SPEC_BYTES))
        call = target.train(template.upload(spec, corpus))
        try:
            next(call)
            statuses.append("queued")
        except grpc.RpcError as error:
            statuses.append(error.code().name)
        call.cancel()
    return [Figure("server grew", target.grew_mib(), "MiB", 96.0, counted(statuses))]


@scenario("unbroken-corpus", flags=("--max-training-bytes", str(_WORKER_LIMIT)))
def unbroken_corpus(target: Target) -> list[Figure]:
    """A corpus of 24 MB that is one word, for a training process that may take 512 MiB."""
    corpus = template.letters(target.few(24_000_000)).encode()
    tokenizer = pb.TokenizerSpec(kind=pb.TOKENIZER_KIND_SUBWORDS, max_vocabulary_size=1000)
    limits = pb.LimitsSpec(max_steps=2)
    spec = template.spec("unbroken", tokenizer=tokenizer, limits=limits)
    began = time.perf_counter()
    try:
        last = list(target.train(template.upload(spec, corpus), timeout=45.0))[-1]
        note = str(last.WhichOneof("event"))
    except grpc.RpcError as error:
        note = f"{error.code().name}: {error.details()}"[:120]
    peak = target.server.memory.peak_worker_bytes
    note = f"{note} after {time.perf_counter() - began:.0f} s"
    bound = (_WORKER_LIMIT + 2 * len(corpus)) / MIB
    return [
        Figure("training process", peak / MIB, "MiB", bound, note),
        Figure("bytes a byte of corpus", peak / len(corpus), "bytes"),
    ]
