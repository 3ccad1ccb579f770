"""`TokenTrie` lets an automaton read all tokens at once, shared beginnings only once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]


class _Level(NamedTuple):
    """The beginnings of one length."""

    parents: npt.NDArray[np.int64]
    """(P,), the index of each one among the beginnings shorter by a byte."""
    bytes: npt.NDArray[np.int64]
    """(P,), the last byte of each."""
    places: npt.NDArray[np.int64]
    """(N,), the indices of beginnings that are a whole token, which may repeat."""
    tokens: npt.NDArray[np.int64]
    """(N,), those tokens."""


class TokenTrie:
    """The trie of all tokens' bytes.

    Args:
        texts: The bytes of each token; a token that has none is never read.
    """

    def __init__(self, texts: list[bytes]) -> None:
        self._levels: list[_Level] = []
        nodes: dict[bytes, int] = {b"": 0}
        left = [token for token, text in enumerate(texts) if text]
        length = 0
        while left:
            length += 1
            begins = [texts[token][:length] for token in left]
            below = {begin: place for place, begin in enumerate(dict.fromkeys(begins))}
            ends = [
                (below[begin], token)
                for token, begin in zip(left, begins, strict=True)
                if len(texts[token]) == length
            ]
            self._levels.append(
                _Level(
                    np.array([nodes[begin[:-1]] for begin in below], np.int64),
                    np.array([begin[-1] for begin in below], np.int64),
                    np.array([place for place, _ in ends], np.int64),
                    np.array([token for _, token in ends], np.int64),
                )
            )
            nodes = below
            left = [token for token in left if len(texts[token]) > length]
        self.size = sum(level.bytes.size for level in self._levels)
        """How many beginnings there are."""

    def read(self, moves: Ints, states: Ints, V: int) -> Ints:
        """Lets an automaton read every token from some of its states.

        Args:
            moves: (S, 256), the state after a byte; -1 for none.
            states: (N,), where to begin.
            V: The vocabulary's size.

        Returns:
            The state after each token, (N, V); -1 for none.
        """
        out = np.full((V, states.size), -1, np.int32)
        width = moves.shape[1]
        # Row 0 stands for state -1, from which no byte leads anywhere.
        flat = np.concatenate((np.full(width, -1, np.int32), moves.reshape(-1)))
        here = states[None, :].astype(np.int64)
        for level in self._levels:
            places = here[level.parents]
            places += 1
            places *= width
            places += level.bytes[:, None]
            reached = flat.take(places)
            out[level.tokens] = reached[level.places]
            here = reached.astype(np.int64)
        return np.ascontiguousarray(out.T)
