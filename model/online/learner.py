"""`Learner` learns from a stream: every piece is predicted first, and only then learned.

The scores of a piece come from weights that have seen nothing of it, so their mean over a stream
is an honest measure of the learner (Dawid, "Present position and potential developments: some
personal views. Statistical theory: the prequential approach", 1984). A window of tokens is
scored, then learned from in one update: truncated backpropagation through time (Williams and Peng,
1990) from the state that is carried from window to window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from treadle.model.config import DataConfig, OptimizerConfig, TrainConfig
from treadle.model.enums import Schedule
from treadle.model.errors import TrainingError
from treadle.model.model import Model
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.precision import check_learns
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.online.config import LearningConfig
from treadle.model.online.sequence import LearnedTotals, LearningSequence
from treadle.model.online.weights import OnlineWeights
from treadle.model.scoring.scores import Details, PieceScore
from treadle.model.scoring.stream_scorer import StreamMark, StreamScorer
from treadle.model.scoring.token_score import TokenScore
from treadle.model.training_record import TrainingRecord

_BEFORE = "; before that: "
"""Stands between the sessions that a training record lists."""

_MOST_SESSIONS = 4
"""The latest sessions that a training record lists, next to the run that the model began with."""

_LEFT_OUT = "sessions that are not listed here"


@dataclass(frozen=True)
class _Mark:
    """What is kept of a session, besides the weights, to come back to it."""

    stream: StreamMark
    totals: LearnedTotals


class Learner:
    """A session's own copy of a model, which predicts a stream and learns from it.

    The model itself is only read. Scores and weights are the same bits for the same model, pieces
    and settings, whatever else runs. An error in `feed` leaves the session in the middle of a
    piece: `roll_back` and `take_back` are then the only methods that work.
    """

    def __init__(
        self,
        model: Model,
        config: LearningConfig | None = None,
        details: Details | None = None,
        *,
        keep_tokens: bool = True,
        threads: int = 1,
    ) -> None:
        """Copies a model.

        Args:
            model: The model to begin with.
            config: How to learn; None: the defaults.
            details: What to report of every scored token besides its log-probability; None:
                nothing.
            keep_tokens: Whether a PieceScore holds its tokens.
            threads: Threads that an update may use; they do not change the result.

        Raises:
            ConfigError: The policy is UNKNOWN and the model has no unknown token; or the model is
                viewed in another precision than FP32, in which nothing learns.
        """
        check_learns(model.precision, "Learner")
        self._model = model
        self._config = config or LearningConfig()
        self._weights = OnlineWeights(model.parameters, self._config, Pool(threads))
        network = TrainedNetwork(
            model.network,
            model.tokenizer,
            self._weights.parameters,
            model.default_context,
            packed=self._weights.packed,
        )
        details = details or Details()
        start = network.beginning()
        self._sequence = LearningSequence(
            network, self._weights, self._config.window, start, details
        )
        self._stream = StreamScorer(
            network,
            details,
            self._config.unknown_policy,
            start,
            keep_tokens=keep_tokens,
            sequence=self._sequence,
        )
        self._snapshot = self._mark()
        self._unit = self._snapshot
        self._in_piece = False

    @property
    def updates(self) -> int:
        """Updates made to the weights so far."""
        return self._weights.updates

    @property
    def learned(self) -> LearnedTotals:
        """Totals over all that the weights have learned since the model."""
        return self._sequence.totals

    @property
    def is_open(self) -> bool:
        """Whether a text or item has begun that is not ended yet."""
        return self._stream.is_open

    @property
    def piece_token_count(self) -> int:
        """Tokens scored so far of the piece that is being fed."""
        return self._stream.piece_token_count

    def take_tokens(self) -> tuple[TokenScore, ...]:
        """Returns the tokens of the piece that is being fed which are scored by now.

        They are handed over: neither the next call nor the piece's score has them again.
        """
        return self._stream.take_tokens()

    def feed(self, text: str, end: bool = False, learn: bool = True) -> Iterator[PieceScore | None]:
        """Scores the next piece, and learns from it window after window, in short steps.

        Each window of the piece, of `config.window` tokens except for the last one, is scored with
        the weights that have learned everything before it. With a learning rate of 0 no window is
        learned from, and the scores are those of `Model.score`.

        Args:
            text: The next text, of any length.
            end: Whether the text or item ends here: text held back is then tokenized, of layout
                LINES the end token is added, and what follows begins a new text or item.
            learn: False: only score the piece, and continue from it.

        Yields:
            None after every step, one window's scoring or learning; at last the score.

        Raises:
            UnknownSymbolError: A symbol is unknown and the policy is ERROR.
            ConfigError: Too many characters would be held back; see `IncrementalEncoder`.
            TrainingError: The learning rate is too large: the loss, a gradient, a weight or a score
                is not a finite number.
        """
        self._check_between_pieces()
        self._in_piece = True
        self._sequence.learns = learn and self._config.rate > 0
        for scored in self._stream.feed(text, end):
            if scored is not None:
                self._sequence.learn()
                self._in_piece = False
            yield scored

    def snapshot(self) -> None:
        """Keeps everything as it is now, in place of the last snapshot.

        Raises:
            TrainingError: The session is in the middle of a piece.
        """
        self._check_between_pieces()
        self._weights.snapshot()
        self._snapshot = self._mark()

    def roll_back(self) -> None:
        """Goes back to the last snapshot, or to the beginning if there is no snapshot.

        What follows is then scored and learned bit for bit as it was after that snapshot, which
        stays: the session can go back to it again.
        """
        self._weights.roll_back()
        self._restore(self._snapshot)

    def begin_unit(self) -> None:
        """Makes `take_back` return to this point.

        Raises:
            TrainingError: The session is in the middle of a piece.
        """
        self._check_between_pieces()
        self._weights.begin_unit()
        self._unit = self._mark()

    def take_back(self, error: Exception | None = None) -> None:
        """Goes back to the last call of `begin_unit`; the snapshot stays what it is.

        What follows is scored and learned bit for bit as if nothing had come since. Text that
        was held back then is dropped if it caused the error: it would fail again.

        Args:
            error: The error since then, if there was one.
        """
        self._weights.take_back()
        self._restore(self._unit, error)

    def publish(self) -> Model:
        """Returns a model with the weights as they are now, which shares nothing with the session.

        Raises:
            TrainingError: The session is in the middle of a piece.
        """
        self._check_between_pieces()
        return self._model_of(self._weights.copied())

    def current(self) -> Model:
        """Returns a model with the weights as they are now, to store it before anything changes.

        Its parameters are the session's own, which saves a copy: later updates change them.

        Raises:
            TrainingError: The session is in the middle of a piece.
        """
        self._check_between_pieces()
        return self._model_of(self._weights.parameters)

    def _model_of(self, parameters: Parameters) -> Model:
        """Returns a model with some parameters and the record of what they have learned."""
        model = self._model
        record = self._record()
        return Model(model.network, model.tokenizer, parameters, record, model.default_context)

    def _mark(self) -> _Mark:
        return _Mark(self._stream.mark(), self._sequence.totals)

    def _restore(self, mark: _Mark, error: Exception | None = None) -> None:
        # First what was scored and not learned yet is dropped: the stream would learn it.
        self._sequence.rewind(mark.totals)
        self._stream.restore(mark.stream, error)
        self._in_piece = False

    def _check_between_pieces(self) -> None:
        """Refuses what cannot be done in the middle of a piece.

        Raises:
            TrainingError: A piece failed, or not all steps of it were taken.
        """
        if self._in_piece:
            raise TrainingError(
                "the session stopped in the middle of a piece: roll it back before you continue"
            )

    def _record(self) -> TrainingRecord:
        """Returns the model's own record, continued with what was learned."""
        base = self._model.training
        learned = self.learned
        session = (
            f"learned online from {learned.tokens:,} tokens in {self.updates:,} updates "
            f"({self._config})"
        )
        steps = self.updates
        tokens_seen = learned.tokens
        elapsed_s = learned.seconds
        if base is not None:
            steps += base.weights_step
            tokens_seen += base.tokens_seen
            elapsed_s += base.elapsed_s
        return TrainingRecord(
            config=self._as_run() if base is None else base.config,
            steps=steps,
            tokens_seen=tokens_seen,
            train_loss=learned.nats / learned.tokens if learned.tokens else float("nan"),
            # An earlier validation loss was not measured with these weights.
            valid_loss=None,
            elapsed_s=elapsed_s,
            ended_by=session if base is None else _history(session, base.ended_by),
            weights_step=steps,
        )

    def _as_run(self) -> TrainConfig:
        """Returns the session's settings as those of a run, for a model without a record."""
        config = self._config
        model = self._model
        return TrainConfig(
            tokenizer=model.tokenizer.config,
            data=DataConfig(layout=model.layout, batch_size=1, window=config.window),
            network=model.network,
            optimizer=OptimizerConfig(
                kind=config.optimizer,
                learning_rate=config.rate or None,
                schedule=Schedule.CONSTANT,
                clip_norm=config.clip_norm,
            ),
        )


def _history(session: str, before: str) -> str:
    """Returns the history of a model: the last few sessions, and the run that it began with."""
    steps = [session, *before.split(_BEFORE)]
    # Published again and again, it would grow without end.
    if len(steps) > _MOST_SESSIONS + 2:
        steps = [*steps[:_MOST_SESSIONS], _LEFT_OUT, steps[-1]]
    return _BEFORE.join(steps)
