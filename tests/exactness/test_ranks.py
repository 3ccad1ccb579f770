"""The number of processes that train one model, by MPI, does not change a bit."""

import json
from pathlib import Path
from typing import Any

import pytest
from exactness import rank_run
from mpirun import needs_mpi, on_ranks

pytestmark = [pytest.mark.jit, needs_mpi]

FEW = ["lstm many words", "lstm tied", "rnn one shard"]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The results of one process with one thread."""
    return rank_run.results(list(rank_run.CONFIGS))


def together(ranks: int, **asked: Any) -> Any:
    folder = Path(__file__).parents[1]
    script = str(folder / "exactness/rank_run.py")
    done = on_ranks(ranks, script, json.dumps(asked), PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_ranks_of_two_threads_train_the_same(alone: dict[str, Any]) -> None:
    names = list(rank_run.CONFIGS)
    assert together(2, names=names, threads=2) == alone


@pytest.mark.shared
def test_three_ranks_train_the_same(alone: dict[str, Any]) -> None:
    assert together(3, names=list(rank_run.CONFIGS)) == alone


def test_four_ranks_train_the_same_though_steps_are_dropped(alone: dict[str, Any]) -> None:
    dropped = together(4, names=FEW, interrupt=True)
    assert dropped == {name: alone[name] for name in FEW}


@pytest.mark.shared
def test_a_run_continues_on_another_number_of_ranks(tmp_path: Path, alone: dict[str, Any]) -> None:
    names = ["gru dropped", "lstm tied"]
    (tmp_path / "alone").mkdir()
    (tmp_path / "together").mkdir()
    one = rank_run.results(names, stop=7, folder=str(tmp_path / "alone"))
    three = together(3, names=names, stop=7, folder=str(tmp_path / "together"))
    assert three == one  # the checkpoints, to the byte
    done = together(2, names=names, folder=str(tmp_path / "together"))
    assert {name: done[name]["weights"] for name in names} == {
        name: alone[name]["weights"] for name in names
    }
