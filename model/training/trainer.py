"""Training: batches through the engine to the optimizer, with progress as it goes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treadle.model.config import TrainConfig
from treadle.model.data.batching import make_batches
from treadle.model.enums import CorpusRole, Keep
from treadle.model.errors import TrainingError
from treadle.model.memory_estimate import check_resident, resident_bytes
from treadle.model.network.engine import Engine, InterruptedRunError, never
from treadle.model.network.parallel import Pool
from treadle.model.scratch_files import Folder, Require, anything
from treadle.model.training import checkpoint, fine_tuning
from treadle.model.training.accumulation import Accumulation
from treadle.model.training.auto import preset
from treadle.model.training.baseline import baseline
from treadle.model.training.config_check import check_config
from treadle.model.training.evaluation import During, Evaluation, Haste, Loss, Sample, nothing
from treadle.model.training.optimizer import learning_rate
from treadle.model.training.plan import fill_in
from treadle.model.training.progress import Progress, Started
from treadle.model.training.setup import Source, check_fits, initial, load_kernels, read
from treadle.model.training.state import LOWER, Run
from treadle.model.training_record import exploded

if TYPE_CHECKING:
    from treadle.model.model import Model


class Trainer:
    """One training run."""

    def __init__(
        self,
        corpus: Source,
        config: TrainConfig | None = None,
        threads: int = 1,
        memory_limit_bytes: int | None = None,
        *,
        init_from: Model | None = None,
        folder: Folder | None = None,
    ) -> None:
        """Read the corpus and prepare everything; `started` then tells what became of it.

        Args:
            corpus: the data, a file of it, several files, or a corpus already read.
            config: all settings; None: the defaults.
            threads: threads that the kernels may use; they do not change the result.
            memory_limit_bytes: the most that the run may take, its corpus counted;
                None: whatever there is. `limits.max_memory_bytes` holds as well.
            init_from: a model whose tokenizer, network and weights the run begins from.
            folder: where the corpus' tokens are kept in nameless files; None: in memory.

        Raises:
            ConfigError: the run would take more memory than it may, wants a precision that
                this processor lacks, or does not fit the model that it is to begin from.
            CorpusError: the corpus is empty, too small, or not UTF-8, or its words are too long
                together for a model file.
            UnknownSymbolError: a symbol has no token and the policy is ERROR.
        """
        config = config or TrainConfig()
        begin = None
        if init_from is not None:
            config = fine_tuning.take_over(config, init_from)
            begin = fine_tuning.beginning(init_from)
        check_config(config, begin)
        corpus = read(corpus, config, init_from, folder)
        config, picked, outlook = preset.pick(config, corpus, threads)
        batches = make_batches(corpus.train, config.data, corpus.tokenizer, config.seed)
        config, chosen = fill_in(config, corpus, batches)
        parameters = initial(check_fits(corpus, config, memory_limit_bytes), config.seed, init_from)
        self._state = Run(corpus, config, parameters, batches)
        self._state.tally.outlook = outlook
        self._haste = Haste()
        self._engine: Engine | None = None
        self._clock = 0.0
        self._whole = True
        self.threads = threads
        """Threads that the kernels may use; what is set here holds from the next step on."""
        notices = (*corpus.notices, *picked, *batches.notices, *chosen)
        self.started = self._started((*notices, *self._state.novelty_notices()))
        self._state.baseline_loss = self.started.baseline_loss

    def _started(self, notices: tuple[str, ...]) -> Started:
        corpus, shape = self._state.corpus, self._state.parameters.shape
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
        """What was told last, also by the run that this one goes on from; None before."""
        return self._state.tally.last

    @property
    def model(self) -> Model:
        """The model as it is now, with the record of the run so far. It shares no memory."""
        return self._state.last_model()

    @property
    def best_model(self) -> Model | None:
        """The model of the lowest validation loss so far; None before the first validation."""
        return self._state.best_model()

    @property
    def ended_by(self) -> str:
        """Why the run ended, in a sentence, for the record too; empty while it has not."""
        return self._state.ended_by

    @ended_by.setter
    def ended_by(self, sentence: str) -> None:
        self._state.ended_by = sentence

    def finish(self, stop: Callable[[], bool] = never, during: During = nothing) -> Model:
        """Return the model to store, by `config.keep`, with its losses on whole parts.

        Where the run's validations read a sample of the validation part, the whole part is read
        now; and so is the test part. Under a limit of time both passes are cut to what the limit
        leaves. It alone gets a novelty index, where `config.data` asks for one.

        Args:
            stop: asked meanwhile: a run that is to stop does not read for longer than
                STOP_PATIENCE_S. It keeps the loss on the sample, and has no test loss.
            during: called before every batch that is read.

        Raises:
            TrainingError: no weights of the run are finite numbers.
            Exception: what `during` raised; the run can be finished again.
        """
        state, best = self._state, self.best_model
        if best is not None and (state.config.keep is Keep.BEST or not state.sound()):
            model = best
        elif state.sound():
            model = self.model
        else:
            raise TrainingError(f"the run left no finite weights to store; {LOWER}")
        begin, pool = time.perf_counter(), Pool(self.threads)
        try:
            examination = Evaluation(state.corpus, pool, lambda: self._haste(stop), during)
            valid = self._final_loss(examination, CorpusRole.VALID, model)
            test = self._final_loss(examination, CorpusRole.TEST, model)
        finally:
            pool.close()
        assert model.training is not None
        last, size = state.tally.last, model.parameters.shape.V
        notices = () if last is None else exploded(last.train_loss, size)
        record = replace(model.training, notices=(*notices, *state.verdict()))
        if valid is not None:
            record = replace(record, valid_loss=valid.value, valid_tokens=valid.tokens)
        if test is not None:
            record = replace(record, test_loss=test.value, test_tokens=test.tokens)
        if valid is not None or test is not None:
            seconds = time.perf_counter() - begin
            record = replace(record, elapsed_s=record.elapsed_s + seconds)
        model.training = record
        model.novelty = state.novelty_index()
        return model

    def _final_loss(self, examination: Evaluation, role: CorpusRole, model: Model) -> Loss | None:
        """The loss on a part at the end; None where the record has it, without one, or in haste."""
        corpus, plan = self._state.corpus, self._state.validation_plan()
        data = corpus.test if role is CorpusRole.TEST else corpus.valid
        if data is None:
            return None
        at_most = None if plan.final_share == 1 else int(data.predicted * plan.final_share)
        batches = examination.batches(role, at_most)
        record = model.training
        assert batches is not None
        assert record is not None
        known = record.valid_tokens if role is CorpusRole.VALID else 0
        if known >= batches.tokens:
            return None
        loss = examination.loss(model.parameters, role, at_most, final=True)
        if loss is not None and not math.isfinite(loss.value):
            raise self._not_finite(loss, record.weights_step)
        return loss

    def _not_finite(self, loss: Loss, step: int) -> TrainingError:
        sentence = f"the validation loss became {loss.value} after step {step}; {LOWER}"
        return self._state.fault(sentence, self._state.tally.norm)

    def save_state(self, path: str | os.PathLike[str], require: Require = anything) -> None:
        """Write everything that the rest of the run depends on, whole or not at all.

        Between steps only: in `between`, where `run` yields, or while it does not run. The
        state before is kept as `<name>.previous`.

        Args:
            path: where to.
            require: asked before bytes are written.

        Raises:
            TrainingError: a weight is no finite number, or a step has failed midway; what was
                written before stays as it is.
            OSError: it could not be written; what was written before stays as it is.
        """
        self._check_whole()
        state = self._state
        state.check_weights()
        if self._engine is not None:
            state.carried = self._engine.carried()
        checkpoint.write(path, state.capture(), require)

    def _check_whole(self) -> None:
        if not self._whole:
            raise TrainingError(
                "a step failed midway: go on from the last state that was saved, in a new trainer"
            )

    def restore_state(self, path: str | os.PathLike[str]) -> bool:
        """Go on from a state that a run over the same corpus with the same settings saved.

        Call it before `run`. A damaged file gives way to the one before it.

        Returns:
            Whether there was one.

        Raises:
            LoadError: it is damaged, as is the one before it, or belongs to another corpus
                or to other settings.
            OSError: it cannot be read.
        """
        saved = checkpoint.read(path)
        if saved is not None:
            self._state.apply(saved)
        return saved is not None

    def run(
        self, stop: Callable[[], bool] = never, between: Callable[[], bool | None] | None = None,
        during: During = nothing, interrupted: Callable[[], bool] = never,
    ) -> Iterator[Progress]:  # fmt: skip
        """Train until a limit is met or `stop` says so; or leave when `between` says so.

        Args:
            stop: asked between steps, and while the model is examined: a run that is to stop
                does not validate for longer than STOP_PATIENCE_S more.
            between: called after every step and what it led to, when `save_state` and `model` may
                be used. If it returns True, the run is left at once as it is, neither examined
                nor ended: another `run`, or one from its saved state, goes on with it.
            during: called before every batch of a validation. What it raises leaves the run as
                `between` does, and the validation is made again when the run continues.
            interrupted: asked many times within a step, in any thread. Once it says so, the step is
                dropped, as if it had not begun, and `between` and `stop` are asked, one of which
                must then end the run. A sample is dropped, too, unless `stop` says so. A run that
                continues makes either again, to the same bits.

        Yields:
            Progress every `progress_interval_s`, at every validation, and at the end.

        Raises:
            TrainingError: the loss, the gradient or a weight is no finite number any more, or
                the process has come to take more memory than `limits.max_memory_bytes`.
            Exception: what `during` raised.
        """
        self._check_whole()
        state = self._state
        self._clock = time.perf_counter() - state.tally.wall
        load_kernels(state.config)
        pool = Pool(self.threads)
        try:
            config, batches = state.config, state.batches
            engine = Engine(
                state.parameters, batches.batch_size, batches.window, pool,
                config.network.dropout, config.seed, config.optimizer.precision,
                config.network.output_dropout,
            )  # fmt: skip
            if state.carried is not None:
                engine.carry(*state.carried)
            engine.interrupted = interrupted
            self._engine = engine
            examination = Evaluation(
                state.corpus, pool, lambda: self._haste(stop), during,
                lambda: interrupted() and not stop(),
            )  # fmt: skip
            try:
                yield from self._run(engine, examination, stop, between)
            except InterruptedRunError:  # within a sample
                if between is not None:
                    between()
        finally:
            if self._engine is not None:
                state.carried, self._engine = self._engine.carried(), None
            pool.close()

    def _run(
        self, engine: Engine, examination: Evaluation, stop: Callable[[], bool],
        between: Callable[[], bool | None] | None,
    ) -> Iterator[Progress]:  # fmt: skip
        state, tally, report = self._state, self._state.tally, self._state.config.report
        together = state.config.optimizer.accumulation_steps
        accumulation = Accumulation(engine, state.batches, together)
        if tally.pending:  # the run was left in the middle of it
            yield from self._report(examination)
        while not self._ended(stop):
            if engine.pool.threads != (threads := self.threads):
                engine.pool.resize(threads)
            self._whole = False
            try:
                self._step(accumulation, engine.pool)
            except InterruptedRunError:
                self._whole = True
                if between is not None and between():
                    return
                continue
            done = state.done()
            part = state.plan.part(*done)
            due = part > tally.part or bool(state.plan.over(*done))
            tally.examined, tally.part, tally.pending = due, part, due
            state.look_again()
            if due or tally.interval_seconds >= report.progress_interval_s:
                yield from self._report(examination if due else None)
            self._whole = True
            if between is not None and between():
                return
        if not tally.examined:  # stopped between two validations
            tally.examined = tally.pending = True
            yield from self._report(examination)

    def _ended(self, stop: Callable[[], bool]) -> bool:
        state = self._state
        state.ended_by = (
            state.plan.over(*state.done())
            or state.selection.over(state.optimizer.steps)
            or ("stopped on request" if stop() else "")
        )
        return bool(state.ended_by)

    def _step(self, accumulation: Accumulation, pool: Pool) -> None:
        """One step: batches, loss, gradient, update.

        Raises:
            InterruptedRunError: the run was interrupted, and is as it was before the step.
        """
        begin = time.perf_counter()
        state, tally, optimizer = self._state, self._state.tally, self._state.optimizer
        steps, share = optimizer.steps, state.plan.progress(*state.done())
        warmup, lowered = state.plan.warmup_steps, state.selection.lowered
        rate = learning_rate(optimizer.config, steps, share, warmup, lowered)
        loss, count = accumulation.run(steps)
        gradient = accumulation.gradient
        if not math.isfinite(loss):
            sentence = f"the loss became {loss} at step {steps + 1}; {LOWER}"
            raise state.fault(sentence, optimizer.norm(gradient, pool))
        try:
            tally.norm = optimizer.step(gradient, rate, pool)
        except TrainingError as fault:
            raise state.fault(str(fault), math.nan) from fault
        now = time.perf_counter()
        tally.rate, tally.wall = rate, now - self._clock
        tally.add(loss, count, now - begin)

    def _report(self, examination: Evaluation | None) -> Iterator[Progress]:
        """Yield a progress; with an examination, validate and draw a sample first."""
        state, tally = self._state, self._state.tally
        state.check_weights()
        self._whole = True
        loss, sample = self._examine(examination) if examination else (None, None)
        progress = state.progress(loss, sample, resident_bytes())
        if loss is not None:
            state.selection.offer(progress, state.parameters.flat)
        tally.last, tally.pending, tally.notices = progress, False, []
        tally.begin_interval()
        yield progress
        check_resident(progress.memory_bytes, state.config.limits.max_memory_bytes)

    def _examine(self, examination: Evaluation) -> tuple[Loss | None, Sample | None]:
        """The validation loss and a sample of the model as it is now."""
        state, tally, report = self._state, self._state.tally, self._state.config.report
        if state.corpus.valid is None and not report.sample_tokens:
            return None, None
        plan = state.validation_plan()
        with self._timed():
            loss = examination.loss(
                state.parameters, CorpusRole.VALID, plan.sample_tokens, final=False
            )
            if loss is not None and not math.isfinite(loss.value):
                raise self._not_finite(loss, self.steps)
            tally.valid_loss, tally.valid_tokens = (loss.value, loss.tokens) if loss else (None, 0)
            tally.valid_step = self.steps
            sample = examination.sample(self.model, report.sample_tokens, state.config.seed)
        if loss is not None:
            state.keep_back(loss)
        return loss, sample

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Counts the time of what is done within as time of the run."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            now = time.perf_counter()
            tally = self._state.tally
            tally.elapsed += now - begin
            tally.wall = now - self._clock


def train(
    corpus: Source | str,
    config: TrainConfig | None = None,
    threads: int = 1,
    on_progress: Callable[[Progress], None] | None = None,
    **limits: Any,
) -> Model:
    """Train a model in one call, for notebooks and scripts.

    Args:
        corpus: the text itself (str or bytes), a file's path (os.PathLike), several files, or a
            corpus read.
        config: all settings; None: the defaults.
        threads: threads that the kernels may use.
        on_progress: called with every progress.
        **limits: fields of `LimitsConfig` that win over the config's.

    Returns:
        The trained model, by `config.keep` that of the best validation or the last.

    Raises:
        ModelError: see `Trainer` and `Trainer.run`.
    """
    config = config or TrainConfig()
    config = replace(config, limits=replace(config.limits, **limits))
    # A lone surrogate becomes bytes that are not UTF-8, for the corpus to refuse by name.
    data = corpus.encode("utf-8", "surrogatepass") if isinstance(corpus, str) else corpus
    trainer = Trainer(data, config, threads)
    for progress in trainer.run():
        if on_progress is not None:
            on_progress(progress)
    return trainer.finish()
