"""`word_of` and `number_of` convert between the words of settings and the contract's enum numbers.

An enum of the contract has the words of its enum in Python, in upper case and behind a prefix:
`CorpusRole.VALID`, the word `valid`, is CORPUS_ROLE_VALID. Number 0 stands for "not set".
"""

from __future__ import annotations

from typing import Any

from treadle.v1 import sequence_pb2 as pb


def word_of(kind: Any, number: int) -> str | int:
    """Returns the word of a number, such as `lstm` for CELL_LSTM.

    Args:
        kind: The descriptor of an enum of the contract.
        number: The number.

    Returns:
        The word; the number itself where the contract does not know it.
    """
    value = kind.values_by_number.get(number)
    return number if value is None else value.name.removeprefix(_prefix(kind)).lower()


def number_of(kind: Any, word: str) -> int:
    """Returns the number of a word, such as CELL_LSTM for `lstm`.

    Args:
        kind: The descriptor of an enum of the contract.
        word: The word.

    Raises:
        KeyError: The enum has no such word.
    """
    return int(kind.values_by_name[_prefix(kind) + word.upper()].number)


def job_state(word: str) -> pb.JobState.ValueType:
    """Returns the number of a job's state, such as JOB_STATE_QUEUED for `queued`.

    Raises:
        ValueError: No job can be in that state.
    """
    return pb.JobState.Value(f"JOB_STATE_{word.upper()}")


def _prefix(kind: Any) -> str:
    return str(kind.values_by_number[0].name).removesuffix("UNSPECIFIED")
