"""Checks in which order `ConstraintBuilder` builds the expressions of all calls."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator

import grpc
import pytest
from clocks import StillClock

from treadle.model.config import TokenizerConfig
from treadle.model.errors import ConfigError, EffortError
from treadle.model.generation import constraint as constraint_module
from treadle.model.generation.constraint import Constraint, compile_constraint
from treadle.model.generation.deadline import NEVER, Deadline
from treadle.model.generation.regex_automaton import (
    GLANCE,
    QUICK,
    THOROUGH,
    Automaton,
    Effort,
    compile_automaton,
)
from treadle.model.tokenizers.build import build_tokenizer
from treadle.server.access.caller import Caller, Role, set_current_caller
from treadle.server.errors import StatusError
from treadle.server.inference import constraint_builder
from treadle.server.inference.constraint_builder import ConstraintBuilder
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.resources.priority_executor import PriorityExecutor

from .harness import PATIENCE_S, until

TOKENIZER = build_tokenizer(TokenizerConfig(), ["abcdefghijklmnopqrstuvwxyz"])


class Compiler:
    """Compiles as ever, but for hostile expressions, which have an x: they take until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        self.calls: list[tuple[str, Effort]] = []
        self.thorough = 0
        self.most_thorough = 0
        self._lock = threading.Lock()
        monkeypatch.setattr(constraint_module, "compile_automaton", self.compile)

    def compile(self, regex: str, effort: Effort) -> Automaton:
        self.calls.append((regex, effort))
        if "x" in regex:
            if effort is not THOROUGH:
                raise EffortError("too large", "regex")
            with self._lock:
                self.thorough += 1
                self.most_thorough = max(self.most_thorough, self.thorough)
            assert self.go.wait(60)
            with self._lock:
                self.thorough -= 1
        return compile_automaton("a", effort) if "x" in regex else compile_automaton(regex, effort)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    compiler = Compiler(monkeypatch)
    yield compiler
    compiler.go.set()


def test_neither_a_kept_nor_a_cheap_expression_waits_for_hostile_ones(compiler: Compiler) -> None:
    kept = compile_constraint("[ab]{3}", TOKENIZER)
    hostile = [f"x{number}" for number in range(8)]

    async def run() -> None:
        builder = ConstraintBuilder(MemoryBudget(1 << 30))
        waiting = [asyncio.create_task(builder.build(text, TOKENIZER, NEVER)) for text in hostile]
        await asyncio.sleep(0)
        assert await builder.build("[ab]{3}", TOKENIZER, NEVER) is kept
        cheap = await builder.build("[cd]{2}", TOKENIZER, NEVER)  # new, and made meanwhile
        assert cheap is not None
        assert cheap.complete.size == 3
        assert not any(task.done() for task in waiting)
        compiler.go.set()
        assert all(made is not None for made in await asyncio.gather(*waiting))

    asyncio.run(run())
    assert compiler.most_thorough == 1  # large ones take one processor, not all
    efforts = [effort for regex, effort in compiler.calls if regex == "x0"]
    assert efforts == [GLANCE, QUICK, THOROUGH]


def test_a_long_cheap_expression_goes_before_short_hostile_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cheap = r"(error|warning|info|debug) [0-9]{1,3}: (disk|network) is (up|down|full)"
    hostile = [f"[ab]*a[ab]{{{number}}}" for number in range(20, 60)]
    assert max(map(len, hostile)) < len(cheap)
    begun = list[str]()
    go = threading.Event()

    def build(regex: str, *_: object) -> Constraint:
        begun.append(regex)
        assert go.wait(60)
        raise ConfigError("not built", "regex")

    monkeypatch.setattr(constraint_builder, "compile_constraint", build)

    async def run() -> None:
        builder = ConstraintBuilder(MemoryBudget(1 << 30))
        tasks = [
            asyncio.create_task(builder.build(regex, TOKENIZER, NEVER))
            for regex in [*hostile, cheap]
        ]
        while len(begun) < 2:  # the places of the first lane are taken
            await asyncio.sleep(0.001)
        go.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    assert cheap in begun[:4]


def test_in_a_lane_small_ones_go_first() -> None:
    async def run() -> list[int]:
        lane = PriorityExecutor("lane", 1)
        go = threading.Event()
        begun = list[int]()

        def work(number: int) -> None:
            begun.append(number)
            assert go.wait(60)

        sizes = [100, 5000, 120, 3, 6000]
        tasks = [
            asyncio.create_task(lane.run(size, work, number)) for number, size in enumerate(sizes)
        ]
        gone = asyncio.create_task(lane.run(1, work, 9))
        while not begun:
            await asyncio.sleep(0.001)
        gone.cancel()
        go.set()
        await asyncio.gather(gone, *tasks, return_exceptions=True)
        await lane.run(1, work, 5)  # its place is free again
        return begun

    assert asyncio.run(run()) == [0, 3, 2, 1, 4, 5]


def test_a_place_in_a_lane_is_free_when_the_work_has_ended_and_not_before() -> None:
    async def run() -> None:
        lane = PriorityExecutor("lane", 1)
        go = threading.Event()
        begun = threading.Event()

        def work() -> None:
            begun.set()
            assert go.wait(60)

        first = asyncio.create_task(lane.run(1, work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        first.cancel()
        second = asyncio.create_task(lane.run(1, lambda: 2))
        await asyncio.wait([first])
        await asyncio.sleep(0.01)
        assert not second.done()
        go.set()
        assert await second == 2

    asyncio.run(run())


def test_an_error_that_nobody_waits_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()

    def fail() -> None:
        ended.wait(PATIENCE_S)
        raise ValueError("nobody is there")

    async def test() -> None:
        executor = PriorityExecutor("test", 1)
        call = asyncio.create_task(executor.run(1, fail))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        ended.set()
        await executor.run(1, lambda: None)
        del call
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(test())
    assert not caplog.records


def test_those_who_ask_for_the_same_wait_for_one(compiler: Compiler) -> None:
    async def run() -> None:
        builder = ConstraintBuilder(MemoryBudget(1 << 30))
        tasks = [asyncio.create_task(builder.build("xs", TOKENIZER, NEVER)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()  # one that goes does not take the others' along
        await asyncio.sleep(0)
        compiler.go.set()
        first, *others = await asyncio.gather(*tasks[1:])
        assert first is not None
        assert others == [first] * 3

    asyncio.run(run())
    assert [regex for regex, _ in compiler.calls] == ["xs"] * 3


def test_what_nobody_waits_for_any_more_is_not_begun(compiler: Compiler) -> None:
    async def run() -> None:
        builder = ConstraintBuilder(MemoryBudget(1 << 30))
        first = asyncio.create_task(builder.build("x-first", TOKENIZER, NEVER))
        while not compiler.thorough:
            await asyncio.sleep(0.001)
        others = [
            asyncio.create_task(builder.build(f"x-{number}", TOKENIZER, NEVER))
            for number in range(9)
        ]
        while sum(regex.startswith("x-") for regex, _ in compiler.calls) < 21:
            await asyncio.sleep(0.001)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        compiler.go.set()
        await first
        assert builder._builds == {}

    asyncio.run(run())
    assert [regex for regex, effort in compiler.calls if effort is THOROUGH] == ["x-first"]


def test_too_many_at_once_are_refused(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint_builder, "MAX_WAITING", 3)

    async def run() -> None:
        builder = ConstraintBuilder(MemoryBudget(1 << 30))
        tasks = [
            asyncio.create_task(builder.build(f"x{number}!", TOKENIZER, NEVER))
            for number in range(4)
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [task.done() for task in tasks] == [False, False, False, True]
        with pytest.raises(StatusError, match="regex: too many"):
            await tasks[3]
        assert await builder.build("[ab]{3}", TOKENIZER, NEVER) is not None  # is kept
        compiler.go.set()
        await asyncio.gather(*tasks[:3])

    compile_constraint("[ab]{3}", TOKENIZER)
    asyncio.run(run())


def test_a_caller_with_many_expressions_keeps_no_other_from_its_own(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constraint_builder, "MAX_WAITING", 5)

    async def run() -> None:
        builder = ConstraintBuilder(MemoryBudget(1 << 30))

        async def build(caller: str, regex: str) -> None:
            set_current_caller(Caller(caller, Role.USER))
            await builder.build(regex, TOKENIZER, NEVER)

        many = [asyncio.create_task(build("many", f"x{number}m")) for number in range(5)]
        await until(lambda: len(compiler.calls) == 11)  # one is thorough, and four wait for that
        single = asyncio.create_task(build("single", "x4m"))
        refused = asyncio.create_task(build("many", "x5m"))
        await until(lambda: len(compiler.calls) == 13)
        with pytest.raises(StatusError, match="regex: too many"):
            await refused
        compiler.go.set()
        await asyncio.gather(single, *many)
        assert builder._builds == {}

    asyncio.run(run())
    thorough = [regex for regex, effort in compiler.calls if effort is THOROUGH]
    assert thorough == ["x0m", "x1m", "x4m", "x2m", "x3m"]  # and the other x4m is in the cache then


def test_a_wait_has_an_end(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint_builder, "MAX_WAIT_S", 0.01)
    with pytest.raises(StatusError, match="regex: too many"):
        asyncio.run(ConstraintBuilder(MemoryBudget(1 << 30)).build("x?", TOKENIZER, NEVER))


def test_time_that_is_over_ends_the_wait(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = StillClock(monkeypatch)
    deadline = Deadline(5)
    clock.now += 5
    assert (
        asyncio.run(ConstraintBuilder(MemoryBudget(1 << 30)).build("x+", TOKENIZER, deadline))
        is None
    )


def test_what_is_refused_is_refused_to_everybody(compiler: Compiler) -> None:
    async def run() -> None:
        builder = ConstraintBuilder(MemoryBudget(1 << 30))
        tasks = [builder.build("(", TOKENIZER, NEVER) for _ in range(3)]
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(error, ConfigError) for error in found)

    asyncio.run(run())


def test_an_expression_holds_memory_while_it_is_made(compiler: Compiler) -> None:
    async def run() -> None:
        budget = MemoryBudget(1 << 30)
        builder = ConstraintBuilder(budget)
        making = asyncio.create_task(builder.build("x{9}", TOKENIZER, NEVER))
        await until(lambda: compiler.thorough == 1)
        assert budget.used == 256 << 20
        compiler.go.set()
        await making
        assert budget.used == 0
        with pytest.raises(ConfigError):
            await builder.build("(", TOKENIZER, NEVER)
        assert budget.used == 0
        with budget.reserve(budget.limit // 8 * 7, "models"):
            with pytest.raises(StatusError) as caught:
                await builder.build("[ab]{77}", TOKENIZER, NEVER)
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "regular expressions" in caught.value.message
        assert await builder.build("[ab]{77}", TOKENIZER, NEVER)  # it was not kept as refused

    asyncio.run(run())
