"""`check_config`: all that can be said against a run's settings before its corpus is read.

Each config checks its own ranges when it is built; here settings meet one another, this machine,
and the model that a run begins from. A run asks first thing, and so does whoever accepts one to
be run later: what passes here fails by its corpus only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from treadle.model.data.files import check_data
from treadle.model.enums import Preset, TokenizerKind, UnknownPolicy
from treadle.model.errors import ConfigError
from treadle.model.field_checks import raise_faults
from treadle.model.memory_estimate import check_memory
from treadle.model.network.precision import check_precision
from treadle.model.network.shape import check_network
from treadle.model.tokenizers.subwords import check_subwords

if TYPE_CHECKING:
    from treadle.model.config import TokenizerConfig, TrainConfig
    from treadle.model.training.fine_tuning import BaseModelInfo

_SIZES = {"network.hidden_size", "network.embedding_size"}


def check_config(config: TrainConfig, begin: BaseModelInfo | None = None) -> None:
    """Checks settings that no corpus could make work.

    Args:
        config: The settings; where the run begins from a model, with what it takes over.
        begin: The model that it begins from; None: random weights.

    Raises:
        ConfigError: Names every setting at fault.
    """
    checks: list[Callable[[], object]] = [
        lambda: check_precision(config),
        lambda: check_data(config.data, None if begin is None else begin.layout),
        lambda: _check_tokenizer(config.tokenizer, begin),
        lambda: _check_network(config),
        lambda: _check_memory(config, 1 if begin is None else begin.vocabulary_size),
    ]
    faults: list[ConfigError] = []
    for check in checks:
        try:
            check()
        except ConfigError as fault:
            faults += fault.faults
    raise_faults(faults)


def _check_tokenizer(config: TokenizerConfig, begin: BaseModelInfo | None) -> None:
    """Checks that a tokenizer can be built, or that the model's obeys the policy."""
    if begin is None:
        if config.kind is TokenizerKind.SUBWORDS:
            check_subwords(config)
    elif config.policy is UnknownPolicy.UNKNOWN and not begin.tokenizer.obeys_unknown:
        raise ConfigError(
            "tokenizer.unknown_policy cannot be 'unknown': the model to begin from has no "
            "unknown token; take 'error' or 'skip'",
            "tokenizer.unknown_policy",
        )


def _check_network(config: TrainConfig) -> None:
    """Checks the network's sizes, but for those that the preset is still to pick."""
    if config.preset is not Preset.AUTO or set(config.given) >= _SIZES:
        check_network(config.network)


def _check_memory(config: TrainConfig, vocabulary_size: int) -> None:
    """Checks that the run's own limit holds the network, in the smallest batches."""
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
