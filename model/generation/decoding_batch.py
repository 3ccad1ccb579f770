"""`DecodingBatch` owns the sequences that decode together: each step draws a chunk for all of them.

Which sequences share a batch changes no bit of any of them: batches are a matter of speed alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from treadle.model.generation.slot_arrays import MAX_SLOTS, SlotArrays

if TYPE_CHECKING:
    from treadle.model.generation.output import Piece
    from treadle.model.generation.sequence import Sequence
    from treadle.model.generation.slot_arrays import Chunk
    from treadle.model.network.trained_network import TrainedNetwork

MAX_SEQUENCES = MAX_SLOTS
"""The most sequences of one batch."""


class DecodingBatch:
    """Sequences of one network that decode together.

    Args:
        network: The network that generates.
    """

    def __init__(self, network: TrainedNetwork) -> None:
        self._slots = SlotArrays(network.shape, network.weights)
        self._rows: list[Sequence] = []
        self._ended: set[Sequence] = set()

    @property
    def sequences(self) -> list[Sequence]:
        """The sequences that have not ended."""
        return [sequence for sequence in self._rows if sequence not in self._ended]

    @property
    def max_left(self) -> int:
        """The most tokens that any of the sequences may still draw."""
        return max((sequence.left for sequence in self.sequences), default=0)

    @property
    def details_per_step(self) -> int:
        """How many tokens and alternatives the sequences report for one token each."""
        return sum(sequence.details_per_token for sequence in self.sequences)

    def check(self, sequence: Sequence) -> None:
        """Checks that a sequence can be added.

        Raises:
            TokenError: It has a token that is not in the vocabulary.
        """
        self._slots.check(sequence.slot)

    def add(self, sequences: Collection[Sequence]) -> None:
        """Adds sequences from the next step on; see `replace`."""
        self.replace((), sequences)

    def remove(self, sequences: Collection[Sequence]) -> None:
        """Removes sequences that have not ended; see `replace`."""
        self.replace(sequences, ())

    def replace(self, leaving: Collection[Sequence], joining: Collection[Sequence]) -> None:
        """Removes some sequences and adds others, which costs no more than one of the two.

        Args:
            leaving: Sequences to remove. Each may be added again, here or to another batch of
                the network. Those that have ended leave by themselves.
            joining: Sequences to add; with those that stay, at most MAX_SEQUENCES.

        Raises:
            TokenError: A sequence has a token that is not in the vocabulary; nothing has changed
                then.
        """
        leaving = self._ended.union(leaving)
        self._slots.replace({each.slot for each in leaving}, [each.slot for each in joining])
        self._rows = [each for each in self._rows if each not in leaving]
        self._rows += joining
        self._ended.clear()

    def step(self, tokens: int) -> list[tuple[Sequence, Piece | BaseException]]:
        """Draws a chunk of tokens for every sequence and turns them into text.

        Args:
            tokens: How many to draw at most, for each; never more than the longest sequence needs.

        Returns:
            Each sequence with its next piece. It ends with a piece that has a result, or with an
            error, which concerns no other sequence.
        """
        if self._ended:
            self.replace((), ())
        chunk = self._slots.decode(min(tokens, self.max_left))
        pieces: list[tuple[Sequence, Piece | BaseException]] = []
        for row, sequence in enumerate(self._rows):
            piece = _take(sequence, chunk, row)
            if isinstance(piece, BaseException) or piece.result is not None:
                self._ended.add(sequence)
            pieces.append((sequence, piece))
        return pieces


def _take(sequence: Sequence, chunk: Chunk, row: int) -> Piece | BaseException:
    try:
        return sequence.take(chunk, row)
    except BaseException as error:  # the panic of a package in Rust is no Exception
        return error
