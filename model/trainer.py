"""Training: batches through the engine to the optimizer, with progress as it goes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from treadle.model import auto, fine_tuning, run_state
from treadle.model.accumulation import Accumulation
from treadle.model.batches import make_batches
from treadle.model.config import Keep, TrainConfig
from treadle.model.config_check import check_config
from treadle.model.engine import Engine
from treadle.model.errors import TrainingError
from treadle.model.examination import Examination, Sample
from treadle.model.memory import check_resident, resident_bytes
from treadle.model.model import Model
from treadle.model.ngram import baseline
from treadle.model.optimizer import learning_rate
from treadle.model.plan import fill_in
from treadle.model.pool import Pool
from treadle.model.preparation import Source, check_fits, initial, load_kernels, read
from treadle.model.progress import Progress, Started
from treadle.model.record import exploded
from treadle.model.run import LOWER, Run


def never() -> bool:
    """The stop signal of a run that nobody stops."""
    return False


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
        folder: Path | None = None,
    ) -> None:
        """Read the corpus and prepare everything; `started` then tells what became of it.

        Args:
            corpus: the data, a file of it, several files, or a corpus already read.
            config: all settings; None: the defaults.
            threads: threads that the kernels may use; they do not change the result.
            memory_limit_bytes: the most that the run's arrays may take, the corpus not counted;
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
        config, picked = auto.pick(config, corpus, threads)
        batches = make_batches(corpus.train, config.data, corpus.tokenizer, config.seed)
        config, chosen = fill_in(config, corpus, batches)
        parameters = initial(check_fits(corpus, config, memory_limit_bytes), config.seed, init_from)
        self._state = Run(corpus, config, parameters, batches)
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

    def finish(self, stop: Callable[[], bool] = never) -> Model:
        """Return the model to store, by `config.keep`, with its loss on the test part.

        It alone gets a novelty index, where `config.data` asks for one.

        Args:
            stop: asked meanwhile: a run that is to stop does not test for longer than
                STOP_PATIENCE_S, and leaves the test loss out.

        Raises:
            TrainingError: no weights of the run are finite numbers.
        """
        state, best = self._state, self.best_model
        if best is not None and (state.config.keep is Keep.BEST or not state.sound()):
            model = best
        elif state.sound():
            model = self.model
        else:
            raise TrainingError(f"the run left no finite weights to store; {LOWER}")
        pool = Pool(self.threads)
        try:
            loss = Examination(state.corpus, pool, stop).test_loss(model.parameters)
        finally:
            pool.close()
        assert model.training is not None
        last = state.tally.last
        notices = () if last is None else exploded(last.train_loss, model.parameters.shape.V)
        model.training = replace(model.training, test_loss=loss, notices=notices)
        model.novelty = state.novelty_index()
        return model

    def save_state(self, path: str | os.PathLike[str]) -> None:
        """Write everything that the rest of the run depends on, whole or not at all.

        Between steps only: in `between`, where `run` yields, or while it does not run. The
        state before is kept as `<name>.previous`.

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
        run_state.write(path, state.capture())

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
            CheckpointError: it is damaged, as is the one before it, or belongs to another corpus
                or to other settings.
            OSError: it cannot be read.
        """
        saved = run_state.read(path)
        if saved is not None:
            self._state.apply(saved)
        return saved is not None

    def run(
        self, stop: Callable[[], bool] = never, between: Callable[[], bool | None] | None = None
    ) -> Iterator[Progress]:
        """Train until a limit is met or `stop` says so; or leave when `between` says so.

        Args:
            stop: asked between steps, and while the model is examined: a run that is to stop
                does not validate for longer than STOP_PATIENCE_S more.
            between: called after every step and what it led to, when `save_state` and `model` may
                be used. If it returns True, the run is left at once as it is, neither examined
                nor ended: another `run`, or one from its saved state, goes on with it.

        Yields:
            Progress every `progress_interval_s`, at every validation, and at the end.

        Raises:
            TrainingError: the loss, the gradient or a weight is no finite number any more, or
                the process has come to take more memory than `limits.max_memory_bytes`.
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
            self._engine = engine
            yield from self._run(engine, Examination(state.corpus, pool, stop), stop, between)
        finally:
            if self._engine is not None:
                state.carried, self._engine = self._engine.carried(), None
            pool.close()

    def _run(
        self, engine: Engine, examination: Examination, stop: Callable[[], bool],
        between: Callable[[], bool | None] | None,
    ) -> Iterator[Progress]:  # fmt: skip
        state, tally, report = self._state, self._state.tally, self._state.config.report
        together = state.config.optimizer.accumulation_steps
        accumulation = Accumulation(engine, state.batches, together)
        while not self._ended(stop):
            if engine.pool.threads != (threads := self.threads):
                engine.pool.resize(threads)
            self._whole = False
            self._step(accumulation, engine.pool)
            done = state.done()
            part = state.plan.part(*done)
            due = part > tally.part or bool(state.plan.over(*done))
            tally.examined, tally.part = due, part
            if due or tally.interval_seconds >= report.progress_interval_s:
                yield from self._report(examination if due else None)
            self._whole = True
            if between is not None and between():
                return
        if not tally.examined:  # stopped between two validations
            tally.examined = True
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
        """One step: batches, loss, gradient, update."""
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

    def _report(self, examination: Examination | None) -> Iterator[Progress]:
        """Yield a progress; with an examination, validate and draw a sample first."""
        state, tally = self._state, self._state.tally
        state.check_weights()
        valid_loss, sample = self._examine(examination) if examination else (None, None)
        progress = state.progress(valid_loss, sample, resident_bytes())
        if valid_loss is not None:
            state.selection.offer(progress, state.parameters.flat)
        tally.last = progress
        tally.begin_interval()
        self._whole = True
        yield progress
        check_resident(progress.memory_bytes, state.config.limits.max_memory_bytes)

    def _examine(self, examination: Examination) -> tuple[float | None, Sample | None]:
        """The validation loss and a sample of the model as it is now."""
        state, tally, steps = self._state, self._state.tally, self._state.optimizer.steps
        loss = examination.loss(state.parameters)
        if loss is not None and not math.isfinite(loss):
            sentence = f"the validation loss became {loss} after step {steps}; {LOWER}"
            raise state.fault(sentence, tally.norm)
        tally.valid_loss, tally.valid_step = loss, steps
        report = state.config.report
        sample = examination.sample(self.model, report.sample_tokens, state.config.seed)
        tally.wall = time.perf_counter() - self._clock
        return loss, sample


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
