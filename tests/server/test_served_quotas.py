"""Quotas of a real server with a callers file: refusals, pace, and what GetServerInfo says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.server.access.callers.access_token import AccessToken, new_access_token
from treadle.v1 import sequence_pb2 as pb

from .harness import (
    PATIENCE_S,
    TEXT,
    Server,
    detail_of,
    first_progress,
    long_spec,
    requests,
    tiny_spec,
    wait_for,
)
from .travel import fetch_model, import_requests

RATE = 1200

QUOTAS = {
    "free": "",
    "calls": "calls = 2",
    "sessions": "sessions = 3",
    "tokens": f"tokens_per_minute = {RATE}",
    "score": "tokens_per_minute = 60",
    "embed": "tokens_per_minute = 60",
    "beams": "tokens_per_minute = 1800",
    "jobs": "jobs_queued = 1, jobs_running = 1",
    "bytes": "model_bytes = 2000, corpus_bytes = 2000",
}


class Place:
    """A server, and the callers that it knows."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "callers.toml"
        self.tokens = {name: new_access_token() for name in QUOTAS}
        self.write(QUOTAS)
        flags = ["--callers-file", str(self.path), "--training-slots", "3"]
        self.server = Server(folder / "data", *flags)
        self.stub = self.server.caller.stub
        spec = tiny_spec("model", max_steps=60)
        list(self.stub.Train(requests(spec, TEXT), **self.by("free")))

    def write(self, quotas: dict[str, str]) -> None:
        """Writes the callers file."""
        fresh = self.path.with_suffix(".fresh")
        fresh.touch(0o600)
        fresh.write_text(
            "".join(entry(name, token, quotas[name]) for name, token in self.tokens.items())
        )
        fresh.replace(self.path)

    def by(self, name: str) -> dict[str, Any]:
        """Returns the arguments of a call by a caller."""
        metadata = (("authorization", f"Bearer {self.tokens[name].text}"),)
        return {"metadata": metadata, "timeout": PATIENCE_S}

    def info(self, name: str) -> pb.CallerInfo:
        return self.stub.GetServerInfo(pb.GetServerInfoRequest(), **self.by(name)).caller

    def generate(self, name: str, tokens: int = 20, **fields: Any) -> Any:
        """Begins to generate."""
        request = pb.GenerateRequest(model="model", max_new_tokens=tokens, **fields)
        return self.stub.Generate(request, **self.by(name))


def entry(name: str, token: AccessToken, quotas: str) -> str:
    return (
        f'[callers.{name}]\nrole = "trainer"\nmodels = ["*"]\nquotas = {{{quotas}}}\n'
        f'[[callers.{name}.tokens]]\nid = "{token.id}"\nsha256 = "{token.sha256.hex()}"\n'
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("quotas"))
    yield place
    place.server.close()
    assert "Traceback" not in place.server.log


def refused(call: Any, quota: str, limit: int) -> float:
    """Checks that a call is beyond a quota; returns when it may be repeated."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call()
    error = caught.value
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(error.details()).startswith(f"your quota {quota} is used up: ")
    failure: Any = detail_of(error, "QuotaFailure")
    assert [(each.quota_id, each.quota_value) for each in failure.violations] == [(quota, limit)]
    delay: Any = detail_of(error, "RetryInfo")
    return float(delay.retry_delay.seconds + delay.retry_delay.nanos / 1e9)


def test_a_caller_learns_its_own_limits_and_use(place: Place) -> None:
    info = place.info("jobs")
    assert (info.name, info.role) == ("jobs", pb.CALLER_ROLE_TRAINER)
    assert list(info.read_models) == list(info.write_models) == ["*"]
    assert info.quotas == pb.CallerQuotas(jobs_queued=1, jobs_running=1)
    assert info.use == pb.CallerUse(calls=1)
    assert not info.HasField("valid_until_s")
    free = place.info("free")
    assert free.quotas == pb.CallerQuotas()
    assert free.use.corpus_bytes == len(TEXT)
    assert free.use.model_bytes > 0
    assert place.info("tokens").use.tokens_left > 0


def test_calls_at_once(place: Place) -> None:
    waiting = [place.stub.ScoreStream(iter_forever(), **place.by("calls")) for _ in range(2)]
    for each in waiting:
        next(each)  # it is admitted before the next call asks
    assert is_refused(place)
    assert refused(place.generate("calls"), "calls", 2) > 0
    assert list(place.generate("free"))
    for each in waiting:
        each.cancel()
    wait_for(lambda: not is_refused(place))
    assert place.info("calls").use.calls == 1


def iter_forever() -> Iterator[pb.ScoreStreamRequest]:
    yield pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="model"))
    while True:
        time.sleep(0.02)
        yield pb.ScoreStreamRequest(piece=pb.TextPiece(text="fox"))


def is_refused(place: Place) -> bool:
    try:
        place.info("calls")
    except grpc.RpcError:
        return True
    return False


def test_sessions_at_once(place: Place) -> None:
    stream = place.stub.ScoreStream(iter_forever(), **place.by("sessions"))
    next(stream)
    refused(place.generate("sessions", n=3), "sessions", 3)
    assert list(place.generate("sessions", n=2))
    assert place.info("sessions").use.sessions == 1
    stream.cancel()
    wait_for(lambda: place.info("sessions").use.sessions == 0)


def test_a_stream_gets_its_tokens_per_minute_and_new_calls_wait(place: Place) -> None:
    began_s = time.monotonic()
    call = place.generate("tokens", 160)
    next(call)
    wait_for(lambda: place.info("tokens").use.tokens_left <= 0)
    assert 0 < refused(place.generate("tokens"), "tokens_per_minute", RATE) < 30
    *_, last = call
    assert last.result.new_tokens == 160
    # Those of two seconds at once, and the others one after the other.
    assert time.monotonic() - began_s >= 160 / (RATE / 60) - 2


def test_scored_and_embedded_tokens_count(place: Place) -> None:
    text = "the quick brown fox " * 10
    score = pb.ScoreRequest(model="model", texts=[text])
    embed = pb.EmbedRequest(model="model", texts=[text])
    for name, call in (
        ("score", lambda: place.stub.Score(score, **place.by("score"))),
        ("embed", lambda: place.stub.Embed(embed, **place.by("embed"))),
    ):
        call()
        assert place.info(name).use.tokens_left < -100
        assert refused(call, "tokens_per_minute", 60) > 100


def test_a_beam_search_counts_all_of_its_beams(place: Place) -> None:
    began = time.monotonic()
    assert list(place.generate("beams", tokens=5, best_of=20))
    # 100 tokens; 60 may be used at once, and there are 30 more each second.
    assert time.monotonic() - began > 1.2


def test_jobs_that_wait_and_that_run(place: Place) -> None:
    runs = place.stub.Train(requests(long_spec("a"), TEXT), **place.by("jobs"))
    first = next(runs).job
    first_progress(runs)
    waits = place.stub.Train(requests(long_spec("b"), TEXT), **place.by("jobs"))
    second = next(waits).job
    more = place.stub.Train(requests(long_spec("c"), TEXT), **place.by("jobs"))
    refused(more, "jobs_queued", 1)
    use = place.info("jobs").use
    assert (use.jobs_queued, use.jobs_running) == (1, 1)
    place.write(QUOTAS | {"jobs": "jobs_running = 2"})
    first_progress(waits)  # a higher quota lets it run
    assert place.info("jobs").use.jobs_running == 2
    for job in (first, second):
        place.stub.CancelJob(pb.CancelJobRequest(job=job), **place.by("jobs"))
    wait_for(lambda: place.info("jobs").use.jobs_running == 0)


def test_bytes_of_corpora_and_models(place: Place) -> None:
    large = place.stub.Train(requests(tiny_spec("d"), b"x" * 2001), **place.by("bytes"))
    refused(large, "corpus_bytes", 2000)
    list(place.stub.Train(requests(tiny_spec("d"), TEXT), **place.by("bytes")))
    more = place.stub.Train(requests(tiny_spec("d"), TEXT), **place.by("bytes"))
    refused(more, "model_bytes", 2000)

    def learn() -> Iterator[pb.LearnStreamRequest]:
        yield pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="model"))
        yield pb.LearnStreamRequest(publish=pb.Publish(model="e"))

    refused(place.stub.LearnStream(learn(), **place.by("bytes")), "model_bytes", 2000)
    place.stub.DeleteModel(pb.DeleteModelRequest(model="d", version=1), **place.by("bytes"))
    assert place.info("bytes").use.model_bytes > 0  # the weights that the job keeps
    [job] = place.stub.ListJobs(pb.ListJobsRequest(), **place.by("bytes")).jobs
    place.stub.DeleteJob(pb.DeleteJobRequest(job=job.id), **place.by("bytes"))
    assert place.info("bytes").use.model_bytes == 0
    list(place.stub.Train(requests(tiny_spec("d"), TEXT), **place.by("bytes")))


def test_an_import_counts_as_models_of_its_caller(place: Place) -> None:
    model, data = fetch_model(place.server.caller, "model", **place.by("free"))
    assert len(data) > 2000
    kept = place.info("bytes").use.model_bytes
    for size in (len(data), 0):  # known before, or only while it arrives
        spec = pb.ImportModelSpec(model="imported", size_bytes=size)
        sent = import_requests(spec, data)
        refused(partial(place.stub.ImportModel, sent, **place.by("bytes")), "model_bytes", 2000)
    wait_for(lambda: place.info("bytes").use.model_bytes == kept)
    before = place.info("tokens").use.model_bytes
    spec = pb.ImportModelSpec(model="imported")
    reply = place.stub.ImportModel(import_requests(spec, data), **place.by("tokens"))
    assert reply.model.sha256 == model.sha256
    assert place.info("tokens").use.model_bytes == before + len(data)
