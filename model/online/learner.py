"""Learning from a stream: every piece is predicted first, and only then learned.

The scores of a piece are those that somebody gets who has seen nothing of it, so their mean over a
stream is an honest measure of the learner (Dawid, "Present position and potential developments:
some personal views. Statistical theory: the prequential approach", 1984). A window of tokens is
scored, then learned from in one update: truncated backpropagation through time (Williams and Peng,
1990) from the state that is carried from window to window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from treadle.model.config import DataConfig, OptimizerConfig, TrainConfig
from treadle.model.enums import Schedule
from treadle.model.errors import TrainingError
from treadle.model.model import Model
from treadle.model.network.parallel import Pool
from treadle.model.network.parameters import Parameters
from treadle.model.network.trained_network import TrainedNetwork
from treadle.model.online.config import LearningConfig
from treadle.model.online.sequence import LearningSequence, Learnt
from treadle.model.online.weights import OnlineWeights
from treadle.model.scoring.scores import Details, PieceScore
from treadle.model.scoring.stream_scorer import StreamMark, StreamScorer
from treadle.model.scoring.token_score import TokenScore
from treadle.model.training_record import TrainingRecord

_BEFORE = "; before that: "
_STEPS = 4
_LEFT_OUT = "sessions that are not listed here"


class Learner:
    """A session's own copy of a model, which predicts a stream and learns from it.

    The model itself is only ever read. Scores and weights are the same bits for the same model,
    pieces and settings, whatever else runs. An error in `feed` leaves the session halfway:
    `roll_back` and `take_back` are then all that it does.
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
            model: What to begin with.
            config: How to learn; None: the defaults.
            details: What is wanted of every scored token beside its log-probability; None: nothing.
            keep_tokens: Whether a PieceScore holds its tokens.
            threads: Threads that an update may use; they do not change the result.

        Raises:
            ConfigError: The policy is UNKNOWN and the model has no unknown token.
        """
        self._model = model
        self._config = config or LearningConfig()
        self._weights = OnlineWeights(model.parameters, self._config, Pool(threads))
        session = TrainedNetwork(
            model.network,
            model.tokenizer,
            self._weights.parameters,
            model.default_context,
            packed=self._weights.packed,
        )
        details = details or Details()
        self._sequence = LearningSequence(
            self._weights, self._config.window, model.tokenizer, model.beginning(), details
        )
        self._stream = _Stream(session, self._config, details, self._sequence, keep_tokens)
        self._kept = self._mark()
        self._unit = self._kept
        self._halfway = False

    @property
    def updates(self) -> int:
        """Updates behind the weights."""
        return self._weights.updates

    @property
    def learnt(self) -> Learnt:
        """What the weights have learned since the model."""
        return self._sequence.learnt

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
        """Scores the next piece, and learn from it window after window, in short steps.

        Each window of the piece, of `config.window` tokens but for the last one, is scored with
        the weights that have learned everything before it. With a learning rate of 0 no window is
        learned from, and the scores are those of `Model.score`.

        Args:
            text: The next text, of any length.
            end: Whether the text or item ends here: what waits to be made a token is taken, of
                layout LINES the end token too, and what follows begins again, after nothing.
            learn: False: only score it, and continue from it.

        Yields:
            None after every step, one window's scoring or learning; at last the score.

        Raises:
            UnknownSymbolError: A symbol is unknown and the policy is ERROR.
            ConfigError: Too many characters would wait; see `IncrementalEncoder`.
            TrainingError: The learning rate is too large: the loss, a gradient, a weight or a score
                is no finite number.
        """
        self._check_whole()
        self._halfway = True
        self._sequence.learns = learn and self._config.rate > 0
        for scored in self._stream.feed(text, end):
            if scored is not None:
                self._sequence.learn()
                self._halfway = False
            yield scored

    def snapshot(self) -> None:
        """Keeps everything as it is now, in place of the last snapshot.

        Raises:
            TrainingError: A piece was left halfway.
        """
        self._check_whole()
        self._weights.snapshot()
        self._kept = self._mark()

    def roll_back(self) -> None:
        """Goes back to the last snapshot, or to the beginning where there is none.

        What follows is then scored and learned bit for bit as it was after that snapshot, which
        stays to be gone back to again.
        """
        self._weights.roll_back()
        self._restore(self._kept)

    def begin_unit(self) -> None:
        """Makes `take_back` come back to here.

        Raises:
            TrainingError: A piece was left halfway.
        """
        self._check_whole()
        self._weights.guard()
        self._unit = self._mark()

    def take_back(self, error: Exception | None = None) -> None:
        """Goes back to where `begin_unit` was called last; the snapshot stays what it is.

        What follows is scored and learned bit for bit as if nothing had come since. Text that
        waited then is dropped where it is at fault: it would fail again.

        Args:
            error: What failed since.
        """
        self._weights.undo()
        self._restore(self._unit, error)

    def publish(self) -> Model:
        """Returns a model with the weights as they are now, which shares nothing with the session.

        Raises:
            TrainingError: A piece was left halfway.
        """
        return self._with(self._weights.copied)

    def current(self) -> Model:
        """Returns a model with the weights as they are now, to store it before anything changes.

        Its parameters are the session's own, which spares a copy: what is learned changes them.

        Raises:
            TrainingError: A piece was left halfway.
        """
        return self._with(lambda: self._weights.parameters)

    def _with(self, parameters: Callable[[], Parameters]) -> Model:
        self._check_whole()
        model = self._model
        return Model(
            model.network, model.tokenizer, parameters(), self._record(), model.default_context
        )

    def _mark(self) -> tuple[StreamMark, Learnt]:
        """What a snapshot holds next to the weights."""
        return self._stream.mark(), self._sequence.learnt

    def _restore(self, mark: tuple[StreamMark, Learnt], error: Exception | None = None) -> None:
        stream, learnt = mark
        self._sequence.forget()
        self._stream.restore(stream, error)
        self._sequence.learnt = learnt
        self._halfway = False

    def _check_whole(self) -> None:
        if self._halfway:
            raise TrainingError("a piece failed or was left halfway: roll the session back first")

    def _record(self) -> TrainingRecord | None:
        """How the weights came to be: what the model's own record says, and what was learned."""
        base, learnt, updates = self._model.training, self._sequence.learnt, self.updates
        told = f"learned online from {learnt.tokens:,} tokens in {updates:,} updates"
        told = f"{told} ({self._config})"
        steps = updates + (0 if base is None else base.weights_step)
        return TrainingRecord(
            config=self._as_run() if base is None else base.config,
            steps=steps,
            tokens_seen=learnt.tokens + (0 if base is None else base.tokens_seen),
            train_loss=learnt.nats / learnt.tokens if learnt.tokens else float("nan"),
            # Whatever was measured before was not measured with these weights.
            valid_loss=None,
            elapsed_s=learnt.seconds + (0.0 if base is None else base.elapsed_s),
            ended_by=told if base is None else _history(told, base.ended_by),
            weights_step=steps,
        )

    def _as_run(self) -> TrainConfig:
        """The settings on record for a model that was imported: those of the session."""
        config, model = self._config, self._model
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


def _history(told: str, before: str) -> str:
    """Returns what made a model: the last few sessions, and the run that it began with."""
    steps = [told, *before.split(_BEFORE)]
    if len(steps) > _STEPS + 2:  # published again and again, it would grow without end
        steps = [*steps[:_STEPS], _LEFT_OUT, steps[-1]]
    return _BEFORE.join(steps)


class _Stream(StreamScorer):
    """A stream that scores with a sequence of the session's."""

    def __init__(
        self,
        network: TrainedNetwork,
        config: LearningConfig,
        details: Details,
        sequence: LearningSequence,
        keep_tokens: bool,
    ) -> None:
        policy, begun = config.unknown_policy, network.beginning()
        super().__init__(network, details, policy, begun, keep_tokens=keep_tokens)
        self._sequence = sequence
