"""A run between two steps: all that it consists of, and how it is stored and taken up again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ConfigError, LoadError, TrainingError
from treadle.model.field_checks import MAX_UINT64, whole
from treadle.model.generation.novelty import NoveltyIndex, indexed_tokens, too_large
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.trained_network import default_context
from treadle.model.training import checkpoint
from treadle.model.training.auto.forecast import second_look, verdict
from treadle.model.training.metrics import Tally
from treadle.model.training.model_selection import Selection
from treadle.model.training.optimizer import Optimizer
from treadle.model.training.plan import Plan
from treadle.model.training.progress import Progress
from treadle.model.training.validation_plan import ValidationPlan, reserve, sample_tokens
from treadle.model.training_record import TrainingRecord

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig
    from treadle.model.data.batching import Batches
    from treadle.model.data.corpus import Corpus, TokenData
    from treadle.model.training.evaluation import Loss, Sample

Array = npt.NDArray[np.float32]

LOWER = "lower the learning rate"
"""The remedy for numbers that are none any more."""


class Run:
    """The whole state of a run."""

    def __init__(
        self, corpus: Corpus, config: TrainConfig, parameters: Parameters, batches: Batches
    ) -> None:
        """Put a run together at its beginning.

        Args:
            corpus: what is trained on.
            config: the settings as filled in.
            parameters: the initial weights, changed in place.
            batches: of the corpus, at their beginning.
        """
        self.corpus = corpus
        self.config = config
        self.parameters = parameters
        self.batches = batches
        self.optimizer = Optimizer(config.optimizer, parameters)
        self.plan = Plan(config, batches)
        self.selection = Selection(config)
        self.tally = Tally()
        self.carried: tuple[Array, Array] | None = None
        """The states that the next batch goes on from, (L, B, H) both; None: zeros."""
        self.baseline_loss: float | None = None
        """An n-gram's validation loss, for the record."""
        self.ended_by = ""
        """Why the run ended, in a sentence; empty while it has not."""
        self._fingerprint = ""

    def last_model(self) -> Model:
        """Return the model of the weights as they are now."""
        tally, steps = self.tally, self.optimizer.steps
        loss = math.nan if tally.last is None else tally.last.train_loss
        known = tally.valid_step == steps
        valid_loss, valid_tokens = (tally.valid_loss, tally.valid_tokens) if known else (None, 0)
        return self._model(self.parameters.flat, steps, loss, valid_loss, valid_tokens)

    def best_model(self) -> Model | None:
        """Return the model of the best weights; None before the first validation."""
        best, weights = self.selection.best, self.selection.weights
        if best is None or weights is None:
            return None
        return self._model(weights, best.step, best.train_loss, best.valid_loss, best.valid_tokens)

    def _model(
        self, weights: Array, step: int, train_loss: float, valid_loss: float | None,
        valid_tokens: int,
    ) -> Model:  # fmt: skip
        """A model of a copy of the weights that the run had at a step."""
        corpus = self.corpus
        parameters = Parameters(self.parameters.shape)
        parameters.flat[:] = weights
        record = TrainingRecord(
            config=self.config,
            steps=self.optimizer.steps,
            tokens_seen=self.tally.tokens,
            train_loss=train_loss,
            valid_loss=valid_loss,
            elapsed_s=self.tally.elapsed,
            ended_by=self.ended_by or "not ended yet",
            weights_step=step,
            valid_split=corpus.valid_split,
            test_split=corpus.test_split,
            baseline_loss=self.baseline_loss,
            valid_tokens=valid_tokens,
        )
        context = default_context(corpus.tokenizer, int(corpus.train.tokens[0]))
        return Model(self.config.network, corpus.tokenizer, parameters, record, context)

    def novelty_notices(self) -> tuple[str, ...]:
        """Return why there will be no novelty index though one was asked for, if so."""
        train = self.corpus.train
        reason = too_large(indexed_tokens(train.tokens, train.offsets))
        return (reason,) if reason and self.config.data.novelty_index else ()

    def novelty_index(self) -> NoveltyIndex | None:
        """Return the index of the training part; None where none was asked for, or none can be.

        It depends on the corpus alone: a run that goes on from its state makes the same one.
        """
        if not self.config.data.novelty_index or self.novelty_notices():
            return None
        train = self.corpus.train
        return NoveltyIndex.build(train.tokens, train.offsets, self.corpus.tokenizer)

    def progress(self, loss: Loss | None, sample: Sample | None, memory: int) -> Progress:
        """Return how far the run has come.

        Args:
            loss: of the validation that was done; None without one.
            sample: the text that was drawn; None without one.
            memory: bytes that the process takes.
        """
        tally = self.tally
        valid_loss = None if loss is None else loss.value
        train_loss = tally.loss / max(tally.interval_tokens, 1)
        if tally.last is not None and not tally.interval_tokens:  # stopped right after a report
            train_loss = tally.last.train_loss
        return Progress(
            step=self.optimizer.steps,
            epoch=tally.tokens / self.batches.tokens_per_epoch,
            tokens_seen=tally.tokens,
            train_loss=train_loss,
            valid_loss=valid_loss,
            tokens_per_second=tally.interval_tokens / max(tally.interval_seconds, 1e-9),
            elapsed_s=tally.elapsed,
            time_left_s=self.plan.time_left(*self.done()),
            gradient_norm=tally.norm,
            learning_rate=tally.rate,
            sample=None if sample is None else sample.text,
            sample_is_new=None if sample is None else sample.is_new,
            valid_perplexity=None if valid_loss is None else math.exp(min(valid_loss, 700.0)),
            valid_bits_per_character=self._bits(valid_loss),
            best_valid_loss=self.selection.lowest(valid_loss),
            memory_bytes=memory,
            valid_tokens=0 if loss is None else loss.tokens,
            notices=tuple(tally.notices),
        )

    def done(self) -> tuple[int, float, int, float]:
        """Return what the plan goes by: steps, seconds of training, tokens, wall seconds.

        The seconds kept back for the passes at the end count as if they were spent.
        """
        tally = self.tally
        kept_back = 0.0
        if tally.validation is not None and tally.validation.reserve_s is not None:
            kept_back = tally.validation.reserve_s
        return (
            self.optimizer.steps, tally.elapsed + kept_back, tally.tokens, tally.wall + kept_back,
        )  # fmt: skip

    def validation_plan(self) -> ValidationPlan:
        """Return what validations read; the first call decides it, for the whole run."""
        tally = self.tally
        if tally.validation is None:
            steps, done = self.optimizer.steps, self.plan.progress(*self.done())
            sample = sample_tokens(self.config, steps, tally.tokens, done)
            tally.validation = ValidationPlan(sample)
        return tally.validation

    def keep_back(self, loss: Loss) -> None:
        """Keep time back for the passes at the end, by the speed of the first validation.

        Args:
            loss: what that validation brought.
        """
        plan, limits = self.validation_plan(), self.config.limits
        if plan.reserve_s is not None:
            return
        times = (limits.max_time_s, limits.max_wall_time_s)
        limit = min((known for known in times if known is not None), default=None)
        left = sum(data.predicted for data in self._unread(loss.tokens))
        seconds, share = 0.0, 1.0
        if limit is not None:
            seconds, share = reserve(limit, left * loss.seconds_per_token)
        self.tally.validation = replace(plan, reserve_s=seconds, final_share=share)

    def _unread(self, sample: int) -> Iterator[TokenData]:
        """Yield the parts that are read at the end alone, for a sample of so many tokens."""
        valid, test = self.corpus.valid, self.corpus.test
        if valid is not None and valid.predicted > sample:
            yield valid
        if test is not None:
            yield test

    def look_again(self) -> None:
        """Compare the run's speed with what AUTO expected, once, and note what there is to say."""
        tally = self.tally
        if tally.looked or tally.outlook is None:
            return
        notice = second_look(tally.outlook, self.optimizer.steps, tally.elapsed, tally.tokens)
        tally.looked = notice is not None
        if notice:
            tally.notices.append(notice)

    def verdict(self) -> tuple[str, ...]:
        """Return what AUTO says of the limit that ended the run; nothing without AUTO."""
        tally, steps, best = self.tally, self.optimizer.steps, self.selection.best
        if tally.outlook is None:
            return ()
        best_step = steps if best is None else best.step
        return verdict(tally.outlook, self.ended_by, tally.elapsed, tally.tokens, steps, best_step)

    def fault(self, sentence: str, norm: float) -> TrainingError:
        """Return what ends a run whose numbers are none any more.

        Args:
            sentence: what happened.
            norm: the norm of the gradient that led there.
        """
        good = self.optimizer.steps if self.sound() else self.tally.good_step
        measured = "" if "norm" in sentence else f"gradient norm {norm:g}; "
        return TrainingError(f"{sentence} ({measured}the last good state is that of step {good})")

    def sound(self) -> bool:
        """Return whether all weights are finite numbers."""
        return bool(np.isfinite(self.parameters.flat).all())

    def check_weights(self) -> None:
        """Note that all weights are finite.

        Raises:
            TrainingError: one is not.
        """
        steps = self.optimizer.steps
        if not self.sound():
            raise self.fault(f"a weight became infinite by step {steps}; {LOWER}", self.tally.norm)
        self.tally.good_step = steps

    def _bits(self, loss: float | None) -> float | None:
        """A validation loss in bits a code point; None where these are not counted."""
        valid, characters = self.corpus.valid, self.corpus.valid_characters
        if loss is None or valid is None or not characters:
            return None
        return loss * valid.predicted / characters / math.log(2)

    def capture(self) -> checkpoint.RunState:
        """Return everything that the rest of the run depends on; it shares memory with the run."""
        optimizer, selection, carried = self.optimizer, self.selection, self.carried
        tensors = {
            "weights": self.parameters.flat,
            "means": None if optimizer.means is None else optimizer.means.flat,
            "squares": None if optimizer.squares is None else optimizer.squares.flat,
            "best_weights": selection.weights,
            "hs": carried and carried[0],
            "cs": carried and carried[1],
        }
        content = {
            "config": self.config.to_json(),
            "corpus": self._corpus_fingerprint(),
            "steps": optimizer.steps,
            "powers": optimizer.corrections.powers,
            "position": self.batches.position,
            "tally": self.tally.to_json(),
            "selection": selection.to_json(),
        }
        return checkpoint.RunState(content, {k: v for k, v in tensors.items() if v is not None})

    def apply(self, state: checkpoint.RunState) -> None:
        """Go on from what `capture` returned.

        Raises:
            LoadError: it belongs to another corpus or to other settings.
        """
        checkpoint.check_same(state, self.config, self._corpus_fingerprint())
        content, tensors, optimizer = state.content, state.tensors, self.optimizer
        buffers = {"weights": self.parameters, "means": optimizer.means}
        buffers["squares"] = optimizer.squares
        try:
            self._check_sizes(tensors)
            self.tally = Tally.from_json(content["tally"])
            self.batches.seek(content["position"])
            self.selection.restore(content["selection"], tensors.get("best_weights"))
            for name, buffer in buffers.items():
                if buffer is not None:
                    buffer.flat[:] = tensors[name]
            self.carried = (tensors["hs"], tensors["cs"]) if "hs" in tensors else None
            optimizer.steps = cast(int, whole(0, MAX_UINT64)["check"](content["steps"], "steps"))
            power1, power2 = map(float, content["powers"])
            if not (0 <= power1 <= 1 and 0 <= power2 <= 1):
                raise ValueError(f"powers are {power1:g} and {power2:g}")
            optimizer.corrections.powers = (power1, power2)
        except (
            KeyError, TypeError, ValueError, AttributeError, OverflowError, ConfigError,
        ) as fault:  # fmt: skip
            raise LoadError(f"the training state is of another version: {fault}") from fault

    def _check_sizes(self, tensors: Mapping[str, Array]) -> None:
        """Check that a saved run's tensors are as large as this one's, and float32.

        Raises:
            ValueError: One is not.
        """
        shape = self.parameters.shape
        states = (shape.L, self.batches.batch_size, shape.H)
        for name, tensor in tensors.items():
            wanted = states if name in ("hs", "cs") else self.parameters.flat.shape
            if tensor.shape != wanted or tensor.dtype != np.float32:
                raise ValueError(f"{name} is of shape {tensor.shape} and type {tensor.dtype}")

    def _corpus_fingerprint(self) -> str:
        self._fingerprint = self._fingerprint or checkpoint.corpus_fingerprint(self.corpus)
        return self._fingerprint
