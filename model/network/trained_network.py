"""`TrainedNetwork` holds what computing with a network needs: settings, tokenizer and parameters.

Generation, scoring, online learning and evaluation take one. `treadle.model.Model` adds what a
user needs on top: the model file, the training record, the novelty index.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from treadle.model.enums import CorpusLayout, InferencePrecision, Softmax, UnknownPolicy
from treadle.model.errors import StateError
from treadle.model.network.packed_weights import PackedWeights
from treadle.model.network.session_state import SessionState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from treadle.kernels import structs
    from treadle.model.config import NetworkConfig
    from treadle.model.network.parameters import Parameters
    from treadle.model.network.shape import Shape
    from treadle.model.tokenizers.base import Tokenizer

_MOST_DRAWS = 1 << 63
"""No text is longer; a state with more draws was not made by a model."""

_HASHED_BYTES = 1 << 21
"""Bytes of the parameters that are hashed in one step."""


class TrainedNetwork:
    """A network with its tokenizer and its parameters, ready to compute with.

    It is safe to use from many threads at once. Its parameters must not change after the first
    use of `weights`, unless the caller passes `packed` and packs the parameters again.
    """

    def __init__(
        self,
        config: NetworkConfig,
        tokenizer: Tokenizer,
        parameters: Parameters,
        default_context: int = 0,
        packed: structs.Weights | None = None,
    ) -> None:
        """Combines the parts of a network.

        Args:
            config: The network's settings.
            tokenizer: Turns text into tokens and back; also holds the corpus layout.
            parameters: The network's numbers.
            default_context: The token that a text follows where there is no prompt (layout TEXT).
            packed: The same parameters packed for inference in FP32, the only precision then; None:
                they are packed at first use.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.parameters = parameters
        self.default_context = default_context
        self.precision = InferencePrecision.FP32
        """The numbers that matrix products multiply; `at` gives another."""
        self._packed = PackedWeights(parameters, packed)
        self._hash: list[bytes] = []  # shared by all views
        self._base: TrainedNetwork | None = None
        self._views: WeakValueDictionary[InferencePrecision, TrainedNetwork]
        self._views = WeakValueDictionary()
        self._making_view = threading.Lock()

    def at(self, precision: InferencePrecision) -> TrainedNetwork:
        """Returns this network as a view that computes in the given precision.

        Parameters, tokenizer and content hash are the same objects. States are float32 in every
        precision: a view reads the states of another, and continues from them in its own. The
        kernels of INT8 are others than those of FP32, and are compiled when they are first called
        in a process without a cache.

        Args:
            precision: The numbers that matrix products multiply.

        Returns:
            The same view at every call, as long as it is in use.

        Raises:
            ValueError: The weights were packed by the caller, who may change them, and `precision`
                is not FP32.
        """
        base = self._base or self
        if precision is base.precision:
            return base
        if not base._packed.fixed:
            raise ValueError(f"weights that learn are in FP32 only, not in {precision.name}")
        with base._making_view:
            view = base._views.get(precision)
            if view is None:
                view = copy.copy(base)
                view._base = base
                view.precision = precision
                base._views[precision] = view
            return view

    @property
    def shape(self) -> Shape:
        """The network's sizes."""
        return self.parameters.shape

    @property
    def layout(self) -> CorpusLayout:
        """How the corpus was cut into sequences."""
        return self.tokenizer.layout

    @property
    def vocabulary_size(self) -> int:
        """Tokens in the vocabulary, special ones included."""
        return self.tokenizer.vocabulary_size

    @property
    def weights(self) -> structs.Weights:
        """The parameters as kernels read them in this precision, packed once; never written to."""
        return self._packed.get(self.precision)

    @property
    def content_hash(self) -> bytes:
        """SHA-256 of all that determines results: settings, tokenizer and parameters."""
        for _ in self.hash_in_steps():
            pass
        return self._hash[0]

    def hash_in_steps(self) -> Iterator[None]:
        """Computes `content_hash` in steps of a few milliseconds, if that is not done yet."""
        if not self._hash:  # several threads may compute the same
            network = self.config.to_json()
            if self.config.softmax is Softmax.FULL:  # the hash of models from before there were two
                del network["softmax"], network["softmax_clusters"]
            settings = {
                "network": network,
                "tokenizer": self.tokenizer.to_json(),
                "default_context": self.default_context,
            }
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            numbers = self.parameters.flat.data.cast("B")  # without a copy of all numbers
            for start in range(0, numbers.nbytes, _HASHED_BYTES):
                digest.update(numbers[start : start + _HASHED_BYTES])
                yield
            self._hash.append(digest.digest())

    def beginning(self, state: SessionState | None = None) -> SessionState:
        """Returns the state that a text begins with: the given one, or that of a new item or text.

        A new text of layout TEXT begins with no token at all (-1): a prompt's first token is
        then read as it is.

        Args:
            state: The state after earlier text, of any precision, which moves to that of this
                network; None: a new item or text begins.
        """
        begin = -1 if self.tokenizer.begin is None else self.tokenizer.begin
        return replace(state or SessionState.fresh(self.shape, begin), precision=self.precision)

    def state_bytes(self, state: SessionState, key: bytes = b"") -> bytes:
        """Returns a state as bytes; see `SessionState.to_bytes`.

        Args:
            state: A state that this network has made.
            key: Authenticates the state; empty: anybody can make a valid state.
        """
        return state.to_bytes(self.shape, self.content_hash, key)

    def read_state(self, data: bytes, key: bytes = b"") -> SessionState:
        """Reads a state that this network has made; see `SessionState.from_bytes`.

        Args:
            data: The state's bytes.
            key: The key that the state was made with.

        Returns:
            The state.

        Raises:
            StateError: The bytes are damaged, or were made without this key.
            ForeignStateError: Another model made them.
        """
        state = SessionState.from_bytes(data, self.shape, self.content_hash, key)
        begins_late = state.token < 0 and self.tokenizer.begin is not None
        stream = self.tokenizer.stream(state.held)
        strange = stream.push([]) != "" or stream.held != state.held  # no text ends with that
        if (
            strange
            or begins_late
            or state.token == self.tokenizer.end
            or state.position >= _MOST_DRAWS
        ):
            raise StateError("state was not made by this model: begin without one")
        return state


def default_context(tokenizer: Tokenizer, fallback: int) -> int:
    """Returns the token that a text follows by default: an item's begin, else a line's end.

    Args:
        tokenizer: The model's tokenizer.
        fallback: The token for a vocabulary that has neither.
    """
    if tokenizer.begin is not None:
        return tokenizer.begin
    newline = tokenizer.encode("\n", UnknownPolicy.SKIP)
    return int(newline[0]) if newline.size else fallback
