"""`TpeSampler` chooses settings by Optuna's tree-structured Parzen estimator.

Bergstra et al., "Algorithms for Hyper-Parameter Optimization" (NIPS 2011). The study is made again
for each trial, from the trials before it and with a seed of its own. So it has no state that could
be lost, and the same trials always lead to the same settings.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from treadle.client.errors import InputError
from treadle.client.sweep.search_space import Choices, Range, Value, share_of
from treadle.client.sweep.spec import SweepSpec
from treadle.client.sweep.trial import Trial

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class TpeSampler:
    """Chooses settings by TPE, and stops trials by Optuna's rule of medians.

    Args:
        spec: The sweep.

    Raises:
        InputError: Optuna is not installed.
    """

    def __init__(self, spec: SweepSpec) -> None:
        try:
            import optuna
        except ImportError as error:
            raise InputError(
                'sweep.method = "tpe" needs Optuna: run '
                "`pip install '.[sweep]'` in a checkout of Treadle, or choose \"random\""
            ) from error
        self._optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spec = spec
        self._judging: Study | None = None
        self._judged = 0
        # Optuna chooses one setting after the other, and their order in the file must not matter.
        self._space = {name: self._distribution(spec.search[name]) for name in sorted(spec.search)}

    def choose(
        self, number: int, settled: Sequence[Trial], pending: Sequence[Trial]
    ) -> Mapping[str, Value]:
        """Returns the settings of a trial, from the results of the settled ones.

        Those of the pending ones count as likely bad, so that it does not repeat them.
        """
        study = self._study(number, settled)
        for trial in pending:
            study.add_trial(self._frozen(trial, self._optuna.trial.TrialState.RUNNING))
        chosen = study.ask(self._space).params
        return {name: self._value(name, chosen[name]) for name in self._spec.search}

    def is_hopeless(self, trial: Trial, validations: int, settled: Sequence[Trial]) -> bool:
        """Returns whether Optuna's pruner stops a trial."""
        # The first trials are the same ones each time, and there may be thousands.
        if self._judging is None or self._judged > len(settled):
            self._judging = self._study(0, [])
            self._judged = 0
        study = self._judging
        for other in settled[self._judged :]:
            study.add_trial(self._finished(other))
        self._judged = len(settled)
        running = self._frozen(trial, self._optuna.trial.TrialState.RUNNING)
        running.intermediate_values = self._values(trial, validations)
        return bool(study.pruner.prune(study, running))

    def _study(self, number: int, settled: Sequence[Trial]) -> Study:
        """Returns the study as it was before a trial."""
        optuna = self._optuna
        seed = int(share_of(self._spec.seed, number, "tpe") * 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some options are called experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=self._spec.startup_trials, constant_liar=True
            )
            pruner = optuna.pruners.MedianPruner(
                n_startup_trials=self._spec.prune_after_trials,
                n_warmup_steps=self._spec.prune_after_validations,
            )
            study = optuna.create_study(sampler=sampler, pruner=pruner, direction="minimize")
        for trial in settled:
            study.add_trial(self._finished(trial))
        return study

    def _finished(self, trial: Trial) -> FrozenTrial:
        """Returns a settled trial as Optuna keeps it."""
        states = self._optuna.trial.TrialState
        value = trial.value(self._spec.metric)
        if value is None:
            return self._frozen(trial, states.FAIL)
        if trial.state != "succeeded":
            return self._frozen(trial, states.PRUNED)
        return self._frozen(trial, states.COMPLETE, value)

    def _frozen(self, trial: Trial, state: Any, value: float | None = None) -> FrozenTrial:
        is_running = state == self._optuna.trial.TrialState.RUNNING
        return self._optuna.create_trial(
            state=state,
            value=value,
            params={name: self._code(name, each) for name, each in trial.parameters.items()},
            distributions=self._space,
            intermediate_values={} if is_running else self._values(trial, len(trial.counted)),
        )

    def _values(self, trial: Trial, validations: int) -> dict[int, float]:
        """Returns the values of a trial's validations by their place."""
        values = [each.value(self._spec.metric) for each in trial.validations[:validations]]
        return {place: value for place, value in enumerate(values) if not math.isnan(value)}

    def _distribution(self, values: Choices | Range) -> BaseDistribution:
        """Returns what Optuna knows of the values of a setting."""
        distributions = self._optuna.distributions
        if isinstance(values, Choices):
            return distributions.CategoricalDistribution(range(len(values.values)))
        if values.is_integer:
            high = values.low + (values.high - values.low) // values.step * values.step
            return distributions.IntDistribution(
                int(values.low), int(high), log=values.is_log, step=values.step
            )
        return distributions.FloatDistribution(values.low, values.high, log=values.is_log)

    def _value(self, name: str, chosen: Any) -> Value:
        """Returns the value that Optuna has chosen: of a list it chooses the place."""
        values = self._spec.search[name]
        if isinstance(values, Choices):
            return values.values[int(chosen)]
        return values.rounded(chosen)

    def _code(self, name: str, value: Value) -> Any:
        """Returns a value as Optuna has chosen it."""
        values = self._spec.search[name]
        return values.values.index(value) if isinstance(values, Choices) else value
