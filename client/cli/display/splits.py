"""`valid_split` and `test_split` name the part of a corpus that a loss was measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import DataSpec, Split

DEFAULT_VALIDATION_FRACTION = 0.1
"""The default of the contract."""


def valid_split(split: Split | int, data: DataSpec) -> str:
    """Returns the name of the validation part: "the last 10 %", "10 % of the items", ...

    Args:
        split: The source of its tokens.
        data: How the corpus was split.

    Returns:
        The name; empty where there is no such part.
    """
    given = data.HasField("validation_fraction")
    fraction = data.validation_fraction if given else DEFAULT_VALIDATION_FRACTION
    return _words(split, fraction, tail="the last {}" if not data.test_fraction else "a tail of {}")


def test_split(split: Split | int, data: DataSpec) -> str:
    """Returns the name of the test part; see `valid_split`."""
    return _words(split, data.test_fraction, tail="a tail of {}")


def _words(split: Split | int, fraction: float, *, tail: str) -> str:
    """Returns the name of a part of a corpus."""
    from treadle.v1.sequence_pb2 import SPLIT_FILES, SPLIT_ITEMS, SPLIT_TAIL

    share = f"{100 * fraction:.3g} %"
    if split == SPLIT_TAIL:
        return tail.format(share)
    if split == SPLIT_ITEMS:
        return f"{share} of the items"
    return "separate files" if split == SPLIT_FILES else ""
