"""The queue, the training processes, and clients that go away."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from treadle.v1 import sequence_pb2 as pb

from .harness import (
    TEXT,
    Caller,
    Server,
    detail_of,
    fields_of,
    first_progress,
    is_running,
    long_spec,
    niceness,
    requests,
    tiny_spec,
    wait_for,
)

Start = Callable[..., Server]


def cancel(events: Any) -> None:
    events.cancel()


class SlowUpload:
    """An upload that a test feeds by hand; it breaks off at `end`."""

    def __init__(self, spec: pb.TrainSpec) -> None:
        self._messages: queue.Queue[pb.TrainRequest | None] = queue.Queue()
        self._messages.put(pb.TrainRequest(spec=spec))

    def send(self, data: bytes) -> None:
        self._messages.put(pb.TrainRequest(corpus_chunk=data))

    def end(self) -> None:
        self._messages.put(None)

    def __iter__(self) -> Iterator[pb.TrainRequest]:
        while (message := self._messages.get()) is not None:
            yield message


def tmp_files(server: Server) -> list[str]:
    return os.listdir(server.data_dir / "tmp")


def test_a_full_queue_refuses_before_the_upload(start: Start) -> None:
    caller = start("--training-queue-limit", "1").caller
    running = caller.train(long_spec("running"), TEXT)
    first_progress(running)
    waiting = caller.train(tiny_spec("waiting"), TEXT)
    wait_for(lambda: caller.info().training_queued == 1)
    # This upload never ends: the answer must come before it does.
    upload = SlowUpload(tiny_spec("refused"))
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(pb.TrainSpec(), source=upload))
    upload.end()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = detail_of(caught.value, "RetryInfo")
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() > 0
    info = caller.info()
    assert (info.training_running, info.training_queued) == (1, 1)
    cancel(running)
    cancel(waiting)


def test_the_queue_is_first_come_first_served(start: Start) -> None:
    caller = start().caller
    running = caller.train(long_spec("first"), TEXT)
    job = first_progress(running).job
    calls = []
    for number in range(3):
        calls.append(caller.train(tiny_spec(f"waiting-{number}"), TEXT))
        assert next(calls[-1]).state.state == pb.JOB_STATE_QUEUED
    caller.stub.CancelJob(pb.CancelJobRequest(job=job))
    models = [list(call)[-1].completed for call in calls]
    created = [model.create_time.ToNanoseconds() for model in models]
    assert created == sorted(created)


def done_models(caller: Caller) -> list[str]:
    return [model.name for model in caller.stub.ListModels(pb.ListModelsRequest()).models]


def test_two_trainings_at_once(start: Start) -> None:
    caller = start("--training-slots", "2").caller
    calls = [caller.train(long_spec(name), TEXT) for name in ("a", "b")]
    for call in calls:
        first_progress(call)
    assert caller.info().training_running == 2
    for call in calls:
        cancel(call)


def test_training_gives_the_same_weights_beside_another(start: Start) -> None:
    caller = start("--training-slots", "2").caller
    spec = tiny_spec("one", max_steps=300)
    alone = caller.trained(spec)
    calls = [caller.train(spec, TEXT) for _ in range(2)]
    together = [list(call)[-1].completed for call in calls]
    texts = {caller.text("one", version=v.version, seed=1) for v in (alone, *together)}
    assert len(texts) == 1


def test_everything_answers_while_a_model_trains(start: Start) -> None:
    server = start()
    caller = server.caller
    caller.trained(tiny_spec("small"))
    running = caller.train(long_spec("long"), TEXT)
    first_progress(running)
    assert caller.serving()
    assert len(caller.text("small", max_new_tokens=50)) == 50
    assert caller.score("small", ["the fox"]).scores
    assert done_models(caller) == ["small"]
    assert caller.info().training_running == 1
    wait_for(lambda: all(niceness(p) > niceness(server.process.pid) for p in server.workers()))
    cancel(running)


def standing_by(server: Server) -> list[int]:
    """Returns the processes that wait for a job, or for which a job waited not."""
    found = []
    for pid in server.workers():
        with suppress(FileNotFoundError, ProcessLookupError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if is_running(pid) and b"--warm" in command:
                found.append(pid)
    return found


def test_a_killed_standby_process_is_replaced(start: Start) -> None:
    server = start("--standby-workers", "1")
    killed: set[int] = set()
    for _ in range(2):
        wait_for(lambda: set(standing_by(server)) - killed)
        (pid,) = set(standing_by(server)) - killed
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
        wait_for(lambda p=pid: not is_running(p))  # type: ignore[misc]
        assert server.caller.trained(tiny_spec("m"))


def ended(events: Iterator[pb.JobEvent]) -> pb.Model | grpc.StatusCode:
    """Returns the model that a run ends with, or the status."""
    try:
        return list(events)[-1].completed
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code


def test_a_run_that_takes_too_long_ends_with_its_model(start: Start) -> None:
    model: pb.Model | grpc.StatusCode | None = None
    for limit_s in (1, 8, 64):
        server = start("--max-training-s", str(limit_s))
        model = ended(server.caller.train(long_spec("long"), TEXT))
        if model is not grpc.StatusCode.DEADLINE_EXCEEDED:
            break
        server.end()  # a busy machine: the run did not come to its first step
    assert isinstance(model, pb.Model)
    reason = f"the server ends a run after {limit_s} second"
    assert model.training.ended_by.startswith(reason)
    assert model.training.steps > 0


def test_a_run_that_cannot_fit_is_refused_before_the_upload_or_at_its_start(start: Start) -> None:
    server = start("--max-training-bytes", "1000000")
    caller = server.caller
    spec = tiny_spec("large")
    spec.network.hidden_size = 500
    upload = SlowUpload(spec)
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(pb.TrainSpec(), source=upload))
    upload.end()
    assert fields_of(caught.value) == ["spec.network.hidden_size"]
    # This one fits but for its vocabulary, which only the corpus determines.
    words = tiny_spec("wide")
    words.tokenizer.kind = pb.TOKENIZER_KIND_WORDS
    words.tokenizer.max_vocabulary_size = 20_000
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(words, " ".join(map(str, range(10_000))).encode()))
    assert fields_of(caught.value)[0].startswith("spec.")
    assert "of memory" in (caught.value.details() or "")
    wait_for(lambda: tmp_files(server) == [])


def test_the_training_process_goes_first_when_memory_runs_out(start: Start) -> None:
    server = start()
    running = server.caller.train(long_spec("long"), TEXT)
    first_progress(running)
    (pid,) = server.workers()
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
    own = Path(f"/proc/{server.process.pid}/oom_score_adj").read_text()
    assert own == Path("/proc/self/oom_score_adj").read_text()
    cancel(running)


def test_a_client_that_leaves_during_its_upload_leaves_nothing(start: Start) -> None:
    server = start()
    caller = server.caller
    upload = SlowUpload(tiny_spec("left"))
    call = caller.train(pb.TrainSpec(), source=upload)
    upload.send(TEXT)
    wait_for(lambda: caller.info().training_queued == 1)
    cancel(call)
    upload.end()
    wait_for(lambda: caller.info().training_queued == 0)
    wait_for(lambda: tmp_files(server) == [])
    assert done_models(caller) == []


def test_half_an_upload_never_passes_for_a_whole_one(start: Start) -> None:
    caller = start("--training-queue-limit", "200").caller
    for number in range(100):
        upload = SlowUpload(tiny_spec(f"half-{number}", max_steps=1))
        call = caller.train(pb.TrainSpec(), source=upload)
        upload.send(TEXT)
        time.sleep(0.02)  # now the server waits for more
        cancel(call)
        upload.end()
    wait_for(lambda: caller.info().training_queued + caller.info().training_running == 0)
    assert done_models(caller) == []


def test_a_client_that_leaves_after_its_upload_loses_nothing(start: Start) -> None:
    caller = start().caller
    running = caller.train(tiny_spec("kept", max_steps=20_000), TEXT)
    next(running)
    cancel(running)
    wait_for(lambda: done_models(caller) == ["kept"])
    wait_for(lambda: caller.info().training_running == 0)


def test_a_call_whose_deadline_passes_loses_nothing_either(start: Start) -> None:
    caller = start().caller
    for timeout_s in (0.5, 5, 50):
        stream = requests(long_spec("late"), TEXT)
        with pytest.raises(grpc.RpcError) as caught:
            list(caller.stub.Train(stream, timeout=timeout_s))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # On a busy machine the deadline may have passed before the corpus was there.
        jobs = list(caller.jobs())
        if jobs:
            break
    (job,) = jobs
    wait_for(lambda: caller.job(job.id).HasField("progress"))
    caller.stub.CancelJob(pb.CancelJobRequest(job=job.id))
    wait_for(lambda: done_models(caller) == ["late"])


def test_a_silent_upload_is_given_up(start: Start) -> None:
    caller = start("--upload-idle-s", "0.2").caller
    upload = SlowUpload(tiny_spec("silent"))
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(pb.TrainSpec(), source=upload))
    upload.end()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no message for 0.2 seconds" in (caught.value.details() or "")


def test_too_large_a_corpus_is_refused_and_removed(start: Start) -> None:
    server = start("--max-corpus-bytes", "1000")
    with pytest.raises(grpc.RpcError) as caught:
        list(server.caller.train(tiny_spec("large"), TEXT, TEXT))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "1,000 bytes" in (caught.value.details() or "")
    wait_for(lambda: tmp_files(server) == [])


def test_what_a_job_leaves_on_disk(start: Start) -> None:
    server = start()
    server.caller.trained(tiny_spec("m"))
    assert tmp_files(server) == []
    wait_for(lambda: not list(server.data_dir.rglob("final.*")))  # the server is still tidying up
    files = [path for path in server.data_dir.rglob("*") if path.is_file()]
    names = {path.name for path in files if path.parent.name != "corpora"}
    database = {"treadle.db", "treadle.db-wal", "treadle.db-shm"}
    kept = {"last.safetensors", "best.safetensors"}
    of_server = {"clock", "lock", "spare"}
    assert names == of_server | {"model.safetensors", "model.sha256"} | database | kept
    corpora = [path.read_bytes() for path in files if path.parent.name == "corpora"]
    assert corpora == [TEXT]
    # Corpora are private text, and so are the events that tell samples of it.
    secret = ["corpora", "jobs", "treadle.db", "treadle.db-wal"]
    assert not any((server.data_dir / name).stat().st_mode & 0o077 for name in secret)


def test_a_sample_of_endless_words_is_cut(start: Start) -> None:
    spec = tiny_spec("wide")
    spec.tokenizer.kind = pb.TOKENIZER_KIND_WORDS
    spec.report.sample_tokens = 100
    corpus = b" ".join(bytes([letter]) * 200_000 for letter in b"abcdefgh" * 4)
    events = list(
        start().caller.train(spec, *(corpus[i : i + 2**20] for i in range(0, len(corpus), 2**20)))
    )
    samples = [len(event.progress.sample) for event in events if event.progress.sample]
    assert samples
    assert max(samples) == 10_000
