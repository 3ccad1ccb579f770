"""`padding_tokenizer` and others attack by files, badly timed deletions and odd requests."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from treadle.benchmarks.scenarios import template
from treadle.benchmarks.scenarios.report import Figure
from treadle.benchmarks.scenarios.stored_attacks import change_header
from treadle.benchmarks.scenarios.target import (
    Target,
    aio_status,
    counted,
    scenario,
    status_of,
)
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as AsyncStub

_INTERNAL = ("INTERNAL", "UNKNOWN")


def _pad_far_out(folder: Path, data_dir: Path) -> None:
    """Has the tokenizer of the subword model pad every text with an id far out of range."""

    def spoil(content: dict[str, Any]) -> None:
        tokenizer = content["tokenizer"]
        [key] = [key for key, value in tokenizer.items() if _is_learned(value)]
        learned = json.loads(tokenizer[key])
        learned["padding"] = {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1_000_000,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
        tokenizer[key] = json.dumps(learned)

    change_header(template.model_dir(data_dir, "subwords") / template.MODEL_FILE, spoil)


def _is_learned(value: object) -> bool:
    return isinstance(value, str) and value.startswith("{") and '"merges"' in value


@scenario("padding-tokenizer", prepare=_pad_far_out)
def padding_tokenizer(target: Target) -> list[Figure]:
    """A subword model whose tokenizer pads with id 1,000,000: generate, score, learn."""
    generate = pb.GenerateRequest(
        model="subwords", prompt="abcde", max_new_tokens=20, repetition_penalty=1.5
    )
    score = pb.ScoreRequest(model="subwords", texts=["abcde fghij"])
    messages = [
        pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="subwords")),
        pb.LearnStreamRequest(learn=pb.TextPiece(text="abcde fghij", end=True)),
    ]
    statuses = [
        status_of(lambda: list(target.stub.Generate(generate, timeout=20.0))),
        status_of(lambda: target.stub.Score(score, timeout=20.0)),
        status_of(lambda: list(target.stub.LearnStream(iter(messages), timeout=20.0))),
        status_of(lambda: target.stub.Score(score, timeout=20.0)),
    ]
    # Whatever id was read is not of the model: only a refusal is right.
    served = sum(status == "OK" for status in statuses)
    odd = sum(status in (*_INTERNAL, "UNAVAILABLE") for status in statuses)
    return [
        Figure("served with wrong ids", float(served), "", 0.0, counted(statuses)),
        Figure("INTERNAL", float(odd), "", 0.0),
    ]


@scenario("deleted-while-publishing")
def deleted_while_publishing(target: Target) -> list[Figure]:
    """Jobs that end while their model is deleted again and again."""
    ended = threading.Event()

    async def keep_deleting(stub: AsyncStub) -> None:
        async def delete() -> None:
            request = pb.DeleteModelRequest(model="fleeting", all_versions=True)
            while not ended.is_set():
                await aio_status(stub.DeleteModel(request, timeout=30.0))

        await asyncio.gather(*(delete() for _ in range(4)))

    thread = threading.Thread(target=target.run, args=(keep_deleting,))
    thread.start()
    corpus = template.words(5000).encode()
    ends: list[str] = []
    jobs = 4 if target.is_quick else 12
    try:
        for _ in range(jobs):
            try:
                spec = template.spec("fleeting", limits=pb.LimitsSpec(max_steps=2))
                events = list(target.train(template.upload(spec, corpus)))
                ends.append(str(events[-1].WhichOneof("event")))
            except grpc.RpcError as error:
                ends.append(f"{error.code().name}: {error.details()}"[:60])
    finally:
        ended.set()
        thread.join()
    failed = sum("INTERNAL" in end or "internal" in end for end in ends)
    return [Figure("jobs with internal error", float(failed), "", 0.0, f"of {jobs}")]


@scenario("odd-requests")
def odd_requests(target: Target) -> list[Figure]:
    """Requests that were answered with INTERNAL once."""
    corpus = template.words(5000).encode()
    job = target.begin(template.upload(template.endless_spec("odd"), corpus))
    encoded = template.spec("encoded", data=pb.DataSpec(encoding="idna"))
    text = pb.TokenReference(text="\ud7ff" * 300)
    calls: dict[str, Callable[[], object]] = {
        "WatchJob after 2^63": lambda: next(
            target.stub.WatchJob(
                pb.WatchJobRequest(job=job, after_sequence=(1 << 63) + 1), timeout=3.0
            )
        ),
        "300,000 states": lambda: target.stub.ListJobs(
            pb.ListJobsRequest(states=[pb.JOB_STATE_FAILED] * 300_000), timeout=20.0
        ),
        "encoding idna": lambda: list(target.train(template.upload(encoded, corpus), timeout=30.0)),
        "version 2^63": lambda: target.stub.GetModel(
            pb.GetModelRequest(model="log", version=1 << 63), timeout=20.0
        ),
        "odd state": lambda: list(
            target.stub.Generate(pb.GenerateRequest(model="log", state=b"x" * 5000), timeout=20.0)
        ),
        "odd token": lambda: list(
            target.stub.Generate(
                pb.GenerateRequest(model="log", forced_tokens=[text]), timeout=20.0
            )
        ),
        "alias at 2^63": lambda: target.stub.SetAlias(
            pb.SetAliasRequest(model="log", alias="a", version=1 << 63), timeout=20.0
        ),
    }
    statuses = {}
    for name, call in calls.items():
        statuses[name] = status_of(call)
        time.sleep(0.05)
    odd = [name for name, status in statuses.items() if status in _INTERNAL]
    return [Figure("INTERNAL", float(len(odd)), "", 0.0, ", ".join(odd))]
