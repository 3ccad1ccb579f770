"""`TrainingState` holds the whole state of a training run between two steps.

The trainer reports what happens (`record_step`, `record_validation`, `record_progress`, ...), and
nothing else changes the counters. `checkpoint` returns the whole state for storing, and `restore`
takes it back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from treadle.model.errors import ConfigError, LoadError, TrainingError
from treadle.model.field_checks import MAX_UINT64, whole
from treadle.model.generation.novelty import NoveltyIndex, indexed_tokens, too_large
from treadle.model.network.parameters import Parameters
from treadle.model.network.trained_network import default_context
from treadle.model.training.auto.forecast import check_speed, judge_limit
from treadle.model.training.checkpoint import Checkpoint, check_same, corpus_fingerprint
from treadle.model.training.metrics import Metrics
from treadle.model.training.model_selection import ModelSelection
from treadle.model.training.optimizer import Optimizer
from treadle.model.training.plan import Plan
from treadle.model.training.progress import Progress
from treadle.model.training.validation_plan import ValidationPlan, reserve, sample_tokens
from treadle.model.training_record import TrainingRecord

if TYPE_CHECKING:
    from treadle.model.config import TrainConfig
    from treadle.model.data.batching import Batches
    from treadle.model.data.corpus import Corpus
    from treadle.model.data.splits import TokenData
    from treadle.model.training.auto.forecast import Forecast
    from treadle.model.training.evaluation import Loss, Sample

Array = npt.NDArray[np.float32]

LOWER_RATE = "lower the learning rate"
"""The remedy when numbers are no longer finite."""


@dataclass(frozen=True)
class Snapshot:
    """The weights of a run at one step, with the record for the model file. It shares no memory."""

    parameters: Parameters
    """A copy of the weights."""
    record: TrainingRecord
    """The record of their training."""
    default_context: int
    """The token before a text without a prompt."""


class TrainingState:
    """The whole state of a run.

    Args:
        corpus: The corpus that is trained on.
        config: The resolved settings.
        parameters: The initial weights, changed in place.
        batches: The batches of the corpus, at their beginning.
        forecast: The forecast of the preset AUTO for the run; None without the preset.
    """

    def __init__(
        self,
        corpus: Corpus,
        config: TrainConfig,
        parameters: Parameters,
        batches: Batches,
        forecast: Forecast | None = None,
    ) -> None:
        self.corpus = corpus
        self.config = config
        self.parameters = parameters
        self.batches = batches
        self.optimizer = Optimizer(config.optimizer, parameters)
        self.plan = Plan(config, batches)
        self.selection = ModelSelection(config)
        self.metrics = Metrics(forecast=forecast)
        self.carried: tuple[Array, Array] | None = None
        """The states that the next batch continues from, (L, B, H) both; None: zeros."""
        self.baseline_loss: float | None = None
        """The validation loss of an n-gram, for the training record."""
        self.ended_by = ""
        """Why the run ended, as a sentence; empty until it has."""
        self._fingerprint = ""

    # ------------------------------------------------------------ events reported by the trainer

    def record_step(
        self, loss: float, tokens: int, norm: float, rate: float, seconds: float, wall: float
    ) -> None:
        """Counts one optimizer step.

        Args:
            loss: Sum of the losses of its tokens, in nats.
            tokens: Tokens trained on.
            norm: The gradient's norm.
            rate: The learning rate.
            seconds: How long the step took.
            wall: Wall-clock seconds of the run so far, everything included.
        """
        self.metrics.gradient_norm = norm
        self.metrics.learning_rate = rate
        self.metrics.wall_s = wall
        self.metrics.add_step(loss, tokens, seconds)

    def steps_ahead(self, most: int, tokens: int) -> int:
        """Returns how many steps may be taken before the plan has to be looked at again.

        Args:
            most: The most steps, at least 1.
            tokens: The most tokens of a step.
        """
        steps, elapsed, seen, wall = self.done()
        while most > 1:
            before_last = (steps + most - 1, elapsed, seen + (most - 1) * tokens, wall)
            evaluations = self.plan.evaluations_due(*before_last)
            if evaluations == self.metrics.evaluations_due and not self.plan.over(*before_last):
                return most
            most //= 2
        return 1

    def schedule_evaluation(self) -> bool:
        """Returns whether an evaluation is due after the last step, and records it as pending."""
        done = self.done()
        evaluations = self.plan.evaluations_due(*done)
        due = evaluations > self.metrics.evaluations_due or bool(self.plan.over(*done))
        self.metrics.evaluated = due
        self.metrics.evaluations_due = evaluations
        self.metrics.evaluation_pending = due
        return due

    def schedule_last_evaluation(self) -> bool:
        """Returns whether the last step has no evaluation yet, and records it as pending."""
        if self.metrics.evaluated:
            return False
        self.metrics.evaluated = True
        self.metrics.evaluation_pending = True
        return True

    def record_validation(self, loss: Loss | None) -> None:
        """Records the loss of a validation after the last step; None if it was skipped."""
        self.metrics.valid_loss = None if loss is None else loss.value
        self.metrics.valid_tokens = 0 if loss is None else loss.tokens
        self.metrics.valid_step = self.optimizer.steps

    def record_time(self, seconds: float, wall: float) -> None:
        """Adds time that was not spent on steps.

        Args:
            seconds: How long it took.
            wall: Wall-clock seconds of the run so far, everything included.
        """
        self.metrics.elapsed_s += seconds
        self.metrics.wall_s = wall

    def record_progress(self, progress: Progress) -> None:
        """Records a progress, keeps its weights if they are the best, and begins an interval."""
        if progress.valid_loss is not None:
            self.selection.offer(progress, self.evaluated().flat)
        self.metrics.begin_interval(progress)

    def record_carried(self, carried: tuple[Array, Array]) -> None:
        """Records the hidden states that the next batch continues from, (L, B, H) both."""
        self.carried = carried

    def record_baseline(self, loss: float | None) -> None:
        """Records the validation loss of an n-gram."""
        self.baseline_loss = loss

    def update_end(self, stop: Callable[[], bool]) -> bool:
        """Returns whether the run ends here, and records why.

        Args:
            stop: Returns whether the run was asked to stop; called if no limit ends the run.
        """
        self.end(
            self.plan.over(*self.done())
            or self.selection.over(self.optimizer.steps)
            or ("stopped on request" if stop() else "")
        )
        return bool(self.ended_by)

    def end(self, sentence: str) -> None:
        """Records why the run ended; an empty sentence: it has not ended."""
        self.ended_by = sentence

    def check_speed(self) -> None:
        """Compares the run's speed with AUTO's forecast, once, and adds a notice about it."""
        metrics = self.metrics
        if metrics.speed_checked or metrics.forecast is None:
            return
        steps = self.optimizer.steps
        notice = check_speed(metrics.forecast, steps, metrics.elapsed_s, metrics.tokens)
        metrics.speed_checked = notice is not None
        if notice:
            metrics.notices.append(notice)

    def check_weights(self) -> None:
        """Records that all weights are finite.

        Raises:
            TrainingError: A weight is not.
        """
        steps = self.optimizer.steps
        if not self.is_finite():
            sentence = f"a weight became infinite by step {steps}; {LOWER_RATE}"
            raise self.not_finite(sentence, self.metrics.gradient_norm)
        self.metrics.last_finite_step = steps

    # ------------------------------------------------------------ progress

    def done(self) -> tuple[int, float, int, float]:
        """Returns the arguments of `Plan`: steps, seconds of training, tokens, wall seconds.

        The seconds reserved for the passes at the end count as if they were spent.
        """
        metrics = self.metrics
        reserved = 0.0
        plan = metrics.validation_plan
        if plan is not None and plan.reserve_s is not None:
            reserved = plan.reserve_s
        return (
            self.optimizer.steps,
            metrics.elapsed_s + reserved,
            metrics.tokens,
            metrics.wall_s + reserved,
        )

    def progress(self, loss: Loss | None, sample: Sample | None, memory: int) -> Progress:
        """Returns the progress of the run.

        Args:
            loss: The loss of the validation that was done; None without one.
            sample: The text that was drawn; None without one.
            memory: Memory of the process, in bytes.
        """
        metrics = self.metrics
        valid_loss = None if loss is None else loss.value
        train_loss = metrics.interval_loss / max(metrics.interval_tokens, 1)
        if metrics.last_progress is not None and not metrics.interval_tokens:
            train_loss = metrics.last_progress.train_loss  # stopped right after a report
        return Progress(
            step=self.optimizer.steps,
            epoch=metrics.tokens / self.batches.tokens_per_epoch,
            tokens_seen=metrics.tokens,
            train_loss=train_loss,
            valid_loss=valid_loss,
            tokens_per_second=metrics.interval_tokens / max(metrics.interval_s, 1e-9),
            elapsed_s=metrics.elapsed_s,
            time_left_s=self.plan.time_left(*self.done()),
            gradient_norm=metrics.gradient_norm,
            learning_rate=metrics.learning_rate,
            sample=None if sample is None else sample.text,
            sample_is_new=None if sample is None else sample.is_new,
            valid_perplexity=None if valid_loss is None else math.exp(min(valid_loss, 700.0)),
            valid_bits_per_character=self._bits_per_character(valid_loss),
            best_valid_loss=self.selection.lowest(valid_loss),
            memory_bytes=memory,
            valid_tokens=0 if loss is None else loss.tokens,
            notices=tuple(metrics.notices),
        )

    def _bits_per_character(self, loss: float | None) -> float | None:
        """Returns a validation loss in bits per code point; None if these are not counted."""
        valid = self.corpus.valid
        characters = self.corpus.valid_characters
        if loss is None or valid is None or not characters:
            return None
        return loss * valid.predicted / characters / math.log(2)

    # ------------------------------------------------------------ plan of the validations

    def validation_plan(self) -> ValidationPlan:
        """Returns the plan of the validations; the first call decides it for the whole run."""
        metrics = self.metrics
        if metrics.validation_plan is None:
            share = self.plan.progress(*self.done())
            sample = sample_tokens(self.config, self.optimizer.steps, metrics.tokens, share)
            metrics.validation_plan = ValidationPlan(sample)
        return metrics.validation_plan

    def reserve_time(self, loss: Loss) -> None:
        """Reserves time for the passes at the end, by the speed of the first validation.

        Args:
            loss: The result of that validation.
        """
        plan = self.validation_plan()
        limits = self.config.limits
        if plan.reserve_s is not None:
            return
        times = (limits.max_time_s, limits.max_wall_time_s)
        limit = min((known for known in times if known is not None), default=None)
        left = sum(data.predicted for data in self._unread(loss.tokens))
        seconds, share = 0.0, 1.0
        if limit is not None:
            seconds, share = reserve(limit, left * loss.seconds_per_token)
        self.metrics.validation_plan = replace(plan, reserve_s=seconds, final_share=share)

    def _unread(self, sample: int) -> Iterator[TokenData]:
        """Yields the parts that are read at the end alone, for a sample of so many tokens."""
        valid = self.corpus.valid
        test = self.corpus.test
        if valid is not None and valid.predicted > sample:
            yield valid
        if test is not None:
            yield test

    # ------------------------------------------------------------ models

    def evaluated(self) -> Parameters:
        """Returns the weights that are evaluated and stored: their mean, if one is kept."""
        mean = self.optimizer.mean
        return self.parameters if mean is None or not self.optimizer.steps else mean.parameters

    def last_snapshot(self) -> Snapshot:
        """Returns a copy of the current weights, or of their mean."""
        metrics = self.metrics
        steps = self.optimizer.steps
        loss = math.nan if metrics.last_progress is None else metrics.last_progress.train_loss
        validated = metrics.valid_step == steps
        valid_loss = metrics.valid_loss if validated else None
        valid_tokens = metrics.valid_tokens if validated else 0
        return self._snapshot(self.evaluated().flat, steps, loss, valid_loss, valid_tokens)

    def best_snapshot(self) -> Snapshot | None:
        """Returns the best weights; None before the first validation."""
        best = self.selection.best
        weights = self.selection.weights
        if best is None or weights is None:
            return None
        return self._snapshot(
            weights, best.step, best.train_loss, best.valid_loss, best.valid_tokens
        )

    def _snapshot(
        self,
        weights: Array,
        step: int,
        train_loss: float,
        valid_loss: float | None,
        valid_tokens: int,
    ) -> Snapshot:
        """Returns a copy of the weights that the run had at a step."""
        corpus = self.corpus
        parameters = Parameters(self.parameters.shape)
        parameters.flat[:] = weights
        record = TrainingRecord(
            config=self.config,
            steps=self.optimizer.steps,
            tokens_seen=self.metrics.tokens,
            train_loss=train_loss,
            valid_loss=valid_loss,
            elapsed_s=self.metrics.elapsed_s,
            ended_by=self.ended_by or "not ended yet",
            weights_step=step,
            valid_split=corpus.valid_split,
            test_split=corpus.test_split,
            baseline_loss=self.baseline_loss,
            valid_tokens=valid_tokens,
        )
        context = default_context(corpus.tokenizer, int(corpus.train.tokens[0]))
        return Snapshot(parameters, record, context)

    def novelty_notices(self) -> tuple[str, ...]:
        """Returns a notice if the settings ask for a novelty index that cannot be made."""
        train = self.corpus.train
        reason = too_large(indexed_tokens(train.tokens, train.offsets))
        return (reason,) if reason and self.config.data.novelty_index else ()

    def novelty_index(self) -> NoveltyIndex | None:
        """Returns the index of the training part; None if the settings ask for none.

        It depends on the corpus alone: a run that continues from its checkpoint makes the same one.
        """
        if not self.config.data.novelty_index or self.novelty_notices():
            return None
        train = self.corpus.train
        return NoveltyIndex.build(train.tokens, train.offsets, self.corpus.tokenizer)

    def limit_notices(self) -> tuple[str, ...]:
        """Returns AUTO's notices about the limit that ended the run; none without AUTO."""
        metrics = self.metrics
        if metrics.forecast is None:
            return ()
        steps = self.optimizer.steps
        best_step = steps if self.selection.best is None else self.selection.best.step
        return judge_limit(
            metrics.forecast, self.ended_by, metrics.elapsed_s, metrics.tokens, steps, best_step
        )

    def is_finite(self) -> bool:
        """Returns whether all weights are finite numbers."""
        return bool(np.isfinite(self.parameters.flat).all())

    def not_finite(self, sentence: str, norm: float) -> TrainingError:
        """Returns the error that ends a run whose numbers are no longer finite.

        Args:
            sentence: What happened.
            norm: The norm of the last gradient.
        """
        good = self.optimizer.steps if self.is_finite() else self.metrics.last_finite_step
        measured = "" if "norm" in sentence else f"gradient norm {norm:g}; "
        return TrainingError(f"{sentence} ({measured}the last good state is that of step {good})")

    # ------------------------------------------------------------ storing

    def checkpoint(self) -> Checkpoint:
        """Returns everything that the rest of the run depends on; it shares memory with the run."""
        optimizer = self.optimizer
        content = {
            "config": self.config.to_json(),
            "corpus": self._corpus_fingerprint(),
            "steps": optimizer.steps,
            "powers": optimizer.corrections.powers,
            "position": self.batches.position,
            "tally": self.metrics.to_json(),
            "selection": self.selection.to_json(),
        }
        tensors = {
            "weights": self.parameters.flat,
            "means": None if optimizer.means is None else optimizer.means.flat,
            "squares": None if optimizer.squares is None else optimizer.squares.flat,
            "mean_weights": None if optimizer.mean is None else optimizer.mean.parameters.flat,
            "best_weights": self.selection.weights,
            "hs": None if self.carried is None else self.carried[0],
            "cs": None if self.carried is None else self.carried[1],
        }
        present = {name: array for name, array in tensors.items() if array is not None}
        return Checkpoint(content, present)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from what `checkpoint` returned.

        Args:
            checkpoint: The checkpoint of a run over the same corpus with the same settings.

        Raises:
            LoadError: It belongs to another corpus or to other settings, or to another
                version of Treadle.
        """
        check_same(checkpoint, self.config, self._corpus_fingerprint())
        try:
            self._restore(checkpoint.content, checkpoint.tensors)
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
            ConfigError,
        ) as fault:
            raise LoadError(f"the checkpoint is of another version: {fault}") from fault

    def _restore(self, content: Any, tensors: Any) -> None:
        """Restores the parts of a checkpoint; a malformed part raises a built-in exception."""
        optimizer = self.optimizer
        self._check_sizes(tensors)
        self.metrics = Metrics.from_json(content["tally"])
        self.batches.seek(content["position"])
        self.selection.restore(content["selection"], tensors.get("best_weights"))
        buffers = {
            "weights": self.parameters,
            "means": optimizer.means,
            "squares": optimizer.squares,
            "mean_weights": None if optimizer.mean is None else optimizer.mean.parameters,
        }
        for name, buffer in buffers.items():
            if buffer is not None:
                buffer.flat[:] = tensors[name]
        self.carried = (tensors["hs"], tensors["cs"]) if "hs" in tensors else None
        steps = cast(int, whole(0, MAX_UINT64)["check"](content["steps"], "steps"))
        power1, power2 = map(float, content["powers"])
        if not (0 <= power1 <= 1 and 0 <= power2 <= 1):
            raise ValueError(f"powers are {power1:g} and {power2:g}")
        optimizer.restore(steps, (power1, power2))

    def _check_sizes(self, tensors: Any) -> None:
        """Checks that a checkpoint's tensors are as large as this run's, and float32.

        Raises:
            ValueError: A tensor is not.
        """
        shape = self.parameters.shape
        states = (shape.L, self.batches.batch_size, shape.H)
        for name, tensor in tensors.items():
            expected = states if name in ("hs", "cs") else self.parameters.flat.shape
            if tensor.shape != expected or tensor.dtype != np.float32:
                raise ValueError(f"{name} is of shape {tensor.shape} and type {tensor.dtype}")

    def _corpus_fingerprint(self) -> str:
        self._fingerprint = self._fingerprint or corpus_fingerprint(self.corpus)
        return self._fingerprint
