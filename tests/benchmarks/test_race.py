"""Worker processes that are well, missing, dying, failing or hanging, and races between them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.benchmarks.processes import NotInstalledError, Worker, WorkerError, python
from treadle.benchmarks.race import compare, fastest, race
from treadle.benchmarks.rivals import Entrant
from treadle.benchmarks.settings import Case, Settings

SCRIPT = str(Path(__file__).with_name("fake_worker.py"))
CASE = Case("train", "lstm", 8)
SHORT = Settings(rounds=3, seconds=0.001)

Start = Callable[[str], Worker]


@pytest.fixture
def start() -> Iterator[Start]:
    """What makes a worker that behaves in a given way; all are ended afterwards."""
    workers = []

    def make(way: str) -> Worker:
        workers.append(Worker(way, python(SCRIPT, way)))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


def entrant(worker: Worker, **options: Any) -> Entrant:
    return Entrant(worker, CASE, "a way", options)


def test_a_worker_is_measured(start: Start) -> None:
    worker = start("well")
    worker.make(CASE, {})
    assert worker.run(0.001) > 0
    assert worker.version == "1.0"


def test_a_missing_package_is_told_apart(start: Start) -> None:
    worker = start("missing")
    for _ in range(2):
        with pytest.raises(NotInstalledError, match="torch is not installed"):
            worker.make(CASE, {})


def test_a_dying_child_is_reported_with_its_last_words(start: Start) -> None:
    with pytest.raises(WorkerError, match="dies died with exit code 7: the last words"):
        start("dies").make(CASE, {})


def test_a_hanging_child_is_given_up(start: Start) -> None:
    with pytest.raises(WorkerError, match="hangs did not answer within"):
        start("hangs").make(CASE, {}, patience_s=0.2)


def test_a_child_that_failed_goes_on_with_the_next_case(start: Start) -> None:
    worker = start("well")
    with pytest.raises(WorkerError, match="ValueError: no such setting"):
        worker.make(CASE, {"fail": True})
    with pytest.raises(WorkerError, match="no case was made"):
        worker.run(0.001)
    worker.make(CASE, {})
    assert worker.run(0.001) > 0


def test_a_child_answers_where_its_case_has_answers(start: Start) -> None:
    worker = start("well")
    with pytest.raises(WorkerError, match="well is not running"):
        worker.answers()
    worker.make(CASE, {"answers": True})
    assert worker.answers() == {"tokens": [[1]]}
    worker.make(CASE, {})
    with pytest.raises(WorkerError, match="the case has no answers"):
        worker.answers()


def test_whoever_fails_the_check_leaves_the_race(start: Start) -> None:
    def check(name: str, entrant: Entrant) -> None:
        if name == "other":
            raise WorkerError("other answers wrongly")

    row = compare(entrant(start("well")), {"other": [entrant(start("well"))]}, SHORT, check)
    assert row["ratios"] == {"other": None}
    assert row["notes"] == ["other answers wrongly"]


def test_a_child_that_cannot_be_started_is_reported(start: Start) -> None:
    worker = Worker("nobody", python("-c", "import sys; sys.exit('broken from the beginning')"))
    with pytest.raises(WorkerError, match="exit code 1: broken from the beginning"):
        worker.make(CASE, {})


def test_a_race_has_a_sample_a_round_of_everyone_well(start: Start) -> None:
    entrants = {"ours": entrant(start("well")), "other": entrant(start("dies"))}
    samples, notes = race(entrants, rounds=3, seconds=0.001)
    assert list(samples) == ["ours"]
    assert len(samples["ours"].values) == 3
    assert notes == ["dies died with exit code 7: the last words"]


def test_the_fastest_setting_is_the_rivals(start: Start) -> None:
    worker = start("well")
    choices = [entrant(worker, work=work) for work in (1, 10**9, 2)]
    failing = entrant(worker, fail=True)
    best, notes = fastest([failing, *choices], seconds=0.001)
    assert best is choices[1]
    assert notes == ["well failed: ValueError: no such setting"]


def test_a_comparison_goes_on_without_who_is_missing(start: Start) -> None:
    rivals = {
        "well": [entrant(start("well"))],
        "missing": [entrant(start("missing"))] * 2,
        "dies": [entrant(start("dies"))],
    }
    row = compare(entrant(start("well")), rivals, SHORT)
    assert row["label"] == "LSTM 8"
    assert len(row["ours"]["samples"]) == 3
    assert row["rivals"]["well"]["way"] == "a way"
    assert row["ratios"]["well"] > 0
    for name in ("missing", "dies"):
        assert row["rivals"][name] is None
        assert row["ratios"][name] is None
    assert row["notes"] == ["torch is not installed", "dies died with exit code 7: the last words"]
