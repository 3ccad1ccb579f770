"""Words of settings and enum numbers of the contract, both ways."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.server.messages.enums import job_state, number_of, word_of
from treadle.server.storage.job_state import JobState
from treadle.v1 import sequence_pb2 as pb

KINDS = pb.DESCRIPTOR.enum_types_by_name.values()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_number_has_a_word_that_leads_back_to_it(kind: Any) -> None:
    for value in kind.values:
        word = word_of(kind, value.number)
        assert isinstance(word, str)
        assert word == word.lower()
        assert number_of(kind, word) == value.number


def test_a_number_that_the_contract_does_not_know_stays_a_number() -> None:
    assert word_of(pb.Cell.DESCRIPTOR, 77) == 77
    with pytest.raises(KeyError):
        number_of(pb.Cell.DESCRIPTOR, "transformer")
    with pytest.raises(ValueError, match="LOST"):
        job_state("lost")


def test_the_states_of_a_stored_job_are_those_of_the_contract() -> None:
    kind = pb.JobState.DESCRIPTOR
    assert {str(state) for state in JobState} == {
        word_of(kind, value.number) for value in kind.values if value.number
    }
    for state in JobState:
        assert job_state(state) == number_of(kind, state)
