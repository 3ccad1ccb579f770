"""How ranks find each other and divide work, without an MPI."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mpirun import needs_mpi, on_ranks

from treadle.model.errors import ConfigError, PackageError
from treadle.model.network.ranks import ranks as ranks_module
from treadle.model.network.ranks.gradient_exchange import rows_of, share_out
from treadle.model.network.ranks.ranks import LostRankError, Ranks, _patiently
from treadle.model.network.shards import shard_slices
from treadle.model.training.ranks.join import join


class World:
    """A communicator of mpi4py, as far as joining needs it."""

    def __init__(self, size: int, others: list[Any]) -> None:
        self._size = size
        self._others = others

    def Get_size(self) -> int:  # noqa: N802
        return self._size

    def Get_rank(self) -> int:  # noqa: N802
        return 0

    def Dup(self) -> World:  # noqa: N802
        return self

    def allgather(self, own: Any) -> list[Any]:
        return [own, *self._others]


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")


def use(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    fake = SimpleNamespace(COMM_WORLD=world, Get_library_version=lambda: "MPICH Version: 5")
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=fake))


@pytest.mark.usefixtures("two_processes")
def test_another_mpi_than_that_of_mpirun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, World(1, []))
    with pytest.raises(PackageError, match="MPICH Version: 5"):
        join()


@pytest.mark.usefixtures("two_processes")
def test_another_version_on_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, World(2, [("far", ("0.0.0", [], ("3", "11"), "little"))]))
    with pytest.raises(PackageError, match="on far is not the same"):
        join()


@pytest.mark.parametrize(("items", "ranks"), [(1, 2), (3, 2), (16, 4), (5, 3), (0, 2), (7, 7)])
def test_every_item_has_a_rank(items: int, ranks: int) -> None:
    shares = share_out(items, ranks)
    assert [item for share in shares for item in share] == list(range(items))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == min(sizes)  # rank 0 makes the batches, too


def test_rows_follow_the_shards() -> None:
    slices = shard_slices(50)
    rows = rows_of(share_out(len(slices), 3), slices)
    assert rows == [slice(0, 16), slice(16, 32), slice(32, 50)]
    assert rows_of(share_out(1, 2), shard_slices(9)) == [slice(0, 0), slice(0, 9)]


def test_a_wait_sleeps_longer_the_longer_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += 0.01

    def look() -> bool:
        now[0] += 0.0001
        return now[0] >= 2.0

    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(ranks_module, "time", clock)
    _patiently(look)
    assert naps == sorted(naps)
    assert naps[0] < naps[-1]


@pytest.mark.parametrize(
    ("rank", "longest_s", "nap_s", "looks"),
    [
        (0, 0.0, 0.5, 600),
        (0, 10.0, 0.5, 1000),  # a step may last
        (0, 0.0, 1000.0, 300),  # between two looks the process was stopped
        (1, 0.0, 0.5, None),  # rank 0 may validate for hours
    ],
)
def test_rank_0_waits_for_no_rank_that_is_lost(
    monkeypatch: pytest.MonkeyPatch, rank: int, longest_s: float, nap_s: float, looks: int | None
) -> None:
    use(monkeypatch, World(2, []))
    now = [0.0]
    seen = [0]

    def sleep(seconds: float) -> None:
        now[0] += nap_s

    def look(pending: list[Any]) -> bool:
        seen[0] += 1
        now[0] += 1e-4
        return seen[0] == 100_000

    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(ranks_module, "time", clock)
    ranks = Ranks(World(2, []))
    monkeypatch.setattr(ranks, "_mpi", SimpleNamespace(Request=SimpleNamespace(Testall=look)))
    ranks.rank = rank
    ranks._longest_s = longest_s
    if looks is None:
        ranks.wait(["request"])
        assert seen[0] == 100_000
        return
    with pytest.raises(LostRankError, match="has not answered for"):
        ranks.wait(["request"])
    assert ranks.is_broken
    assert seen[0] == pytest.approx(looks, rel=0.1)


_LEAVING = """
import os, signal, sys
from treadle.model.network.ranks import ranks as module
from treadle.model.training.ranks.follower import follow_to_the_end
from treadle.model.training.ranks.join import join

module._LOST_S = 1.0
ranks = join()
if ranks.leads:
    ranks.leave()
    print("left")
else:
    if sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.exit(follow_to_the_end(ranks))
"""


@needs_mpi
def test_a_rank_that_hangs_at_the_end_is_given_up() -> None:
    """Not by MPI, whose end waits for all ranks."""
    done = on_ranks(2, "-c", _LEAVING)
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
    stuck = on_ranks(2, "-c", _LEAVING, "stuck")
    assert stuck.returncode != 0
    assert "has not answered for 1 s" in stuck.stderr
    assert not stuck.stdout.startswith("left")


def test_nothing_is_exchanged_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, World(2, []))
    ranks = Ranks(World(2, []))
    with pytest.raises(ConfigError), ranks.together():
        raise ConfigError("a fault")
    assert ranks.is_broken
    with pytest.raises(RuntimeError, match="no longer work together"):
        ranks.broadcast(np.zeros(3))


def test_a_fault_of_one_rank_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, World(3, []))
    ranks = Ranks(World(3, []))
    answers = [None, ConfigError("rank 2 on far: optimizer.precision cannot be bf16")]
    monkeypatch.setattr(ranks, "_receive_object", lambda rank, tag: answers[rank - 1])
    with pytest.raises(ConfigError, match="rank 2 on far"):
        ranks.check()
    assert ranks.is_broken  # rank 1 would wait for what follows
