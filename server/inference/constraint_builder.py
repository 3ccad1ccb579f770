"""`ConstraintBuilder` builds the automata of regular expressions for all calls.

No call waits behind a hostile expression: one that is in the cache costs nothing. A new one gets
very little time first. If that is not enough it goes to the next lane, where it gets more time, and
waits for more expressions. In each lane callers take turns, and of one caller's expressions those
with fewer estimated states go first. So a cheap expression waits for a few quick ones at most,
whatever other calls have sent, and any waits for one of each other caller.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from treadle.model.errors import EffortError
from treadle.model.generation.constraint import Constraint, cached_constraint, compile_constraint
from treadle.model.generation.deadline import Deadline
from treadle.model.generation.regex_automaton import (
    GLANCE,
    QUICK,
    THOROUGH,
    Effort,
    estimated_states,
)
from treadle.model.tokenizers.base import Tokenizer
from treadle.server.access.caller import current_caller
from treadle.server.errors import StatusError, exhausted
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.resources.priority_executor import PriorityExecutor

MAX_WAITING = 64
"""Expressions of one caller that may be built or wait for it at once."""

MAX_WAIT_S = 30.0
"""The longest that a call waits for its expression."""

_GLANCES = 2
"""Expressions that are in the first lane's threads at once."""

_MAX_ESTIMATED = 256
"""Characters of an expression whose states are estimated: a long one takes milliseconds of the
event loop, and is not small."""

_LARGE = 1 << 20
"""The states that a longer one counts for."""

_RETRY_S = 2.0

_QUICK_BYTES = 64 << 20
_THOROUGH_BYTES = 256 << 20
"""The memory of an expression that is being built, in its process and in this one; measured."""


@dataclass(eq=False)
class _Build:
    """An expression that is being built."""

    task: asyncio.Task[Constraint]
    """Builds it."""
    waiting: int = 0
    """Calls that wait for it."""


class ConstraintBuilder:
    """Builds the automata of all calls; a caller's calls with the same one wait for it together.

    Args:
        budget: Holds the memory of an expression while it is built.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._lanes = {
            GLANCE: PriorityExecutor("regex-glance", _GLANCES),
            QUICK: PriorityExecutor("regex-quick", 1),
            THOROUGH: PriorityExecutor("regex-thorough", 1),
        }
        self._builds: dict[str, dict[tuple[str, int], _Build]] = {}
        """By the names of their callers: nobody waits where another caller's calls wait."""

    async def build(
        self, regex: str, tokenizer: Tokenizer, deadline: Deadline
    ) -> Constraint | None:
        """Returns the automaton that keeps text to a regular expression.

        Args:
            regex: The expression.
            tokenizer: The model's tokenizer.
            deadline: When the call ends.

        Returns:
            The automaton; None where the time ended before.

        Raises:
            ConfigError: The expression cannot be used.
            StatusError: RESOURCE_EXHAUSTED: too many others are being built, or there is too
                little memory.
        """
        cached = cached_constraint(regex, tokenizer)
        if cached is not None:
            return cached
        left_s = deadline.left_s
        owner = current_caller().name
        build = self._begin(owner, regex, tokenizer)
        build.waiting += 1
        try:
            wait_s = MAX_WAIT_S if left_s is None else min(left_s, MAX_WAIT_S)
            done, _ = await asyncio.wait([build.task], timeout=wait_s)
        finally:
            build.waiting -= 1
            if not build.waiting:
                self._forget(owner, regex, tokenizer, build)
                build.task.cancel()  # a thread that works on it ends soon by itself
        if done:
            return build.task.result()
        if deadline.over:
            return None
        raise _crowded()

    def _begin(self, owner: str, regex: str, tokenizer: Tokenizer) -> _Build:
        """Returns the build of an expression; begins it where none is running."""
        key = regex, id(tokenizer)
        builds = self._builds.setdefault(owner, {})
        if key not in builds:
            if len(builds) >= MAX_WAITING:
                raise _crowded()
            builds[key] = _Build(asyncio.create_task(self._build(regex, tokenizer)))
        return builds[key]

    def _forget(self, owner: str, regex: str, tokenizer: Tokenizer, build: _Build) -> None:
        """Drops a build that no call waits for any more."""
        key = regex, id(tokenizer)
        builds = self._builds.get(owner, {})
        if builds.get(key) is build:
            del builds[key]
            if not builds:
                del self._builds[owner]

    async def _build(self, regex: str, tokenizer: Tokenizer) -> Constraint:
        """Builds an expression with as little effort as is enough."""

        def compile_with(effort: Effort) -> Constraint:
            size = _THOROUGH_BYTES if effort is THOROUGH else _QUICK_BYTES
            with self._budget.reserve(size, "regular expressions that are being built"):
                return compile_constraint(regex, tokenizer, effort)

        states = estimated_states(regex) if len(regex) <= _MAX_ESTIMATED else _LARGE
        *lesser, most = self._lanes
        for effort in lesser:
            with suppress(EffortError):
                return await self._lanes[effort].run(states, compile_with, effort)
        return await self._lanes[most].run(states, compile_with, most)


def _crowded() -> StatusError:
    text = "regex: too many large expressions are being built; try again, or use a simpler one"
    return exhausted(text, _RETRY_S)
