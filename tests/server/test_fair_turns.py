"""`Scheduler`: turns go round by callers, whatever each of them asks for."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from treadle.server.inference import scheduler as scheduler_module
from treadle.server.inference.sharing.share import JointShare, Share, Task

from .turns import PATIENCE_S, Clock, Worker, held, scheduler_of, still_clock, wake_together


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return still_clock(monkeypatch)


def test_a_caller_with_many_tasks_takes_turns_with_itself(clock: Clock) -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        many = scheduler.share("many")
        crowd = [Worker(clock, f"m{number}", log, 100, share=many) for number in range(200)]
        single = Worker(clock, "s", log, 100, share=scheduler.share("single"))
        wake_together(scheduler, *crowd, single)
        assert single.done.wait(PATIENCE_S)
    while_both = log[: log.index("s") + 2 * 99]
    assert abs(while_both.count("s") - len(while_both) / 2) <= 1
    others = Counter(name for name in while_both if name != "s")
    assert max(others.values()) == 1  # of a caller's tasks the one with the least time goes first


def test_new_calls_bring_a_caller_no_time(clock: Clock) -> None:
    """The first turn of a call counts as well: who sends one call after the other gets no more."""
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        single = Worker(clock, "s", log, 50, share=scheduler.share("single"))
        calls = [Worker(clock, "c", log, 1, share=scheduler.share("many")) for _ in range(300)]
        wake_together(scheduler, *calls, single)
        assert single.done.wait(PATIENCE_S)
    while_both = log[: 2 * 49]
    assert 48 <= while_both.count("s") <= 50


def test_long_turns_of_one_caller_bring_it_no_time(clock: Clock) -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        slow = [Worker(clock, "h", log, 10, 0.02, scheduler.share("slow")) for _ in range(20)]
        quick = Worker(clock, "q", log, 300, 0.002, scheduler.share("quick"))
        wake_together(scheduler, *slow, quick)
        assert quick.done.wait(PATIENCE_S)
    counts = Counter(log[:220])
    assert abs(counts["h"] * 0.02 - counts["q"] * 0.002) < 0.03


def test_a_joint_share_gets_the_time_of_all_its_callers(clock: Clock) -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        joint = JointShare()
        scheduler.combine(joint, Counter({scheduler.share(name): 1 for name in "abc"}))
        together = Worker(clock, "t", log, 300, share=joint)
        single = Worker(clock, "s", log, 300, share=scheduler.share("d"))
        wake_together(scheduler, together, single)
        assert together.done.wait(PATIENCE_S)
    assert 298 <= log[:400].count("t") <= 302


def test_a_caller_in_a_joint_share_gets_no_second_share(clock: Clock) -> None:
    """And its other calls do not wait for ever either."""
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        a, b, c = (scheduler.share(name) for name in "abc")
        joint = JointShare()
        scheduler.combine(joint, Counter({a: 1, b: 1}))
        workers = [Worker(clock, "t", log, 600, share=joint)]
        workers += [Worker(clock, "a", log, 600, share=a), Worker(clock, "c", log, 600, share=c)]
        wake_together(scheduler, *workers)
        assert workers[0].done.wait(PATIENCE_S)
        counts = Counter(log[:600])
        assert (counts["t"], counts["a"], counts["c"]) == pytest.approx((300, 100, 200), abs=10)
        scheduler.combine(joint, Counter())
        assert (a.elsewhere, b.elsewhere) == (0, 0)
        assert a.weight == 1.0


class Switching(Worker):
    """Takes each turn of another share."""

    shares: tuple[Share, Share]

    def take_turn(self, turn_s: float) -> bool:
        self.share = self.shares[self.turns % 2]
        return super().take_turn(turn_s)


def test_another_share_does_not_forget_what_was_used_up(clock: Clock) -> None:
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        joint = JointShare()
        switching = Switching(clock, "w", log, 200, share=joint)
        switching.shares = scheduler.share("a"), joint
        steady = Worker(clock, "s", log, 200, share=scheduler.share("b"))
        wake_together(scheduler, switching, steady)
        assert switching.done.wait(PATIENCE_S)
    assert 98 <= log[:200].count("w") <= 102


class Blocking(Task):
    """Takes one turn, which lasts until it is let go."""

    def __init__(self, name: str, share: Share, begun: list[str]) -> None:
        self.name = name
        self.share = share
        self.begun = begun
        self.holds = threading.Event()
        self.go = threading.Event()

    def take_turn(self, turn_s: float) -> bool:
        self.begun.append(self.name)
        self.holds.set()
        assert self.go.wait(PATIENCE_S)
        return False


def test_a_second_thread_takes_another_caller(clock: Clock) -> None:
    """A turn counts from its beginning on, not from its end."""
    begun: list[str] = []
    with scheduler_of(2) as scheduler:
        gates = [Blocking("gate", scheduler.share("gate"), []) for _ in range(2)]
        for gate in gates:
            scheduler.wake(gate)
        assert all(gate.holds.wait(PATIENCE_S) for gate in gates)
        many = [Blocking("many", scheduler.share("many"), begun) for _ in range(5)]
        single = Blocking("single", scheduler.share("single"), begun)
        for task in (*many, single):
            scheduler.wake(task)
        for gate in gates:
            gate.go.set()
        assert many[0].holds.wait(PATIENCE_S)
        assert single.holds.wait(PATIENCE_S)
        assert sorted(begun) == ["many", "single"]
        for task in (*many, single):
            task.go.set()


def test_who_could_not_use_its_share_gets_little_of_it_back(clock: Clock) -> None:
    """One task runs in one thread; with many threads its caller stays behind the others."""
    log: list[str] = []
    with scheduler_of(1) as scheduler:
        behind = Worker(clock, "b", log, 200, share=scheduler.share("behind"))
        other = Worker(clock, "o", log, 200, share=scheduler.share("other"))
        with held(scheduler):
            scheduler.wake(behind)
            scheduler._clock_s = 3600.0
            scheduler.wake(other)
        assert behind.done.wait(PATIENCE_S)
    first = log.index("o")
    assert first - scheduler_module._MAX_CREDIT_S / behind.turn_s <= 1
    assert 48 <= log[first:][:100].count("b") <= 52


def test_a_caller_keeps_its_share_while_anybody_uses_it() -> None:
    with scheduler_of(1) as scheduler:
        share = scheduler.share("a")
        for number in range(2 * scheduler_module._KEPT_SHARES):
            scheduler.share(f"other-{number}")
        assert scheduler.share("a") is share
        assert len(scheduler._shares) <= scheduler_module._KEPT_SHARES + 2
