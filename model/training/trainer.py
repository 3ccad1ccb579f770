"""`Trainer` runs the training loop.

Each step computes gradients with the engine and applies them with the optimizer. `train` makes a
whole run in one call. Progress is reported during the run; see docs/training.md.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treadle.model.config import TrainConfig
from treadle.model.data.batching import make_batches
from treadle.model.enums import CorpusRole, Keep
from treadle.model.errors import TrainingError
from treadle.model.model import Model
from treadle.model.network.engine import Engine, InterruptedRunError, never
from treadle.model.network.parallel import Pool
from treadle.model.network.precision import check_learns
from treadle.model.scratch_files import Folder, Require, anything
from treadle.model.training import checkpoint, fine_tuning
from treadle.model.training.auto import preset
from treadle.model.training.baseline import baseline
from treadle.model.training.config_check import check_config
from treadle.model.training.evaluation import (
    Evaluation,
    GracePeriod,
    Loss,
    Sample,
    ValidationHook,
    no_hook,
)
from treadle.model.training.optimizer import learning_rate
from treadle.model.training.plan import fill_in
from treadle.model.training.progress import Progress, Started
from treadle.model.training.setup import (
    CorpusSource,
    check_fits,
    initial_parameters,
    load_corpus,
    load_kernels,
    thread_notices,
    with_clusters,
)
from treadle.model.training.state import LOWER_RATE, Snapshot, TrainingState
from treadle.model.training.steps.accumulation import Accumulation
from treadle.model.training.steps.series import StepSeries
from treadle.model.training_memory import check_resident, resident_bytes
from treadle.model.training_record import divergence_notices
from treadle.model.unused_settings import unused_settings

if TYPE_CHECKING:
    from treadle.model.network.ranks.ranks import Ranks
    from treadle.model.training_record import TrainingRecord


class Trainer:
    """One training run.

    The constructor reads the corpus and prepares everything; `started` holds the resolved settings.

    Args:
        corpus: The data, a file of it, several files, or a corpus already read.
        config: All settings; None: the defaults.
        threads: Threads that the kernels may use; they do not change the result.
        memory_limit_bytes: Upper limit of the memory of the run, with its corpus; None: no limit.
            `limits.max_memory_bytes` applies as well.
        init_from: The model whose tokenizer, network and weights the run starts from; None:
            random weights.
        folder: The folder of the unnamed temporary files that hold the tokens of the corpus;
            None: the tokens are held in memory.
        ranks: The processes that share the work, this one being rank 0; None: this one alone. They
            do not change the result.

    Raises:
        ConfigError: The run needs more memory than its limit, asks for a precision that this
            processor lacks, or does not fit the model that it starts from; or that model is viewed
            in another precision than FP32.
        CorpusError: The corpus is empty, too small, or not UTF-8, or its words are together
            too long for a model file.
        UnknownSymbolError: A symbol has no token and the policy is ERROR.
    """

    def __init__(
        self,
        corpus: CorpusSource,
        config: TrainConfig | None = None,
        threads: int = 1,
        memory_limit_bytes: int | None = None,
        *,
        init_from: Model | None = None,
        folder: Folder | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        config = config or TrainConfig()
        base = None
        if init_from is not None:
            check_learns(init_from.precision, "Trainer")
            config = fine_tuning.take_over(config, init_from)
            base = fine_tuning.describe(init_from)
        check_config(config, base)
        corpus = load_corpus(corpus, config, init_from, folder)
        config = with_clusters(config, corpus)
        given = config
        config, picked, forecast = preset.pick(config, corpus, threads, ranks)
        batches = make_batches(corpus.train, config.data, corpus.tokenizer, config.seed)
        config, chosen = fill_in(config, corpus, batches)
        shape = check_fits(corpus, config, memory_limit_bytes)
        parameters = initial_parameters(shape, config.seed, init_from)
        self._state = TrainingState(corpus, config, parameters, batches, forecast)
        self._grace_period = GracePeriod()
        self._engine: Engine | None = None
        self._clock = 0.0
        self._between_steps = True
        self._ranks = ranks
        self.threads = threads
        """Threads that the kernels may use; a new value applies from the next step."""
        divided = thread_notices(corpus, batches, threads, 1 if ranks is None else ranks.size)
        unused = unused_settings(given, config, corpus)
        notices = (*corpus.notices, *picked, *batches.notices, *divided, *chosen, *unused)
        self.started = self._started((*notices, *self._state.novelty_notices()))
        self._state.record_baseline(self.started.baseline_loss)

    def _started(self, notices: tuple[str, ...]) -> Started:
        corpus = self._state.corpus
        shape = self._state.parameters.shape
        counted = baseline(corpus)
        return Started(
            config=self._state.config,
            notices=notices,
            train_tokens=corpus.train.tokens.size,
            valid_tokens=0 if corpus.valid is None else corpus.valid.tokens.size,
            vocabulary_size=shape.V,
            parameter_count=shape.parameter_count,
            total_steps=self._state.plan.total_steps or 0,
            test_tokens=0 if corpus.test is None else corpus.test.tokens.size,
            valid_split=corpus.valid_split,
            test_split=corpus.test_split,
            baseline_loss=None if counted is None else counted.loss,
            baseline_order=0 if counted is None else counted.order,
        )

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self._state.optimizer.steps

    @property
    def last_progress(self) -> Progress | None:
        """The last progress, also that of the continued run; None before the first report."""
        return self._state.metrics.last_progress

    @property
    def model(self) -> Model:
        """A copy of the current model, with the record of the run so far."""
        return self._model(self._state.last_snapshot())

    @property
    def best_model(self) -> Model | None:
        """The model of the lowest validation loss so far; None before the first validation."""
        snapshot = self._state.best_snapshot()
        return None if snapshot is None else self._model(snapshot)

    def _model(self, snapshot: Snapshot) -> Model:
        return Model(
            self._state.config.network,
            self._state.corpus.tokenizer,
            snapshot.parameters,
            snapshot.record,
            snapshot.default_context,
        )

    @property
    def ended_by(self) -> str:
        """Why the run ended, as a sentence; also stored in the training record.

        Empty until the run has ended.
        """
        return self._state.ended_by

    @ended_by.setter
    def ended_by(self, sentence: str) -> None:
        self._state.end(sentence)

    def finish(self, stop: Callable[[], bool] = never, during: ValidationHook = no_hook) -> Model:
        """Returns the model to store, evaluated on the full validation and test sets.

        `config.keep` selects the model. The validation set is read only if the validations of the
        run read a sample of it. Under a time limit both passes are shortened to the remaining
        time. Only this model gets a novelty index, if `config.data` asks for one.

        Args:
            stop: Returns whether the run is to stop. Then a pass ends after at most
                STOP_PATIENCE_S: the model keeps the loss on the sample, and has no test loss.
            during: Called before every batch that is read.

        Raises:
            TrainingError: No weights of the run are finite numbers.
            Exception: What `during` raised; the run can be finished again.
        """
        model = self._chosen_model()
        assert model.training is not None
        begin = time.perf_counter()
        pool = Pool(self.threads)
        try:
            evaluation = Evaluation(
                self._state.corpus, pool, lambda: self._grace_period.is_over(stop), during
            )
            valid = self._final_loss(evaluation, CorpusRole.VALID, model)
            test = self._final_loss(evaluation, CorpusRole.TEST, model)
        finally:
            pool.close()
        notices = (*self._divergence(model), *self._state.limit_notices())
        record = _with_losses(replace(model.training, notices=notices), valid, test)
        if valid is not None or test is not None:
            seconds = time.perf_counter() - begin
            record = replace(record, elapsed_s=record.elapsed_s + seconds)
        model.training = record
        model.novelty = self._state.novelty_index()
        return model

    def _chosen_model(self) -> Model:
        """Returns the best model or the last one, by `config.keep`."""
        best = self.best_model
        finite = self._state.is_finite()
        if best is not None and (self._state.config.keep is Keep.BEST or not finite):
            return best
        if finite:
            return self.model
        raise TrainingError(f"the run left no finite weights to store; {LOWER_RATE}")

    def _divergence(self, model: Model) -> tuple[str, ...]:
        """Returns a sentence if the run diverged."""
        last = self._state.metrics.last_progress
        return () if last is None else divergence_notices(last.train_loss, model.parameters.shape.V)

    def _final_loss(self, evaluation: Evaluation, role: CorpusRole, model: Model) -> Loss | None:
        """Returns the final loss on a part; None without the part, or if the record has it."""
        corpus = self._state.corpus
        plan = self._state.validation_plan()
        data = corpus.test if role is CorpusRole.TEST else corpus.valid
        if data is None:
            return None
        at_most = None if plan.final_share == 1 else int(data.predicted * plan.final_share)
        batches = evaluation.batches(role, at_most)
        record = model.training
        assert batches is not None
        assert record is not None
        known = record.valid_tokens if role is CorpusRole.VALID else 0
        if known >= batches.tokens:
            return None
        loss = evaluation.loss(model.parameters, role, at_most, final=True)
        if loss is not None and not math.isfinite(loss.value):
            raise self._loss_not_finite(loss, record.weights_step)
        return loss

    def _loss_not_finite(self, loss: Loss, step: int) -> TrainingError:
        sentence = f"the validation loss became {loss.value} after step {step}; {LOWER_RATE}"
        return self._state.not_finite(sentence, self._state.metrics.gradient_norm)

    def save_state(self, path: str | os.PathLike[str], require: Require = anything) -> None:
        """Writes a checkpoint, atomically: everything that the rest of the run depends on.

        Call it between steps only: in `between`, where `run` yields, or while the run is paused.
        The previous checkpoint is kept as `<name>.previous`.

        Args:
            path: Where to write.
            require: Called before bytes are written; raises OSError if they may not be written.

        Raises:
            TrainingError: A weight is not finite, or a step has failed midway; earlier
                checkpoints are unchanged.
            OSError: It could not be written; earlier checkpoints are unchanged.
        """
        self._check_between_steps()
        self._state.check_weights()
        if self._engine is not None:
            self._state.record_carried(self._engine.carried())
        checkpoint.write(path, self._state.checkpoint(), require)

    def _check_between_steps(self) -> None:
        if not self._between_steps:
            raise TrainingError(
                "a step failed midway: continue from the last saved state, in a new trainer"
            )

    def restore_state(self, path: str | os.PathLike[str]) -> bool:
        """Continues from a checkpoint of a run over the same corpus with the same settings.

        Call it before `run`. A damaged file is replaced by the previous checkpoint.

        Args:
            path: Where `save_state` wrote it.

        Returns:
            Whether there was a checkpoint.

        Raises:
            LoadError: It and the previous one are damaged, or it belongs to another corpus
                or to other settings.
            OSError: It cannot be read.
        """
        saved = checkpoint.read(path)
        if saved is not None:
            self._state.restore(saved)
        return saved is not None

    def run(
        self,
        stop: Callable[[], bool] = never,
        between: Callable[[], bool | None] | None = None,
        during: ValidationHook = no_hook,
        interrupted: Callable[[], bool] = never,
        *,
        in_series: bool = False,
    ) -> Generator[Progress, None, None]:
        """Trains until a limit is met or `stop` returns True; pauses when `between` does.

        Args:
            stop: Called between steps, and while the model is evaluated: a run that is to stop
                does not validate for longer than STOP_PATIENCE_S more.
            between: Called after every step and any report it triggered; it may use `save_state`
                and `model`. If it returns True, the run pauses without evaluating. Another `run`,
                or one from its checkpoint, continues it.
            during: Called before every batch of a validation. An exception that it raises
                pauses the run, and the validation is repeated when the run continues.
            interrupted: Called many times within a step, from any thread. If it returns True, the
                step is discarded, and `between` and `stop` are called. If neither returns True,
                the run computes the same step again, to the same bits, and does not advance while
                `interrupted` returns True. A sample that is interrupted, while `stop` does not
                return True, is discarded and pauses the run; the next `run` evaluates again.
            in_series: Whether a small network may take several steps, for about 10 ms, before any
                of these is called. The weights are the same either way.

        Yields:
            Progress every `progress_interval_s`, at every validation, and at the end.

        Raises:
            TrainingError: The loss, the gradient or a weight is not finite, or the process takes
                more memory than `limits.max_memory_bytes`.
            Exception: What `during` raised.
        """
        self._check_between_steps()
        state = self._state
        self._clock = time.perf_counter() - state.metrics.wall_s
        if self._ranks is not None:
            self._ranks.command("resize", self.threads)
            self._ranks.command("prepare", state.config)
        load_kernels(state.config)
        if self._ranks is not None:
            self._ranks.check()
        pool = Pool(self.threads)
        try:
            self._engine = engine = self._new_engine(pool, interrupted)
            evaluation = Evaluation(
                state.corpus,
                pool,
                lambda: self._grace_period.is_over(stop),
                during,
                lambda: interrupted() and not stop(),
            )
            try:
                yield from self._run(engine, evaluation, stop, between, in_series)
            except InterruptedRunError:  # while a sample was drawn
                if between is not None:
                    between()
        finally:
            if self._engine is not None:
                if self._ranks is None or not self._ranks.is_broken:
                    state.record_carried(self._engine.carried())
                self._engine.close()
                self._engine = None
            pool.close()

    def _new_engine(self, pool: Pool, interrupted: Callable[[], bool]) -> Engine:
        state = self._state
        config = state.config
        engine = Engine(
            state.parameters,
            state.batches.batch_size,
            state.batches.window,
            pool,
            config.network.dropout,
            config.seed,
            config.optimizer.precision,
            config.network.output_dropout,
            ranks=self._ranks,
        )
        if self._ranks is not None:
            state.optimizer.share(self._ranks)
        if state.carried is not None:
            engine.carry(*state.carried)
        engine.interrupted = interrupted
        return engine

    def _run(
        self,
        engine: Engine,
        evaluation: Evaluation,
        stop: Callable[[], bool],
        between: Callable[[], bool | None] | None,
        in_series: bool,
    ) -> Iterator[Progress]:
        state = self._state
        interval_s = state.config.report.progress_interval_s
        accumulation = Accumulation(
            engine, state.batches, state.config.optimizer.accumulation_steps
        )
        series = self._series(engine) if in_series else None
        if state.metrics.evaluation_pending:  # the run was paused during it
            yield from self._report(evaluation)
        while not state.update_end(stop):
            if engine.pool.threads != (threads := self.threads):
                engine.pool.resize(threads)
                if self._ranks is not None:
                    self._ranks.command("resize", threads)
            self._between_steps = False
            try:
                if series is None:
                    self._step(accumulation, engine.pool)
                else:
                    self._steps(series, engine)
            except InterruptedRunError:
                self._between_steps = True
                if between is not None and between():
                    return
                continue
            due = state.schedule_evaluation()
            state.check_speed()
            if due or state.metrics.interval_s >= interval_s:
                yield from self._report(evaluation if due else None)
            self._between_steps = True
            if between is not None and between():
                return
        if state.schedule_last_evaluation():  # stopped between two validations
            yield from self._report(evaluation)

    def _series(self, engine: Engine) -> StepSeries | None:
        """Returns what takes several steps in one call; None where there is to be one a call."""
        if self._state.config.optimizer.accumulation_steps > 1:
            return None
        series = StepSeries(engine, self._state.optimizer, self._state.batches)
        return series if series.most_steps else None

    def _steps(self, series: StepSeries, engine: Engine) -> None:
        """Makes several steps of one batch each, as `_step` would.

        Raises:
            InterruptedRunError: The run was interrupted; nothing has changed.
        """
        begin = time.perf_counter()
        state = self._state
        optimizer = state.optimizer
        batches, counts = series.next(state.steps_ahead(series.most_steps, series.tokens_per_step))
        steps, elapsed, tokens, wall = state.done()
        rates = []
        for count in counts.tolist():
            progress = state.plan.progress(steps, elapsed, tokens, wall)
            rates.append(
                learning_rate(
                    optimizer.config,
                    steps,
                    progress,
                    state.plan.warmup_steps,
                    state.selection.lowered,
                )
            )
            steps += 1
            tokens += count
        taken = series.run(batches, counts, rates)
        now = time.perf_counter()
        seconds = (now - begin) / max(len(taken), 1)
        for step in taken:
            state.record_step(
                step.loss, step.tokens, step.norm, step.rate, seconds, now - self._clock
            )
        failure = series.failure
        if failure is None:
            return
        if not math.isfinite(failure.loss):
            sentence = f"the loss became {failure.loss} at step {self.steps + 1}; {LOWER_RATE}"
            raise state.not_finite(sentence, optimizer.norm(engine.gradient, engine.pool))
        fault = optimizer.not_finite(failure.norm)
        raise state.not_finite(str(fault), math.nan) from fault

    def _step(self, accumulation: Accumulation, pool: Pool) -> None:
        """Makes one step: batches, loss, gradient, update.

        Raises:
            InterruptedRunError: The run was interrupted; the step has changed nothing.
        """
        begin = time.perf_counter()
        state = self._state
        optimizer = state.optimizer
        steps = optimizer.steps
        rate = learning_rate(
            optimizer.config,
            steps,
            state.plan.progress(*state.done()),
            state.plan.warmup_steps,
            state.selection.lowered,
        )
        loss, count = accumulation.run(steps)
        gradient = accumulation.gradient
        if not math.isfinite(loss):
            sentence = f"the loss became {loss} at step {steps + 1}; {LOWER_RATE}"
            raise state.not_finite(sentence, optimizer.norm(gradient, pool))
        try:
            norm = optimizer.step(gradient, rate, pool)
        except TrainingError as fault:
            raise state.not_finite(str(fault), math.nan) from fault
        now = time.perf_counter()
        state.record_step(loss, count, norm, rate, now - begin, now - self._clock)

    def _report(self, evaluation: Evaluation | None) -> Iterator[Progress]:
        """Yields a progress; with an evaluation, validates and draws a sample first."""
        state = self._state
        state.check_weights()
        self._between_steps = True
        loss, sample = self._evaluate(evaluation) if evaluation else (None, None)
        progress = state.progress(loss, sample, resident_bytes())
        state.record_progress(progress)
        yield progress
        check_resident(progress.memory_bytes, state.config.limits.max_memory_bytes)

    def _evaluate(self, evaluation: Evaluation) -> tuple[Loss | None, Sample | None]:
        """Returns the validation loss of the current model and a sample of it."""
        state = self._state
        report = state.config.report
        if state.corpus.valid is None and not report.sample_tokens:
            return None, None
        plan = state.validation_plan()
        with self._timed():
            loss = evaluation.loss(
                state.evaluated(), CorpusRole.VALID, plan.sample_tokens, final=False
            )
            if loss is not None and not math.isfinite(loss.value):
                raise self._loss_not_finite(loss, self.steps)
            state.record_validation(loss)
            sample = evaluation.sample(self.model, report.sample_tokens, state.config.seed)
        if loss is not None:
            state.reserve_time(loss)
        return loss, sample

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Adds the time of the block to the time of the run."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            now = time.perf_counter()
            self._state.record_time(now - begin, now - self._clock)


def _with_losses(record: TrainingRecord, valid: Loss | None, test: Loss | None) -> TrainingRecord:
    """Returns a record with the losses of the final passes that were made."""
    if valid is not None:
        record = replace(record, valid_loss=valid.value, valid_tokens=valid.tokens)
    if test is not None:
        record = replace(record, test_loss=test.value, test_tokens=test.tokens)
    return record


def train(
    corpus: CorpusSource | str,
    config: TrainConfig | None = None,
    threads: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    **limits: Any,
) -> Model:
    """Trains a model in one call, for notebooks and scripts.

    Args:
        corpus: The text itself (str or bytes), a file's path (os.PathLike), several files, or a
            corpus already read.
        config: All settings; None: the defaults.
        threads: Threads that the kernels may use.
        on_progress: Called with every progress.
        **limits: Fields of `LimitsConfig` that replace those of the config.

    Returns:
        The trained model: the best one or the last one, by `config.keep`.

    Raises:
        ModelError: See `Trainer` and `Trainer.run`.
    """
    config = config or TrainConfig()
    config = replace(config, limits=replace(config.limits, **limits))
    # A lone surrogate becomes bytes that are not UTF-8, so that the corpus refuses it by name.
    data = corpus.encode("utf-8", "surrogatepass") if isinstance(corpus, str) else corpus
    trainer = Trainer(data, config, threads)
    for progress in trainer.run(in_series=True):
        if on_progress is not None:
            on_progress(progress)
    return trainer.finish()
