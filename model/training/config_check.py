"""`check_config` checks a run's settings before its corpus is read.

Each config checks its own ranges when it is built. Here settings are checked against each other,
against this machine, and against the base model of the run. The trainer calls it first, and
the server calls it when it accepts a job: after that, only the corpus can make a run fail
to start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treadle.model.data.files import check_data
from treadle.model.enums import Preset, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError
from treadle.model.field_checks import raise_faults
from treadle.model.network.precision import check_precision
from treadle.model.network.shape import check_network
from treadle.model.tokenizers.subwords import check_subwords
from treadle.model.training_memory import check_memory

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig, TrainConfig
    from treadle.model.training.fine_tuning import BaseModelInfo

_SIZES = {"network.hidden_size", "network.embedding_size"}


def check_config(config: TrainConfig, base: BaseModelInfo | None = None) -> None:
    """Checks that settings can work for some corpus.

    Args:
        config: The settings, with those of the base model already taken over.
        base: The model that the run starts from; None: random weights.

    Raises:
        ConfigError: A setting is not usable; `faults` holds one error for every such setting.
    """
    checks: list[Callable[[], object]] = [
        lambda: check_precision(config),
        lambda: check_data(config.data, None if base is None else base.layout),
        lambda: _check_tokenizer(config.tokenizer, base),
        lambda: _check_network(config),
        lambda: _check_memory(config, 1 if base is None else base.vocabulary_size),
    ]
    faults: list[ConfigError] = []
    for check in checks:
        try:
            check()
        except ConfigError as fault:
            faults += fault.faults
    raise_faults(faults)


def _check_tokenizer(config: TokenizerConfig, base: BaseModelInfo | None) -> None:
    """Checks that a tokenizer can be built, or that the base model's supports the policy."""
    if base is None:
        if config.kind is TokenizerKind.SUBWORDS:
            check_subwords(config)
    elif config.policy is UnknownPolicy.UNKNOWN and not base.tokenizer.obeys_unknown:
        raise ConfigError(
            "tokenizer.unknown_policy cannot be 'unknown': the base model has no "
            "unknown token; set it to 'error' or 'skip'",
            "tokenizer.unknown_policy",
        )


def _check_network(config: TrainConfig) -> None:
    """Checks the network's sizes, except those that the preset will pick."""
    if config.preset is not Preset.AUTO or set(config.given) >= _SIZES:
        check_network(config.network)


def _check_memory(config: TrainConfig, vocabulary_size: int) -> None:
    """Checks that the network fits in the run's memory limit, with the smallest batches."""
    limit = config.limits.max_memory_bytes
    if limit is None:
        return
    network = config.network
    if config.preset is Preset.AUTO:
        sizes = ("hidden_size", "layers", "embedding_size")
        picked: dict[str, Any] = {
            name: 1 for name in sizes if f"network.{name}" not in config.given
        }
        network = replace(network, **picked, tied_weights=False)
    smallest = replace(config.data, batch_size=1, window=1)
    check_memory(replace(config, data=smallest, network=network), vocabulary_size, limit)
