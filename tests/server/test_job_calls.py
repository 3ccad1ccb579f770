"""Requests about jobs, and the errors of requests that cannot be met."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import grpc
import pytest

from treadle.v1 import sequence_pb2 as pb

from .harness import (
    PATIENCE_S,
    TEXT,
    Caller,
    Server,
    fields_of,
    first_progress,
    long_spec,
    tiny_spec,
)

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def done(server: Server) -> list[pb.JobEvent]:
    """The events of a job that is over."""
    spec = tiny_spec("job-calls", max_steps=40)
    spec.report.validation_interval_steps = 10
    return list(server.caller.train(spec, TEXT))


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def test_the_events_of_a_job_tell_its_whole_life(done: list[pb.JobEvent]) -> None:
    kinds = [event.WhichOneof("event") for event in done]
    assert kinds[:3] == ["state", "state", "started"]
    assert kinds[-1] == "completed"
    assert set(kinds[3:-1]) == {"progress"}
    assert [event.sequence for event in done] == list(range(1, len(done) + 1))
    assert len({event.job for event in done}) == 1
    times = [event.event_time.ToNanoseconds() for event in done]
    assert times == sorted(times)


def test_watching_from_any_event_gives_the_rest(caller: Caller, done: list[pb.JobEvent]) -> None:
    for after in (0, 1, len(done) - 1, len(done)):
        assert list(caller.watch(done[0].job, after)) == done[after:]


def test_a_job_is_described(caller: Caller, done: list[pb.JobEvent]) -> None:
    job = caller.job(done[0].job)
    assert (job.model, job.state, job.version) == ("job-calls", pb.JOB_STATE_SUCCEEDED, 1)
    assert job.last_sequence == len(done)
    assert job.started == next(event.started for event in done if event.HasField("started"))
    assert job.spec == job.started.spec
    assert job.progress == done[-2].progress
    assert job.corpus_bytes == len(TEXT)
    stamps = (job.create_time, job.start_time, job.end_time)
    times = [stamp.ToNanoseconds() for stamp in stamps]
    assert times == sorted(times)
    assert times[0] > 0


def test_progress_carries_what_users_look_for(done: list[pb.JobEvent]) -> None:
    started = next(event.started for event in done if event.HasField("started"))
    assert started.valid_split == pb.SPLIT_TAIL
    assert started.baseline_loss > 0
    validated = [e.progress for e in done if e.progress.HasField("valid_loss")]
    assert validated
    for progress in validated:
        assert progress.valid_perplexity == pytest.approx(2.718281828459045**progress.valid_loss)
        assert progress.valid_bits_per_character > 0
        assert progress.best_valid_loss <= progress.valid_loss
        assert progress.memory_bytes > 1 << 20
    record = done[-1].completed.training
    assert record.valid_split == pb.SPLIT_TAIL
    assert record.valid_loss == min(p.valid_loss for p in validated)


def test_a_run_that_diverged_says_so(caller: Caller) -> None:
    """Its loss is a number still, so it comes to its end: that is no success without a word."""
    spec = tiny_spec("diverged", max_steps=20)
    spec.optimizer.learning_rate = 1e4
    spec.optimizer.schedule = pb.SCHEDULE_CONSTANT
    completed = list(caller.train(spec, TEXT))[-1]
    (notice,) = completed.completed.training.notices
    assert notice.startswith("the run diverged: at its end the loss was ")
    job = caller.job(completed.job)
    assert (job.state, job.reason) == (pb.JOB_STATE_SUCCEEDED, notice)


def test_unknown_tokens_are_told_and_give_no_bits_a_character(caller: Caller) -> None:
    spec = tiny_spec("unknown", max_steps=4)
    spec.tokenizer.kind = pb.TOKENIZER_KIND_WORDS
    spec.tokenizer.max_vocabulary_size = 4
    events = list(caller.train(spec, TEXT * 30))
    (started,) = (event.started for event in events if event.HasField("started"))
    assert [n for n in started.notices if "% of the tokens to train on are unknown" in n]
    validated = [e.progress for e in events if e.progress.HasField("valid_loss")]
    assert validated
    assert not any(p.HasField("valid_bits_per_character") for p in validated)
    (score,) = caller.score("unknown", ["words that nobody has ever written"]).scores
    assert 0 < score.unknown_count <= score.token_count
    assert score.HasField("perplexity")
    assert not score.HasField("bits_per_character")


@pytest.mark.parametrize("method", ["GetJob", "CancelJob", "PauseJob", "ResumeJob", "DeleteJob"])
def test_a_job_that_is_not_there(caller: Caller, method: str) -> None:
    request = getattr(pb, f"{method}Request")(job="nothing")
    call = getattr(caller.stub, method)
    assert code_of(lambda: call(request, timeout=PATIENCE_S)) is grpc.StatusCode.NOT_FOUND
    assert code_of(lambda: list(caller.watch("nothing"))) is grpc.StatusCode.NOT_FOUND
    generate = lambda: caller.generate("", job="nothing")  # noqa: E731
    assert code_of(generate) is grpc.StatusCode.NOT_FOUND


def test_a_job_that_is_over_cannot_pause(caller: Caller, done: list[pb.JobEvent]) -> None:
    job = done[0].job
    wrong = grpc.StatusCode.FAILED_PRECONDITION
    pause = pb.PauseJobRequest(job=job)
    resume = pb.ResumeJobRequest(job=job)
    assert code_of(lambda: caller.stub.PauseJob(pause, timeout=PATIENCE_S)) is wrong
    assert code_of(lambda: caller.stub.ResumeJob(resume, timeout=PATIENCE_S)) is wrong
    cancelled = caller.stub.CancelJob(pb.CancelJobRequest(job=job), timeout=PATIENCE_S).job
    assert cancelled.state == pb.JOB_STATE_SUCCEEDED


def test_jobs_are_listed_by_state_and_model(caller: Caller, done: list[pb.JobEvent]) -> None:
    mine = [job.id for job in caller.jobs(model="job-calls")]
    assert mine == [done[0].job]
    assert mine[0] in [job.id for job in caller.jobs(states=[pb.JOB_STATE_SUCCEEDED])]
    assert mine[0] not in [job.id for job in caller.jobs(states=[pb.JOB_STATE_FAILED])]
    everything = [job.id for job in caller.jobs()]
    assert [job.id for job in caller.jobs(page_size=1)] == everything
    request = pb.ListJobsRequest(page_token="nothing")
    with pytest.raises(grpc.RpcError) as caught:
        caller.stub.ListJobs(request, timeout=PATIENCE_S)
    assert fields_of(caught.value) == ["page_token"]


def test_a_list_says_how_far_a_job_is_that_runs(caller: Caller) -> None:
    first = first_progress(caller.train(long_spec("listed-while-running"), TEXT))
    (job,) = caller.jobs(model="listed-while-running")
    assert job.state == pb.JOB_STATE_RUNNING
    assert job.progress.step >= first.progress.step
    assert job.started.train_tokens > 0
    assert job.spec.network.hidden_size == 8
    caller.stub.CancelJob(pb.CancelJobRequest(job=job.id), timeout=PATIENCE_S)


def test_deleting_a_job_keeps_its_model(start: Start) -> None:
    server = start()
    caller = server.caller
    *_, last = caller.train(tiny_spec("m"), TEXT)
    job = last.job
    assert (server.data_dir / "jobs" / job).exists()
    caller.stub.DeleteJob(pb.DeleteJobRequest(job=job), timeout=PATIENCE_S)
    assert code_of(lambda: caller.job(job)) is grpc.StatusCode.NOT_FOUND
    assert not (server.data_dir / "jobs" / job).exists()
    assert caller.text("m", max_new_tokens=3)


def test_fine_tuning_goes_on_from_a_model(start: Start) -> None:
    caller = start().caller
    base = caller.trained(tiny_spec("base", max_steps=200))
    spec = pb.TrainSpec(
        model="tuned",
        init_from="base",
        data=pb.DataSpec(batch_size=2, window=8),
        limits=pb.LimitsSpec(max_steps=1),
    )
    events = list(caller.train(spec, TEXT))
    started = next(event.started for event in events if event.HasField("started"))
    assert (started.spec.init_from, started.spec.init_from_version) == ("base", 1)
    assert started.spec.network == base.network
    tuned = events[-1].completed
    # One step from random weights would be worse by far.
    assert tuned.training.valid_loss < base.training.valid_loss + 0.2
    unknown = b"$$$ what the tokenizer has never seen"
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(spec, TEXT + unknown))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'$'" in (caught.value.details() or "")
    spec.tokenizer.unknown_policy = pb.UNKNOWN_POLICY_SKIP
    assert list(caller.train(spec, TEXT + unknown))[-1].completed.version == 2


def test_fine_tuning_that_cannot_be(caller: Caller, model: str) -> None:
    spec = tiny_spec("tuned")
    spec.init_from = "nothing"
    assert code_of(lambda: list(caller.train(spec, TEXT))) is grpc.StatusCode.NOT_FOUND
    spec.init_from = model
    spec.network.hidden_size = 9
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(spec, TEXT))
    assert fields_of(caught.value) == ["spec.network.hidden_size"]
    spec.init_from = ""
    spec.init_from_version = 3
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(spec, TEXT))
    assert fields_of(caught.value) == ["spec.init_from_version"]


def files(spec: pb.TrainSpec, *parts: tuple[pb.CorpusFile, bytes]) -> Iterator[pb.TrainRequest]:
    """Yields an upload of several files."""
    yield pb.TrainRequest(spec=spec)
    for about, data in parts:
        yield pb.TrainRequest(corpus_file=about)
        if data:
            yield pb.TrainRequest(corpus_chunk=data)
    size = sum(len(data) for _, data in parts)
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=size))


def test_files_of_their_own_validate_and_test(start: Start) -> None:
    caller = start().caller
    valid = pb.CorpusFile(name="v.txt", role=pb.CORPUS_ROLE_VALID)
    test = pb.CorpusFile(name="t.txt", role=pb.CORPUS_ROLE_TEST)
    upload = files(
        tiny_spec("m"),
        (pb.CorpusFile(name="a.txt", weight=2.0), TEXT),
        (pb.CorpusFile(name="b.txt"), TEXT),
        (valid, TEXT[:200]),
        (test, TEXT[200:500]),
    )
    events = list(caller.train(pb.TrainSpec(), source=upload))
    started = next(event.started for event in events if event.HasField("started"))
    assert started.valid_split == started.test_split == pb.SPLIT_FILES
    assert started.train_tokens == 3 * len(TEXT)
    assert (started.valid_tokens, started.test_tokens) == (200, 300)
    record = events[-1].completed.training
    assert record.test_split == pb.SPLIT_FILES
    assert record.test_loss > 0


def test_a_stored_corpus_need_not_be_sent_again(start: Start) -> None:
    server = start()
    caller = server.caller
    sent = caller.trained(tiny_spec("sent"))
    known = pb.CorpusFile(sha256=hashlib.sha256(TEXT).hexdigest())
    upload = files(tiny_spec("known"), (known, b""))
    model = list(caller.train(pb.TrainSpec(), source=upload))[-1].completed
    assert model.training.train_loss == sent.training.train_loss
    assert len(list((server.data_dir / "corpora").iterdir())) == 1
    unknown = files(tiny_spec("m"), (pb.CorpusFile(sha256="0" * 64), b""))
    call = lambda: list(caller.train(pb.TrainSpec(), source=unknown))  # noqa: E731
    assert code_of(call) is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("about", "field"),
    [
        (pb.CorpusFile(weight=0.0), "corpus_file.weight"),
        (pb.CorpusFile(weight=101.0), "corpus_file.weight"),
        (pb.CorpusFile(weight=float("nan")), "corpus_file.weight"),
        (pb.CorpusFile(name="x" * 300), "corpus_file.name"),
        (pb.CorpusFile(sha256="../../etc/passwd"), "corpus_file.sha256"),
        (pb.CorpusFile(role=9), "corpus_file.role"),  # type: ignore[arg-type]
        (pb.CorpusFile(role=pb.CORPUS_ROLE_TEST), "corpus_file.role"),
    ],
)
def test_files_that_cannot_be(caller: Caller, about: pb.CorpusFile, field: str) -> None:
    upload = files(tiny_spec("m"), (about, TEXT))
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(pb.TrainSpec(), source=upload))
    assert fields_of(caught.value) == [field]


def test_aliases_lead_to_versions(start: Start) -> None:
    caller = start().caller
    for steps in (1, 30):
        caller.trained(tiny_spec("m", max_steps=steps))
    caller.stub.SetAlias(pb.SetAliasRequest(model="m", alias="prod", version=1))
    assert caller.text("m@prod", seed=1) == caller.text("m", seed=1, version=1)
    assert caller.score("m@latest", ["the"]).version == 2
    moved = caller.stub.SetAlias(pb.SetAliasRequest(model="m", alias="prod")).model
    assert (moved.version, list(moved.aliases)) == (2, ["prod"])
    assert caller.generate("m@prod", max_new_tokens=1)[-1].result.version == 2
    assert caller.stub.GetModel(pb.GetModelRequest(model="m@prod")).model == moved
    caller.stub.DeleteAlias(pb.DeleteAliasRequest(model="m", alias="prod"))
    gone = pb.DeleteAliasRequest(model="m", alias="prod")
    assert code_of(lambda: caller.stub.DeleteAlias(gone)) is grpc.StatusCode.NOT_FOUND
    assert code_of(lambda: caller.generate("m@prod")) is grpc.StatusCode.NOT_FOUND
    for alias in ("latest", "7", "a/b", ""):
        request = pb.SetAliasRequest(model="m", alias=alias)
        with pytest.raises(grpc.RpcError) as caught:
            caller.stub.SetAlias(request)
        assert set(fields_of(caught.value)) == {"alias"}


def test_a_job_and_a_model_cannot_both_be_named(caller: Caller, model: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        caller.generate(model, job="x")
    assert fields_of(caught.value) == ["model"]
    with pytest.raises(grpc.RpcError) as caught:
        caller.score(model, ["x"], job="x")
    assert fields_of(caught.value) == ["model"]


def test_auto_says_what_it_picked(start: Start) -> None:
    caller = start().caller
    spec = pb.TrainSpec(model="auto", preset=pb.PRESET_AUTO)
    spec.limits.max_time_s = 1.0
    spec.network.cell = pb.CELL_GRU
    events = list(caller.train(spec, TEXT))
    started = next(event.started for event in events if event.HasField("started"))
    assert started.spec.network.cell == pb.CELL_GRU
    assert started.spec.preset == pb.PRESET_AUTO
    assert any("hidden size" in notice for notice in started.notices)
    assert events[-1].completed.training.weights_step > 0
