"""Regular expressions on their way to be automata: nobody waits behind a hostile one.

An expression that is kept costs nothing. A new one gets a glance first; what that does not do for
goes to the next lane, where it gets more time, and waits for more. In each lane short ones go
first. So a cheap expression waits for glances only, whatever else was sent.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from treadle.model.errors import EffortError
from treadle.model.generation.constraint import Constraint, compile_constraint, kept_constraint
from treadle.model.generation.deadline import Deadline
from treadle.model.generation.regex_automaton import GLANCE, QUICK, THOROUGH, Effort
from treadle.model.tokenizers.base import Tokenizer
from treadle.server.errors import StatusError, exhausted
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.resources.smallest_first import SmallestFirstPool

MAX_WAITING = 64
"""Expressions that may be made or wait for it at once."""

MAX_WAIT_S = 30.0
"""The longest that a call waits for its expression."""

_GLANCES = 2
"""Expressions that get a glance at once."""

_RETRY_S = 2.0

_QUICK_BYTES, _THOROUGH_BYTES = 64 << 20, 256 << 20
"""What an expression that is being made takes, in its process and in ours; measured."""


@dataclass(eq=False)
class _Making:
    """An expression that is being made."""

    task: asyncio.Task[Constraint]
    """Makes it."""
    waiting: int = 0
    """Calls that wait for it."""


class Regexes:
    """Makes the automata of all calls; those who ask for the same one wait for it together.

    Args:
        budget: Holds what an expression takes while it is made.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._lanes = {
            GLANCE: SmallestFirstPool("regex-glance", _GLANCES),
            QUICK: SmallestFirstPool("regex-quick", 1),
            THOROUGH: SmallestFirstPool("regex-thorough", 1),
        }
        self._making: dict[tuple[str, int], _Making] = {}

    async def get(self, regex: str, tokenizer: Tokenizer, deadline: Deadline) -> Constraint | None:
        """Returns what keeps text to a regular expression.

        Args:
            regex: The expression.
            tokenizer: Of the model.
            deadline: When nobody needs it any more.

        Returns:
            It; None where the time ended before.

        Raises:
            ConfigError: The expression cannot be used.
            StatusError: RESOURCE_EXHAUSTED: too many others are being made, or there is too
                little memory.
        """
        kept = kept_constraint(regex, tokenizer)
        if kept is not None:
            return kept
        left_s = deadline.left_s
        making = self._begin(regex, tokenizer)
        making.waiting += 1
        try:
            wait_s = MAX_WAIT_S if left_s is None else min(left_s, MAX_WAIT_S)
            done, _ = await asyncio.wait([making.task], timeout=wait_s)
        finally:
            making.waiting -= 1
            if not making.waiting:
                self._forget(regex, tokenizer, making)
                making.task.cancel()  # a thread that is at it goes on to its end, which is near
        if done:
            return making.task.result()
        if deadline.over:
            return None
        raise _crowded()

    def _begin(self, regex: str, tokenizer: Tokenizer) -> _Making:
        """Returns what makes an expression, begun where nothing does yet."""
        key = regex, id(tokenizer)
        if key not in self._making:
            if len(self._making) >= MAX_WAITING:
                raise _crowded()
            self._making[key] = _Making(asyncio.create_task(self._make(regex, tokenizer)))
        return self._making[key]

    def _forget(self, regex: str, tokenizer: Tokenizer, making: _Making) -> None:
        """Forgets an expression that nobody waits for any more."""
        key = regex, id(tokenizer)
        if self._making.get(key) is making:
            del self._making[key]

    async def _make(self, regex: str, tokenizer: Tokenizer) -> Constraint:
        def make(effort: Effort) -> Constraint:
            held = _THOROUGH_BYTES if effort is THOROUGH else _QUICK_BYTES
            with self._budget.reserve(held, "regular expressions that are being made"):
                return compile_constraint(regex, tokenizer, effort)

        *lesser, most = self._lanes
        for effort in lesser:
            with suppress(EffortError):
                return await self._lanes[effort].run(len(regex), make, effort)
        return await self._lanes[most].run(len(regex), make, most)


def _crowded() -> StatusError:
    text = "regex: too many large expressions are being made; try again, or take a simpler one"
    return exhausted(text, _RETRY_S)
