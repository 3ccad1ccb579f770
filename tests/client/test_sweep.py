"""A sweep against a server in this process: it can be left at any event and continued."""

from __future__ import annotations

import csv
import io
import itertools
import math
import random
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treadle.client.errors import (
    InputError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from treadle.client.replicas import retry
from treadle.client.sweep import job_follower
from treadle.client.sweep.job_follower import Update
from treadle.client.sweep.median_rule import MedianRule, running_best
from treadle.client.sweep.results_csv import results_csv
from treadle.client.sweep.spec import SweepSpec
from treadle.client.sweep.spec_reader import read_spec
from treadle.client.sweep.sweep import Sweep, SweepEvent
from treadle.client.sweep.trial import Trial, TrialState, Validation, ranked
from treadle.client.sweep.trial_news import apply_event, apply_job
from treadle.v1 import sequence_pb2 as v1

from .fake_sweep_server import FakeSweepServer, refused

PATIENCE_S = 60.0

METHODS = ["grid", "random", "tpe"]


def losses(options: Mapping[str, Any]) -> list[float]:
    """Made-up losses, best near a learning rate of 0.01 and with many hidden units."""
    distance = abs(math.log10(options["learning_rate"]) + 2)
    end = 1.0 + distance + 8 / options["hidden_size"]
    return [end + (1.0 + distance) / (place + 1) for place in range(5)]


def sweep_spec(folder: Path, method: str = "random", **changes: Any) -> SweepSpec:
    """A sweep of 12 trials."""
    (folder / "corpus.txt").write_text("hello hello")
    if method == "tpe":
        pytest.importorskip("optuna", reason="the extra [sweep] is not installed")
    rate: dict[str, Any] = {"min": 0.0001, "max": 1.0, "scale": "log"}
    if method == "grid":
        rate["points"] = 4
    tables = {
        "sweep": {
            "name": "s",
            "model": "m",
            "method": method,
            "trials": 12,
            "parallel": 3,
            "seed": 1,
            "alias": "best",
            **({"startup_trials": 4} if method == "tpe" else {}),
        },
        "files": {"train": "corpus.txt"},
        "train": {"max_steps": 50},
        "search": {"learning_rate": rate, "hidden_size": [8, 16, 32]},
    }
    return replace(read_spec(tables, folder), **changes)


def run_whole(server: FakeSweepServer, spec: SweepSpec) -> tuple[list[SweepEvent], Sweep]:
    with Sweep(server, spec, reconnect_s=0.0) as sweep:
        return list(sweep), sweep


def table(sweep: Sweep) -> str:
    return results_csv(sweep.ranked(), sweep.spec)


@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_ranks_its_trials_and_names_the_best_model(tmp_path: Path, method: str) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path, method)
    events, sweep = run_whole(server, spec)
    assert len(sweep.trials) == server.submissions == 12
    assert server.most_open <= 3
    assert server.uploads == 1
    best = sweep.ranked()[0]
    assert sweep.best() == best
    assert best.value("best_valid_loss") == min(
        losses(options)[-1] for options in server.options.values()
    )
    assert server.aliases == {("m", "best"): best.version}
    assert [event.kind for event in events[-2:]] == ["finished", "alias"]
    pruned = [trial for trial in sweep.ranked() if trial.state == "pruned"]
    assert pruned
    assert sweep.ranked()[-len(pruned) :] == pruned
    for trial in pruned:
        assert trial.best("best_valid_loss") == trial.counted[-1]
        assert len(trial.counted) == trial.pruned_after < 5
    assert {job.spec.request_id for job in server.by_id.values()} == {
        f"sweep/s/{number}" for number in range(1, 13)
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parallel", [1, 3])
def test_a_sweep_left_at_any_event_continues_to_the_same_results(
    tmp_path: Path, method: str, parallel: int
) -> None:
    """While nobody follows them, its jobs continue by a random number of steps."""
    spec = sweep_spec(tmp_path, method, parallel=parallel)
    _, whole = run_whole(FakeSweepServer(losses), spec)
    generator = random.Random(7)
    for _ in range(4):
        server = FakeSweepServer(losses)
        is_done = False
        while not is_done:
            with Sweep(server, spec, reconnect_s=0.0) as sweep:
                left = generator.randrange(1, 160)
                for event in sweep:
                    left -= 1
                    is_done = event.kind == "alias"
                    if not left:
                        break
            for job in list(server.by_id):
                for _ in range(generator.randrange(4)):
                    server.advance(job)
        assert server.submissions == 12
        _, again = run_whole(server, spec)
        assert server.submissions == 12
        assert table(again) == table(whole)
        # What comes in any order is which number a version gets, and not which trial is the best.
        best = again.best()
        assert best is not None
        assert server.aliases == {("m", "best"): best.version}
        assert best.number == whole.ranked()[0].number


def test_two_at_once_share_the_jobs(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    with Sweep(server, spec) as one, Sweep(server, spec) as two:
        for _ in range(400):
            next(one, None)
            next(two, None)
        one.result()
        two.result()
        assert server.submissions == 12
        assert table(one) == table(two)


@pytest.mark.parametrize("differs", ["tags", "choice"])
def test_what_another_run_of_the_sweep_submits_meanwhile_is_followed(
    tmp_path: Path, differs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tags may be others, and another version of Optuna chooses other settings."""
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    other = replace(spec, tags={"team": "x"}) if differs == "tags" else spec
    with Sweep(server, spec) as one, Sweep(server, other) as two:
        next(one)
        if differs == "choice":
            choose = two._sampler.choose
            monkeypatch.setattr(two._sampler, "choose", lambda number, *_: choose(-number, [], []))
        two.result()
        one.result()
        assert server.submissions == 12
        assert table(one) == table(two)
        assert {trial.job for trial in one.ranked()} == set(server.by_id)


def test_another_spec_under_the_same_name_is_refused(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    run_whole(server, spec)
    others = {
        "[sweep]": replace(spec, seed=5),
        "[train]": replace(spec, train={"max_steps": 51}),
        "[search]": replace(spec, search={"learning_rate": spec.search["learning_rate"]}),
    }
    for part, other in others.items():
        with pytest.raises(InputError) as caught:
            run_whole(server, other)
        assert str(caught.value) == (
            f"sweep 's' has 12 jobs of another file: {part} differs; take another name, or restore "
            "the file to continue"
        )
    (tmp_path / "corpus.txt").write_text("another text")
    with pytest.raises(InputError, match=r"another file: \[files\] differs"):
        run_whole(server, spec)
    assert server.submissions == 12


def test_more_trials_another_alias_and_tags_continue_the_sweep(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    run_whole(server, spec)
    more = replace(spec, trials=15, alias="top", tags={"team": "x"}, max_time_s=1e12)
    _, sweep = run_whole(server, more)
    assert server.submissions == 15
    assert len(sweep.trials) == 15
    assert ("m", "top") in server.aliases
    _, whole = run_whole(FakeSweepServer(losses), more)
    assert table(sweep) == table(whole)
    # With fewer ones, what is there still counts.
    _, fewer = run_whole(server, spec)
    assert table(fewer) == table(whole)


def test_a_deleted_job_is_submitted_again(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    _, whole = run_whole(server, spec)
    gone = next(job.id for job in server.by_id.values() if job.spec.tags["trial"] == "5")
    del server.by_id[gone]
    _, again = run_whole(server, spec)
    assert server.submissions == 13
    assert table(again) == table(whole)


def test_a_grid_with_fewer_trials_submits_a_deleted_one_again(tmp_path: Path) -> None:
    """Its number may be above that of the trials that the file asks for now."""
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path, "grid")
    _, whole = run_whole(server, spec)
    gone = next(job.id for job in server.by_id.values() if job.spec.tags["trial"] == "7")
    del server.by_id[gone]
    _, again = run_whole(server, replace(spec, trials=4))
    assert server.submissions == 13
    assert table(again) == table(whole)


def test_a_job_that_is_deleted_under_way_is_submitted_again(tmp_path: Path) -> None:
    spec = sweep_spec(tmp_path)
    _, whole = run_whole(FakeSweepServer(losses), spec)
    server = FakeSweepServer(losses)
    watch: Any = server.watch
    gone: list[str] = []

    def delete_and_watch(job: str, after: int = 0, **options: Any) -> Any:
        if not gone and server.get_job(job).spec.tags["trial"] == "5":
            gone.append(job)
            del server.by_id[job]
        return watch(job, after, **options)

    server.watch = delete_and_watch  # type: ignore[method-assign]
    _, sweep = run_whole(server, spec)
    assert server.submissions == 13
    assert sweep.trials[5].job != gone[0]
    assert table(sweep) == table(whole)


def test_jobs_that_only_have_its_tag_are_no_trials(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    train: Any = server.train
    train([], model="m", tags={"sweep": "s", "trial": "1"}, learning_rate=0.1, hidden_size=8)
    train([], model="m", tags={"sweep": "s"}, request_id="x", learning_rate=0.1, hidden_size=8)
    _, sweep = run_whole(server, spec)
    assert len(sweep.trials) == 12
    assert server.submissions == 14


def test_each_caller_has_sweeps_of_its_own(tmp_path: Path) -> None:
    """An admin sees the jobs of all callers; those of others are not continued."""
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    for caller in ("one", "two"):
        server.caller = caller
        run_whole(server, spec)
    assert server.submissions == 24
    assert sorted(job.owner for job in server.by_id.values()) == ["one"] * 12 + ["two"] * 12


def test_a_server_that_is_away_for_a_while_changes_nothing(tmp_path: Path) -> None:
    spec = sweep_spec(tmp_path)
    _, whole = run_whole(FakeSweepServer(losses), spec)
    server = FakeSweepServer(losses)
    with Sweep(server, spec) as sweep:
        kinds: list[str] = []
        for event in sweep:
            if len(kinds) in (10, 40):
                server.away = 3
            kinds.append(event.kind)
            if event.kind == "waiting":
                assert event.text == (
                    "no server answers; the jobs continue, reconnecting to the server ..."
                )
        assert table(sweep) == table(whole)
    assert server.submissions == 12


def test_a_server_that_stays_away_ends_the_sweep(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    with Sweep(server, sweep_spec(tmp_path), reconnect_s=0.0) as sweep:
        while not sweep.trials:
            next(sweep)
        server.away = 10**9
        with pytest.raises(UnavailableError, match="no server answers"):
            sweep.result()


def test_an_error_in_a_thread_ends_the_sweep(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)

    def broken(*_: object, **__: object) -> Any:
        raise ValueError("Cannot invoke RPC on closed channel!")

    server.watch = broken  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="closed channel"):
        run_whole(server, sweep_spec(tmp_path))


def test_a_corpus_that_changes_under_way_is_noticed(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    with Sweep(server, sweep_spec(tmp_path)) as sweep:
        (tmp_path / "corpus.txt").write_text("changed")
        with pytest.raises(InputError, match="has changed while the sweep ran: restore it"):
            next(sweep)


def test_refused_trials_are_ranked_last_and_do_not_end_the_sweep(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    server.refuse = lambda options: refused("too small") if options["hidden_size"] == 8 else None
    spec = sweep_spec(tmp_path, "grid")
    events, sweep = run_whole(server, spec)
    states = [trial.state for trial in sweep.ranked()]
    assert states[-4:] == ["refused"] * 4
    assert server.submissions == 8
    assert [event.text for event in events if event.kind == "refused"] == ["too small"] * 4
    _, again = run_whole(server, spec)
    assert table(again) == table(sweep)


def test_a_sweep_of_which_every_trial_is_refused_ends_with_the_reason(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    server.refuse = lambda options: refused("max_steps must be more")
    for trials in (3, 12):
        with pytest.raises(InvalidArgumentError, match="max_steps must be more"):
            run_whole(server, sweep_spec(tmp_path, trials=trials))


def test_a_full_server_is_asked_again(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    asked = 0

    def refuse(options: Mapping[str, Any]) -> Exception | None:
        nonlocal asked
        asked += 1
        if asked % 4 == 0:
            return ResourceExhaustedError(
                "the queue is full", code="RESOURCE_EXHAUSTED", retry_delay_s=0.01
            )
        return None

    server.refuse = refuse
    events, sweep = run_whole(server, sweep_spec(tmp_path))
    assert len(sweep.trials) == 12
    (first, *_) = [event for event in events if event.kind == "waiting"]
    assert first.text == "the server takes no job now: the queue is full"


def test_a_server_that_is_full_for_a_moment_changes_nothing(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path, trials=2)
    get_job = server.get_job
    calls = itertools.count()

    def sometimes(job: str) -> v1.Job:
        if next(calls) % 3 == 0:
            raise ResourceExhaustedError("full", code="RESOURCE_EXHAUSTED", retry_delay_s=0.01)
        return get_job(job)

    server.get_job = sometimes  # type: ignore[method-assign]
    with Sweep(server, spec, reconnect_s=PATIENCE_S) as sweep:
        sweep.result()
    assert len(sweep.trials) == 2


def test_a_server_that_is_not_there_in_the_beginning_is_not_waited_for(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    absent = UnavailableError("nothing listens", code="UNAVAILABLE", broken=True, unsent=True)
    calls = itertools.count(1)

    def nowhere() -> v1.GetServerInfoResponse:
        next(calls)
        raise absent

    server.server_info = nowhere  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match="nothing listens"):
        Sweep(server, sweep_spec(tmp_path), reconnect_s=0.3).result()
    assert next(calls) == 2


def test_a_trial_whose_events_cannot_be_read_for_a_while_keeps_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job continues and ends meanwhile: the server takes no more calls that watch jobs."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(retry, "LAST_PAUSE_S", 0.001)
    monkeypatch.setattr(job_follower, "_AGAIN_S", 0.001)
    monkeypatch.setattr(job_follower, "_TRIES", 3)
    spec = sweep_spec(tmp_path)
    _, whole = run_whole(FakeSweepServer(losses), spec)
    server = FakeSweepServer(losses)
    next_event = server.next_event
    get_job = server.get_job
    reads: Counter[str] = Counter()

    def full(job: str, after: int) -> v1.JobEvent | None:
        reads[job] += 1
        if 1 < reads[job] <= 20:  # the first one is of the call that submits the job
            raise ResourceExhaustedError("full", code="RESOURCE_EXHAUSTED", retry_delay_s=0.001)
        return next_event(job, after)

    def get_and_go_on(job: str) -> v1.Job:
        server.advance(job)
        return get_job(job)

    server.next_event = full  # type: ignore[method-assign]
    server.get_job = get_and_go_on  # type: ignore[method-assign]
    with Sweep(server, spec, reconnect_s=PATIENCE_S) as sweep:
        sweep.result()
    assert min(reads.values()) > 20
    assert table(sweep) == table(whole)


def test_a_paused_job_that_ends_while_the_server_is_away_keeps_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(job_follower, "_AGAIN_S", 0.001)
    monkeypatch.setattr(job_follower, "_TRIES", 3)
    spec = sweep_spec(tmp_path, trials=1)
    _, whole = run_whole(FakeSweepServer(losses), spec)
    server = FakeSweepServer(losses)
    watch: Any = server.watch
    looks = itertools.count(1)

    def pause_and_break(job: str, after: int = 0, **options: Any) -> Any:
        look = next(looks)
        about = server.by_id[job]
        if look < 10:
            about.state = v1.JOB_STATE_PAUSED
        elif look == 10:
            about.state = v1.JOB_STATE_RUNNING
            while server.by_id[job].state == v1.JOB_STATE_RUNNING:
                server.advance(job)
            server.away = 1
        return watch(job, after, **options)

    server.watch = pause_and_break  # type: ignore[method-assign]
    with Sweep(server, spec, reconnect_s=PATIENCE_S) as sweep:
        sweep.result()
    assert table(sweep) == table(whole)


def test_an_error_of_the_server_ends_the_sweep(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    server.refuse = lambda options: InternalError("out of order", code="INTERNAL")
    with pytest.raises(InternalError, match="out of order"):
        run_whole(server, sweep_spec(tmp_path))


def test_the_time_limit_cancels_what_runs_and_begins_nothing(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    with Sweep(server, spec) as sweep:
        while len(sweep.trials) < 3:
            next(sweep)
    # The jobs are years old, so that any limit has passed.
    _, late = run_whole(server, replace(spec, max_time_s=60.0))
    assert server.submissions == 3
    assert not [job for job in server.by_id.values() if job.state == v1.JOB_STATE_RUNNING]
    assert {trial.state for trial in late.ranked()} <= {"succeeded", "cancelled"}


def test_a_sweep_waits_for_news_and_not_for_what_is_past(tmp_path: Path) -> None:
    with Sweep(FakeSweepServer(losses), sweep_spec(tmp_path, max_time_s=60.0)) as sweep:
        sweep._begin_at(1.0)
        assert sweep._wait_s() == 0  # the time is over, and the jobs are to be cancelled
        sweep._is_stopping = True
        sweep._retry_at = 1.0  # the server was full, and nothing more will be submitted
        assert sweep._wait_s() > 60


@pytest.mark.parametrize("missing", [2, 5])
def test_a_sweep_whose_time_is_over_waits_for_no_trial_that_is_missing(
    tmp_path: Path, missing: int
) -> None:
    """One that was refused, or whose job was deleted, is not submitted any more."""
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path, parallel=1)
    with Sweep(server, spec) as sweep:
        while len(sweep.trials) < 8:
            next(sweep)
    del server.by_id[f"job-{missing}"]
    ended: list[Sweep] = []
    late = replace(spec, max_time_s=60.0)  # the jobs are years old
    follower = threading.Thread(
        target=lambda: ended.append(run_whole(server, late)[1]), daemon=True
    )
    follower.start()
    follower.join(PATIENCE_S)
    assert sorted(ended[0].trials) == [number for number in range(1, 9) if number != missing]
    assert all(trial.is_settled for trial in ended[0].trials.values())


def test_a_job_that_is_deleted_after_the_time_is_missing(tmp_path: Path) -> None:
    spec = sweep_spec(tmp_path, parallel=2)
    with Sweep(FakeSweepServer(losses), spec) as sweep:
        while len(sweep.trials) < 2:
            next(sweep)
        sweep._is_stopping = True
        second = sweep.trials[2]
        apply_job(second, v1.Job(state=v1.JOB_STATE_CANCELLED))
        third = replace(second, number=3)
        sweep.trials[3] = third
        assert list(sweep._judge(third)) == []  # the first one is open
        gone = NotFoundError("there is no such job", code="NOT_FOUND")
        events = list(sweep._take(Update(1, sweep.trials[1].job, gone)))
    assert [event.trial for event in events] == [third]
    assert third.is_settled


def test_cancel_ends_open_jobs_alone(tmp_path: Path) -> None:
    server = FakeSweepServer(losses)
    spec = sweep_spec(tmp_path)
    with Sweep(server, spec) as sweep:
        while sum(trial.is_over for trial in sweep.trials.values()) < 2 or len(sweep.trials) < 5:
            next(sweep)
    still_open = {job.id for job in server.by_id.values() if job.state == v1.JOB_STATE_RUNNING}
    with Sweep(server, spec) as other:
        assert {trial.job for trial in other.cancel()} == still_open
        assert other.cancel() == []


@pytest.mark.parametrize("method", METHODS)
def test_without_pruning_every_trial_comes_to_its_end(tmp_path: Path, method: str) -> None:
    _, sweep = run_whole(FakeSweepServer(losses), sweep_spec(tmp_path, method, prune=False))
    assert {trial.state for trial in sweep.ranked()} == {"succeeded"}


def test_tpe_learns_from_earlier_trials(tmp_path: Path) -> None:
    """With time to learn it finds better settings than chance, and with another seed others."""
    spec = sweep_spec(tmp_path, "tpe", trials=40, prune=False, parallel=1)
    _, sweep = run_whole(FakeSweepServer(losses), spec)
    rates = [float(sweep.trials[number].parameters["learning_rate"]) for number in range(1, 41)]
    distances = [abs(math.log10(rate) + 2) for rate in rates]
    assert sum(distances[20:]) / 20 < sum(distances[:4]) / 4
    _, other = run_whole(FakeSweepServer(losses), replace(spec, seed=9))
    assert table(other) != table(sweep)


def test_tpe_does_not_depend_on_the_order_of_the_search_space(tmp_path: Path) -> None:
    """It does not belong to what makes two sweeps the same."""
    spec = sweep_spec(tmp_path, "tpe")
    turned = replace(spec, search=dict(sorted(spec.search.items())))
    assert list(turned.search) != list(spec.search)
    _, one = run_whole(FakeSweepServer(losses), spec)
    _, other = run_whole(FakeSweepServer(losses), turned)
    assert {number: dict(trial.parameters) for number, trial in one.trials.items()} == {
        number: dict(trial.parameters) for number, trial in other.trials.items()
    }


def test_tpe_without_optuna_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(sweep_spec(tmp_path), method="tpe")
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match=r"needs Optuna: run `pip install '\.\[sweep\]'"):
        Sweep(FakeSweepServer(losses), spec)


def test_values_that_are_no_numbers_rank_last(tmp_path: Path) -> None:
    def diverging(options: Mapping[str, Any]) -> list[float]:
        return losses(options) if options["learning_rate"] < 0.1 else [math.nan] * 5

    for method in METHODS:
        _, sweep = run_whole(FakeSweepServer(diverging), sweep_spec(tmp_path, method, parallel=1))
        order = sweep.ranked()
        bad = [trial for trial in order if float(trial.parameters["learning_rate"]) >= 0.1]
        assert bad
        assert {trial.number for trial in order[-len(bad) :]} == {trial.number for trial in bad}
        assert all(trial.value("best_valid_loss") is None for trial in bad)


# ------------------------------------------------------------------- its parts


def trial(number: int, state: TrialState, *values: float, **fields: Any) -> Trial:
    validations = [Validation(10 * place, value, None) for place, value in enumerate(values, 1)]
    made = Trial(number, {}, state=state, validations=validations, **fields)
    if state == "pruned":
        made.pruned_after = len(values)
    return made


def test_ranks() -> None:
    """Equal values: the earlier trial. Stopped ones follow all others that have a value."""
    order = [
        trial(4, "cancelled", 3.0, 0.5),
        trial(2, "succeeded", 1.0),
        trial(7, "succeeded", 1.0, 2.0),
        trial(9, "succeeded", 1.5),
        trial(3, "pruned", 0.1),
        trial(8, "pruned", 0.1),
        trial(1, "failed"),
        trial(5, "refused"),
        trial(6, "succeeded", math.nan, math.inf),
    ]
    shuffled = list(order)
    random.Random(3).shuffle(shuffled)
    assert [each.number for each in ranked(shuffled, "best_valid_loss")] == [
        each.number for each in order
    ]


def test_a_resumed_trial_has_no_reason_left() -> None:
    paused = trial(1, "running")
    why = v1.JobStateChange(state=v1.JOB_STATE_PAUSED, reason="on request")
    apply_event(paused, v1.JobEvent(state=why))
    assert (paused.state, paused.reason) == ("paused", "on request")
    resumed = v1.JobStateChange(state=v1.JOB_STATE_QUEUED, reason="resumed")
    apply_event(paused, v1.JobEvent(state=resumed))
    assert (paused.state, paused.reason) == ("queued", "")


def test_metrics() -> None:
    done = trial(1, "succeeded", 3.0, 2.0, 2.5, stored_loss=2.25)
    assert (done.value("best_valid_loss"), done.value("valid_loss")) == (2.0, 2.25)
    assert done.value("bits_per_character") is None
    done.validations = [Validation(1, 3.0, 4.0), Validation(2, 2.0, 5.0)]
    assert done.value("bits_per_character") == 4.0
    assert trial(2, "succeeded", 1.0).value("valid_loss") is None
    stopped = trial(3, "pruned", 3.0, 2.0)
    stopped.validations.append(Validation(30, 1.0, None))
    assert stopped.value("valid_loss") == stopped.value("best_valid_loss") == 2.0


def test_the_rule_of_medians() -> None:
    rule = MedianRule(after_trials=3, after_validations=1)
    ended = [[5.0, 4.0, 1.0], [5.0, 3.0, 1.0], [5.0, 2.0, 9.0], [5.0]]
    assert running_best([math.nan, 2.0, 3.0, 1.0]) == [math.inf, 2.0, 2.0, 1.0]

    def is_hopeless(values: list[float], others: list[list[float]]) -> bool:
        return rule.is_hopeless(running_best(values), list(map(running_best, others)))

    assert not is_hopeless([9.0], ended)  # too early
    assert not is_hopeless([9.0, 9.0], ended[1:])  # too few to compare with
    assert not is_hopeless([9.0, 3.0], ended)  # just the median
    assert is_hopeless([9.0, 3.1], ended)
    assert not is_hopeless([2.0, 9.0], ended)  # its best counts
    assert is_hopeless([math.nan, math.nan], ended)
    assert not is_hopeless([9.0, 9.0, 9.0, 9.0], ended)  # nobody came so far


def test_csv_is_safe_in_a_spreadsheet(tmp_path: Path) -> None:
    values = ["=HYPERLINK(1)", "+1", "-1", "@a", 'a,"b"\n', "ä", "plain", "\tx"]
    tables = {
        "sweep": {"name": "s", "model": "m", "method": "grid"},
        "files": {"train": "corpus.txt"},
        "search": {"init_from": values, "dropout": [0.5], "tied_weights": [True]},
    }
    (tmp_path / "corpus.txt").write_text("a")
    spec = read_spec(tables, tmp_path)
    trials = [
        Trial(number, {"init_from": value, "dropout": 0.5, "tied_weights": True})
        for number, value in enumerate(values, start=1)
    ]
    trials[0].validations = [Validation(3, 0.1 + 0.2, None)]
    head, *rows = csv.reader(io.StringIO(results_csv(trials, spec)))
    assert head == [
        "rank",
        "trial",
        "state",
        "best_valid_loss",
        "best_step",
        "last_step",
        "init_from",
        "dropout",
        "tied_weights",
    ]
    assert rows[0][3:6] == ["0.30000000000000004", "3", "3"]
    assert rows[1][3:6] == ["", "", ""]
    assert [row[6] for row in rows] == [
        "'=HYPERLINK(1)",
        "'+1",
        "'-1",
        "'@a",
        'a,"b"\n',
        "ä",
        "plain",
        "'\tx",
    ]
    assert rows[0][7:] == ["0.5", "true"]
