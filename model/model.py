"""`Model` is a trained network for users: it loads, saves, generates and scores."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from warnings import warn
from weakref import WeakValueDictionary

from treadle.kernels import structs
from treadle.model import model_file
from treadle.model.config import NetworkConfig, SamplingConfig
from treadle.model.enums import CorpusLayout, InferencePrecision, UnknownPolicy
from treadle.model.generation.generate import PreparedPrompt
from treadle.model.generation.novelty import NoveltyIndex
from treadle.model.generation.output import TOKENS, OutputOptions, Piece
from treadle.model.network.parameters import Parameters
from treadle.model.network.session_state import SessionState
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.scoring.scores import PLAIN, Details, TextScore
from treadle.model.scoring.text_scorer import TextScorer
from treadle.model.scratch_files import Require, anything
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.training_record import TrainingRecord


class Model:
    """A trained network with the record of its training and its novelty index.

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
        """Combines the parts of a model.

        Args:
            network: The network's settings.
            tokenizer: Turns text into tokens and back; also holds the corpus layout.
            parameters: The network's numbers.
            training: The record of its training; None if it was imported.
            default_context: The token that a text follows where there is no prompt (layout TEXT).
            novelty: Finds which parts of a text are new; None if it was trained without.
        """
        self.trained = TrainedNetwork(network, tokenizer, parameters, default_context)
        """What generation, scoring and online learning compute with."""
        self.training = training
        self.novelty = novelty
        self._base: Model | None = None
        self._views: WeakValueDictionary[InferencePrecision, Model] = WeakValueDictionary()
        self._making_view = threading.Lock()

    def at(self, precision: InferencePrecision) -> Model:
        """Returns this model as a view that generates and scores in the given precision.

        Everything else is shared: parameters, tokenizer, record, novelty index, content hash. So
        files and exports are those of this model. `Learner` and `Trainer` refuse a view. See
        `TrainedNetwork.at`.

        Args:
            precision: The numbers that matrix products multiply.

        Returns:
            The same view at every call, as long as it is in use; it keeps this model in memory.
        """
        base = self._base or self
        if precision is base.precision:
            return base
        with base._making_view:
            view = base._views.get(precision)
            if view is None:
                view = copy.copy(base)
                view._base = base
                view.trained = base.trained.at(precision)
                base._views[precision] = view
            return view

    @property
    def precision(self) -> InferencePrecision:
        """The numbers that matrix products multiply."""
        return self.trained.precision

    @property
    def network(self) -> NetworkConfig:
        """The network's settings."""
        return self.trained.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns text into tokens and back."""
        return self.trained.tokenizer

    @property
    def parameters(self) -> Parameters:
        """The network's numbers."""
        return self.trained.parameters

    @property
    def default_context(self) -> int:
        """The token that a text follows where there is no prompt (layout TEXT)."""
        return self.trained.default_context

    @property
    def layout(self) -> CorpusLayout:
        """How the corpus was cut into sequences."""
        return self.trained.layout

    @property
    def vocabulary_size(self) -> int:
        """Tokens in the vocabulary, special ones included."""
        return self.trained.vocabulary_size

    @property
    def parameter_count(self) -> int:
        """How many numbers were trained."""
        return self.trained.shape.parameter_count

    @property
    def content_hash(self) -> bytes:
        """SHA-256 of all that determines results: settings, tokenizer and parameters."""
        return self.trained.content_hash

    @property
    def weights(self) -> structs.Weights:
        """The parameters as kernels read them; see `TrainedNetwork.weights`."""
        return self.trained.weights

    def beginning(self, state: SessionState | None = None) -> SessionState:
        """Returns the state that a text begins with.

        Args:
            state: The state after earlier text; None: a new item or text begins.
        """
        return self.trained.beginning(state)

    def state_bytes(self, state: SessionState, key: bytes = b"") -> bytes:
        """Returns a state as bytes, which `read_state` reads.

        Args:
            state: A state that this model has made.
            key: Authenticates the state; empty: anybody can make a valid state.
        """
        return self.trained.state_bytes(state, key)

    def read_state(self, data: bytes, key: bytes = b"") -> SessionState:
        """Returns a state that this model has made, from its bytes.

        Args:
            data: The bytes that `state_bytes` returned.
            key: The key given to `state_bytes`.

        Raises:
            StateError: The bytes are damaged, or were made without this key.
            ForeignStateError: Another model made them.
        """
        return self.trained.read_state(data, key)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Reads a model file.

        Args:
            path: The file.

        Returns:
            The model.

        Raises:
            LoadError: The file is not a model file of this format, or it is damaged.
            OSError: The file cannot be read.
        """
        header, named, novelty = model_file.read(path)
        return cls(
            header.network,
            header.tokenizer,
            Parameters.from_named(header.shape, named),
            header.training,
            header.default_context,
            novelty,
        )

    def save(self, path: str | os.PathLike[str], require: Require = anything) -> None:
        """Writes a model file: a temporary file next to it is written, synced and renamed.

        The file holds the float32 weights, in whatever precision the model is viewed.

        Args:
            path: The file; an existing one is replaced as a whole or not at all.
            require: Called before bytes are written.

        Raises:
            OSError: The disk failed or is full, or `require` refused.
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
        output: OutputOptions = TOKENS,
        **settings: Any,
    ) -> Iterator[Piece]:
        """Generates text piece by piece.

        Args:
            prompt: The text to continue; empty: a new item, or a new line of text.
            sampling: How to draw tokens and when to stop; None: the defaults.
            state: The state before the prompt; None: that of a new text.
            index: Which of the texts of a seed to generate, from 0.
            output: What to report in addition to the text.
            **settings: Fields of `SamplingConfig` that override those of `sampling`.

        Returns:
            An iterator of pieces, one short kernel call each; it may be dropped at any time. While
            a long prompt is read, pieces are empty.

        Raises:
            ConfigError: A setting is out of its range.
            UnknownSymbolError: The prompt has a symbol that the vocabulary lacks.
            TypeError: Both `output` and its old name `wanted` are given.
        """
        if "wanted" in settings:
            warn("the argument wanted is now called output", DeprecationWarning, stacklevel=2)
            if output is not TOKENS:
                raise TypeError("wanted is the old name of output: give only one of them")
            output = settings.pop("wanted")
        sampling = replace(sampling or SamplingConfig(), **settings)
        prepared = PreparedPrompt(self.trained, prompt, sampling, state)
        for _ in prepared.encode():  # so that errors of the prompt are raised here
            pass
        return prepared.stream(index, output)

    def generate(
        self, prompt: str = "", sampling: SamplingConfig | None = None, **settings: Any
    ) -> str:
        """Generates text.

        Args:
            prompt: The text to continue; empty: a new item, or a new line of text.
            sampling: How to draw tokens and when to stop; None: the defaults.
            **settings: Fields of `SamplingConfig` that override those of `sampling`, and the
                arguments `state` and `index` of `stream`.

        Returns:
            The new text, without the prompt.

        Raises:
            ConfigError: A setting is out of its range.
            UnknownSymbolError: The prompt has a symbol that the vocabulary lacks.
        """
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
        """Scores a text: the log-probability of each of its tokens.

        Args:
            text: The text to score. Layout LINES: one item; its end is scored as well.
            context: The text before it, which is read but not scored. Without a context, layout
                TEXT cannot score the first token.
            unknown_policy: What to do with unknown symbols; None: the model's own policy.
            details: What to report besides log-probabilities.
            state: The state before the context, or before the text; None: a new item or text.

        Returns:
            The log-probability of each token, and the sums.

        Raises:
            UnknownSymbolError: A symbol is not in the vocabulary.
            ConfigError: The policy needs an unknown token and the model has none.
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
        """Scores a text in short steps, between which the caller can do other work or stop.

        Args:
            text: As for `score`, and so are the other arguments.
            context: The text before it, which is read but not scored.
            unknown_policy: What to do with unknown symbols; None: the model's own policy.
            details: What to report besides log-probabilities.
            state: The state before the context, or before the text; None: a new item or text.

        Yields:
            None after every step, and the score at the end.

        Raises:
            UnknownSymbolError: A symbol is not in the vocabulary.
            ConfigError: The policy needs an unknown token and the model has none.
        """
        scorer = TextScorer(self.trained, unknown_policy, details, state)
        yield from scorer.read_context(context)
        tokens = yield from scorer.encode(text)
        yield from scorer.score(tokens)
