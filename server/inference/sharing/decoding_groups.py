"""`DecodingGroups` decides which callers' sequences may decode together.

A step takes longer the more sequences it is for. If one caller's single sequence shared its steps
with another's two hundred, it would wait for all of them. So callers share batches only while they
have about as many sequences each. Sixty-four callers with one stream each decode as one batch; one
with two hundred has batches of its own, which take turns with the others'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


@dataclass(eq=False)
class Group(Generic[Batch]):
    """Callers whose sequences decode together."""

    callers: set[GroupedCaller[Batch]] = field(default_factory=set)
    """The callers."""
    batches: list[Batch] = field(default_factory=list)
    """The batches of their sequences."""


@dataclass(eq=False)
class GroupedCaller(Generic[Batch]):
    """A caller with its place among the groups."""

    name: str
    """Its name."""
    group: Group[Batch]
    """The group to which its sequences belong. When it becomes another one, those that are in a
    batch already have to follow."""
    size_class: int
    """The class of the group."""
    count: int = 0
    """How many sequences it has."""


class DecodingGroups(Generic[Batch]):
    """The callers whose sequences could share a batch, as those of one model can."""

    def __init__(self) -> None:
        self._callers: dict[str, GroupedCaller[Batch]] = {}
        self._groups: dict[int, Group[Batch]] = {}

    @property
    def groups(self) -> list[Group[Batch]]:
        """The groups that have callers, those with fewer sequences first."""
        return [group for _, group in sorted(self._groups.items())]

    def add(self, name: str) -> GroupedCaller[Batch]:
        """Counts another sequence of a caller, which may change its group.

        Args:
            name: The name of the caller.

        Returns:
            The caller, until it has no sequence any more.
        """
        caller = self._callers.get(name)
        if caller is None:
            size_class = size_class_of(1, 0)
            group = self._groups.setdefault(size_class, Group())
            caller = self._callers[name] = GroupedCaller(name, group, size_class)
            group.callers.add(caller)
        caller.count += 1
        self._regroup(caller)
        return caller

    def remove(self, caller: GroupedCaller[Batch]) -> None:
        """Counts a sequence of a caller less, which may change its group."""
        caller.count -= 1
        if caller.count:
            self._regroup(caller)
        else:
            del self._callers[caller.name]
            self._leave(caller)

    def _regroup(self, caller: GroupedCaller[Batch]) -> None:
        size_class = size_class_of(caller.count, caller.size_class)
        if size_class == caller.size_class:
            return
        target = self._groups.get(size_class)
        if target is None and len(caller.group.callers) == 1:  # nothing has to move
            del self._groups[caller.size_class]
            self._groups[size_class] = caller.group
        else:
            self._leave(caller)
            caller.group = self._groups.setdefault(size_class, Group())
            caller.group.callers.add(caller)
        caller.size_class = size_class

    def _leave(self, caller: GroupedCaller[Batch]) -> None:
        caller.group.callers.discard(caller)
        if not caller.group.callers:
            del self._groups[caller.size_class]


def size_class_of(count: int, current: int) -> int:
    """Returns the class of callers with a number of sequences: how many binary digits it has.

    Args:
        count: The number of sequences.
        current: The class so far. It stays until a quarter of the sequences that it begins with is
            missing, so that one call that comes and goes does not move all the others each time.
    """
    least = (1 << current) // 2
    if 3 * least <= 4 * count < 8 * least:
        return current
    return count.bit_length()
