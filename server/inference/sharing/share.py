"""`Share` is one caller's part of the scheduler's time, with those of its tasks that are ready.

A caller has the same part whatever it asks for. So one with many calls and texts takes turns with
itself, not with the others. The sequences of several callers may decode together; a `JointShare`
then stands for what each of them gives to that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Final

TURN_S = 0.005
"""About as long as one turn takes while other tasks wait for theirs."""


class Task(ABC):
    """Work that is done in turns."""

    share: Share | None = None
    """Whose time it takes; None: that of the callers without a name. It may become another one
    while the task is in its turn, or has none coming."""
    weight = 1
    """How many calls it works for; fixed like `share`."""
    used_s = 0.0
    """Seconds of turns so far, each divided by the weight it had; the scheduler's own."""
    ready_s = 0.0
    """When it began to wait for its next turn; the scheduler's own."""
    expected_s = TURN_S
    """About the seconds of its next turn; the scheduler's own."""
    counted_in: Share | None = None
    """The share whose tasks `used_s` compares with; the scheduler's own."""

    @abstractmethod
    def take_turn(self, turn_s: float) -> bool:
        """Works in one of the scheduler's threads.

        Args:
            turn_s: Seconds that it should take at most.

        Returns:
            Whether it wants another turn; if not, `Scheduler.wake` gives it one later.
        """


class Share:
    """The time of one caller. All of it belongs to the scheduler, which holds its lock."""

    def __init__(self) -> None:
        self.used_s = 0.0
        """Seconds of turns so far, each divided by the weight it had."""
        self.clock_s = 0.0
        """The same of the task that had its turn last: who asks for no turn saves nothing up."""
        self.ready: list[tuple[float, int, Task]] = []
        """The tasks that wait for a turn, as a heap."""
        self.load = 0
        """Calls and sequences that its tasks work for, those in their turns included."""
        self.elsewhere = 0
        """Sequences of the caller that are the work of joint shares."""
        self.place = 0
        """The number of its valid place among the shares that wait."""

    @property
    def weight(self) -> float:
        """Its part of the caller's time, which joint shares leave to it."""
        if not self.elsewhere:
            return 1.0
        return max(self.load, 1) / (max(self.load, 1) + self.elsewhere)

    @property
    def each(self) -> float:
        """The part of the caller's time that one of its calls and sequences gets."""
        return 1.0 / max(self.load + self.elsewhere, 1)


class JointShare(Share):
    """What several callers give of their time to work that is done together."""

    def __init__(self) -> None:
        super().__init__()
        self.members = NO_MEMBERS
        """How many sequences it works for, of each caller; replaced, not changed."""

    @property
    def weight(self) -> float:
        """How many callers' whole time it gets; the parts add up to it."""
        return sum(count * share.each for share, count in self.members.items()) or 1.0

    def combine(self, members: Counter[Share]) -> None:
        """Sets for whom it works.

        Args:
            members: How many sequences it works for, of each caller.
        """
        for share, count in self.members.items():
            share.elsewhere -= count
        for share, count in members.items():
            share.elsewhere += count
        self.members = members


NO_MEMBERS: Final[Counter[Share]] = Counter()
"""The members of a joint share that works for nobody."""
