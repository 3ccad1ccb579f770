"""`DecodingGroups`: callers share batches while they have about as many sequences."""

from __future__ import annotations

import random

from treadle.server.inference.sharing.decoding_groups import (
    DecodingGroups,
    GroupedCaller,
    size_class_of,
)


def begin(groups: DecodingGroups[str], name: str, count: int) -> GroupedCaller[str]:
    for _ in range(count):
        caller = groups.add(name)
    return caller


def names_of(groups: DecodingGroups[str]) -> list[set[str]]:
    return [{caller.name for caller in group.callers} for group in groups.groups]


def test_callers_with_one_sequence_are_one_group() -> None:
    groups: DecodingGroups[str] = DecodingGroups()
    callers = [begin(groups, f"caller-{number}", 1) for number in range(64)]
    assert len({id(caller.group) for caller in callers}) == 1
    assert len(groups.groups) == 1


def test_a_caller_with_many_sequences_leaves_the_others() -> None:
    groups: DecodingGroups[str] = DecodingGroups()
    single = begin(groups, "single", 1)
    shared = single.group
    assert begin(groups, "many", 1).group is shared
    many = begin(groups, "many", 199)
    assert many.group is not shared
    assert single.group is shared
    assert names_of(groups) == [{"single"}, {"many"}]
    begin(groups, "like it", 250)
    begin(groups, "several", 2)
    begin(groups, "three", 3)
    assert names_of(groups) == [{"single"}, {"several", "three"}, {"many", "like it"}]


def test_the_sequences_of_a_caller_that_is_alone_stay_where_they_are() -> None:
    groups: DecodingGroups[str] = DecodingGroups()
    caller = begin(groups, "", 1)
    group = caller.group
    group.batches.append("batch")
    assert begin(groups, "", 299).group is group
    for _ in range(299):
        groups.remove(caller)
        assert caller.group is group
    assert groups.groups == [group]
    groups.remove(caller)
    assert groups.groups == []


def test_a_call_that_comes_and_goes_moves_nothing() -> None:
    groups: DecodingGroups[str] = DecodingGroups()
    begin(groups, "other", 130)
    caller = begin(groups, "caller", 128)
    group = caller.group
    for _ in range(10):
        groups.remove(caller)
        assert caller.group is group
        assert groups.add("caller") is caller
    for _ in range(40):
        groups.remove(caller)
    assert caller.group is not group


def test_no_caller_of_a_group_has_many_times_as_many_as_another() -> None:
    draw = random.Random(1)
    groups: DecodingGroups[str] = DecodingGroups()
    callers: list[GroupedCaller[str]] = []
    for _ in range(20_000):
        if callers and draw.random() < 0.5:
            groups.remove(callers.pop(draw.randrange(len(callers))))
        else:
            callers.append(groups.add(f"caller-{min(draw.randrange(12), draw.randrange(12))}"))
        for group in groups.groups:
            counts = [caller.count for caller in group.callers]
            assert max(counts) < 8 / 3 * min(counts)
            assert all(caller.group is group for caller in group.callers)
    for caller in callers:
        groups.remove(caller)
    assert groups.groups == []


def test_classes_are_powers_of_two() -> None:
    counts = (1, 2, 3, 4, 7, 8, 64, 200)
    assert [size_class_of(count, 0) for count in counts] == [1, 2, 2, 3, 3, 4, 7, 8]
    assert [size_class_of(count, 4) for count in (5, 6, 8, 15, 16)] == [3, 4, 4, 4, 5]
