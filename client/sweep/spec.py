"""`SweepSpec` says what a sweep does: its files, settings, search space, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Literal

from treadle.client.sweep.search_space import Values

Method = Literal["grid", "random", "tpe"]
"""How the settings of the trials are chosen."""

Metric = Literal["best_valid_loss", "valid_loss", "bits_per_character"]
"""What trials are compared by; less is better."""


@dataclass(frozen=True)
class SweepFile:
    """A file that every trial trains, validates or tests on."""

    path: Path
    role: Literal["train", "valid", "test"] = "train"
    weight: float = 1.0
    """Training files: how often an epoch reads it."""


@dataclass(frozen=True)
class SweepSpec:
    """A sweep as its file describes it; docs/sweep.md explains each key.

    `Client.sweep` reads it from a file or from the tables of one.
    """

    name: str
    """The sweep's name, by which it is found again."""
    model: str
    """The model that each trial makes a version of."""
    method: Method
    files: tuple[SweepFile, ...]
    search: Mapping[str, Values]
    """The values to try, by setting."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """The settings that all trials have."""
    trials: int = 0
    """How many trials there are."""
    parallel: int = 1
    """How many jobs are open at once."""
    seed: int = 0
    metric: Metric = "best_valid_loss"
    max_time_s: float | None = None
    """Seconds from the first job on, after which the sweep ends; None: no limit."""
    alias: str = ""
    """The alias of the best model; empty: none."""
    prune: bool = True
    """Whether hopeless trials are stopped."""
    prune_after_trials: int = 4
    """No trial is stopped before so many have come to their end."""
    prune_after_validations: int = 1
    """No trial is stopped before it has more validations than these."""
    startup_trials: int = 10
    """TPE: how many trials are random before it learns from their results."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags of the jobs."""

    @property
    def needs_order(self) -> bool:
        """Whether a trial's settings depend on the results of earlier ones."""
        return self.method == "tpe"


def grid_size(search: Mapping[str, Values]) -> int:
    """Returns how many trials the whole grid of a search space has."""
    return prod(len(values.grid()) for values in search.values())
