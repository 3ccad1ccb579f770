"""A trained network with its tokenizer: what is stored, generated from and scored with."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.kernels import structures
from treadle.model import model_file
from treadle.model.config import CorpusLayout, NetworkConfig, SamplingConfig, UnknownPolicy
from treadle.model.errors import StateError
from treadle.model.generation.generate import Preparation, pieces
from treadle.model.generation.novelty import NoveltyIndex
from treadle.model.generation.sequence import TOKENS, Piece, Wanted
from treadle.model.network.parameters import Parameters
from treadle.model.network.session_state import SessionState
from treadle.model.network.workspace import pack_for_inference
from treadle.model.scoring.scores import PLAIN, Details, TextScore
from treadle.model.scoring.text_scorer import TextScorer
from treadle.model.scratch_files import Require, anything
from treadle.model.tokenizers.build import Tokenizer
from treadle.model.training_record import TrainingRecord

Ints = npt.NDArray[np.int32]


_MOST_DRAWS = 1 << 63
"""No text is longer; a state that says so was made by hand."""


class Model:
    """A trained network, its tokenizer and how it was trained.

    Reading from it (`stream`, `generate`, `score`) is safe from many threads at once; its
    parameters must not change after the first of these calls.
    """

    def __init__(
        self,
        network: NetworkConfig,
        tokenizer: Tokenizer,
        parameters: Parameters,
        training: TrainingRecord | None = None,
        default_context: int = 0,
        novelty: NoveltyIndex | None = None,
    ) -> None:
        """Put a model together.

        Args:
            network: the network's settings.
            tokenizer: how it reads text; tells the corpus layout too.
            parameters: its numbers.
            training: how it was trained; None where it was imported.
            default_context: the token it goes on from where there is no prompt (layout TEXT).
            novelty: tells what of a text is new; None where it was trained without.
        """
        self.network = network
        self.tokenizer = tokenizer
        self.parameters = parameters
        self.training = training
        self.default_context = default_context
        self.novelty = novelty
        self._packing = threading.Lock()
        self._packed: structures.Weights | None = None
        self._hash = b""

    @property
    def layout(self) -> CorpusLayout:
        """How the corpus was cut."""
        return self.tokenizer.layout

    @property
    def vocabulary_size(self) -> int:
        """Tokens in the vocabulary, special ones included."""
        return self.tokenizer.vocabulary_size

    @property
    def parameter_count(self) -> int:
        """How many numbers were trained."""
        return self.parameters.shape.parameter_count

    @property
    def content_hash(self) -> bytes:
        """SHA-256 of what decides on its results: the network, the tokenizer and the numbers."""
        if not self._hash:
            settings = {
                "network": self.network.to_json(),
                "tokenizer": self.tokenizer.to_json(),
                "default_context": self.default_context,
            }
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            digest.update(self.parameters.flat.data)  # without a copy of all numbers
            self._hash = digest.digest()
        return self._hash

    def beginning(self, state: SessionState | None = None) -> SessionState:
        """Return where a text begins: at a state, or at a new item or text.

        A new text of layout TEXT begins with no token at all (-1): a prompt's first token is
        then read as it is.
        """
        begin = -1 if self.tokenizer.begin is None else self.tokenizer.begin
        return state or SessionState.fresh(self.parameters.shape, begin)

    def state_bytes(self, state: SessionState, key: bytes = b"") -> bytes:
        """Return a state as bytes; see `SessionState.to_bytes`."""
        return state.to_bytes(self.parameters.shape, self.content_hash, key)

    def read_state(self, data: bytes, key: bytes = b"") -> SessionState:
        """Read a state that this model has made; see `SessionState.from_bytes`.

        Raises:
            StateError: the bytes are damaged, or were made without this key.
            ForeignStateError: another model made them.
        """
        state = SessionState.from_bytes(data, self.parameters.shape, self.content_hash, key)
        begins_late = state.token < 0 and self.tokenizer.begin is not None
        stream = self.tokenizer.stream(state.held)
        strange = stream.push([]) != "" or stream.held != state.held  # no text ends with that
        if (
            strange
            or begins_late
            or state.token == self.tokenizer.end
            or state.position >= _MOST_DRAWS
        ):
            raise StateError("state is none that this model has made: begin without one")
        return state

    @property
    def weights(self) -> structures.Weights:
        """The weights as kernels read them, packed once; never written to."""
        with self._packing:
            if self._packed is None:
                self._packed = pack_for_inference(self.parameters)
            return self._packed

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model file.

        Raises:
            CheckpointError: it is no model file of this format, or it is damaged.
            OSError: it cannot be read.
        """
        header, named, novelty = model_file.read(path)
        shape = header.shape
        return cls(
            header.network,
            header.tokenizer,
            Parameters.from_named(shape, named),
            header.training,
            header.default_context,
            novelty,
        )

    def save(self, path: str | os.PathLike[str], require: Require = anything) -> None:
        """Write one safetensors file, by a temporary name beside it, synced and renamed.

        Args:
            path: where to; an existing file is replaced whole or not at all.
            require: asked before bytes are written.

        Raises:
            OSError: the disk failed or is full, or `require` refused.
        """
        header = model_file.ModelHeader(
            self.network, self.tokenizer, self.training, self.default_context
        )
        model_file.write(path, header, self.parameters.named(), self.novelty, require)

    def stream(
        self,
        prompt: str = "",
        sampling: SamplingConfig | None = None,
        *,
        state: SessionState | None = None,
        index: int = 0,
        wanted: Wanted = TOKENS,
        **settings: Any,
    ) -> Iterator[Piece]:
        """Generate text piece by piece.

        Args:
            prompt: the text to go on from; empty: a new item, or a new line of text.
            sampling: how to draw and when to stop; None: the defaults.
            state: what came before the prompt; None: nothing.
            index: which of the texts of a seed: each is drawn on its own.
            wanted: what to tell beside the text.
            **settings: fields of `SamplingConfig` that win over `sampling`.

        Returns:
            An iterator of pieces, one short kernel call each; it may be dropped at any time.
            While a long prompt is read, pieces are empty.

        Raises:
            ConfigError: a setting is out of its range.
            UnknownSymbolError: the prompt has a symbol that the vocabulary lacks.
        """
        sampling = replace(sampling or SamplingConfig(), **settings)
        preparation = Preparation(self, prompt, sampling, state)
        for _ in preparation.encode():  # so that what is wrong with it is known before a piece
            pass
        return pieces(self, preparation, index, wanted)

    def generate(
        self, prompt: str = "", sampling: SamplingConfig | None = None, **settings: Any
    ) -> str:
        """Generate text; arguments and errors as for `stream`."""
        return "".join(piece.text for piece in self.stream(prompt, sampling, **settings))

    def score(
        self,
        text: str,
        context: str = "",
        unknown_policy: UnknownPolicy | None = None,
        *,
        details: Details = PLAIN,
        state: SessionState | None = None,
    ) -> TextScore:
        """Score a text: the log-probability of each of its tokens.

        Args:
            text: what to score. Layout LINES: one item; its end is scored as well.
            context: what it follows; read, not scored. Without one, layout TEXT cannot score
                the first token.
            unknown_policy: what to do with unknown symbols; None: the model's own policy.
            details: what is wanted beside log-probabilities.
            state: what the context, or the text, follows; None: a new item or text.

        Raises:
            UnknownSymbolError: a symbol is not in the vocabulary.
            ConfigError: the policy needs an unknown token and the model has none.
        """
        *_, score = self.scoring(text, context, unknown_policy, details=details, state=state)
        assert score is not None
        return score

    def scoring(
        self,
        text: str,
        context: str = "",
        unknown_policy: UnknownPolicy | None = None,
        *,
        details: Details = PLAIN,
        state: SessionState | None = None,
    ) -> Iterator[TextScore | None]:
        """Score a text in short steps, so that a long one can be dropped or take turns.

        Arguments and errors are those of `score`.

        Yields:
            None after every step, and the score at the end.
        """
        scorer = TextScorer(self, unknown_policy, details, state)
        yield from scorer.read_context(context)
        tokens = yield from scorer.encode(text)
        yield from scorer.score(tokens)


def default_context(tokenizer: Tokenizer, fallback: int) -> int:
    """Return the token that text begins after: an item's begin, else a line's end.

    Args:
        tokenizer: of the model.
        fallback: for a vocabulary that has neither.
    """
    if tokenizer.begin is not None:
        return tokenizer.begin
    newline = tokenizer.encode("\n", UnknownPolicy.SKIP)
    return int(newline[0]) if newline.size else fallback
