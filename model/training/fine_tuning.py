"""What a run that begins from a model takes over from it, and what may differ."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from treadle.model.config import NetworkConfig, TokenizerConfig, TrainConfig
from treadle.model.enums import CorpusLayout
from treadle.model.errors import ConfigError

if TYPE_CHECKING:
    from treadle.model.data.corpus import Corpus
    from treadle.model.model import Model
    from treadle.model.tokenizers.base import Tokenizer

_FREE = ("dropout", "output_dropout")
"""Settings of a network that no weight depends on."""


@dataclass(frozen=True)
class BaseModelInfo:
    """What is known of the model that a run begins from, its weights apart."""

    network: NetworkConfig
    """The shape of its network."""
    tokenizer: TokenizerConfig
    """How it reads text."""
    layout: CorpusLayout
    """How its corpus was cut."""
    vocabulary_size: int
    """Tokens in its vocabulary."""


def take_over(config: TrainConfig, model: Model) -> TrainConfig:
    """Return the settings with the model's network, tokenizer and layout.

    A setting counts as given where `config.given` names it, or where it differs from its default.

    Args:
        config: the run's settings.
        model: what the run begins from.

    Raises:
        ConfigError: a given setting is not the model's; names it.
    """
    network = config.network
    for field in fields(NetworkConfig):
        name, theirs = field.name, getattr(model.network, field.name)
        given = _given(config, f"network.{name}", getattr(network, name), field.default)
        if given and name not in _FREE:
            _check_equal(f"network.{name}", getattr(network, name), theirs)
        if not given:
            network = replace(network, **{name: theirs})
    layout, kind = config.data.layout, config.tokenizer.kind
    used = model.tokenizer.config
    if _given(config, "data.layout", layout, CorpusLayout.TEXT):
        _check_equal("data.layout", layout, model.layout)
    if _given(config, "tokenizer.kind", kind, TokenizerConfig().kind):
        _check_equal("tokenizer.kind", kind, used.kind)
    policy = config.tokenizer.unknown_policy or used.unknown_policy
    names = [f"network.{field.name}" for field in fields(NetworkConfig)]
    return replace(
        config,
        network=network,
        tokenizer=replace(used, unknown_policy=policy),
        data=replace(config.data, layout=model.layout),
        given=tuple(dict.fromkeys((*config.given, *names))),
    )


def describe(model: Model) -> BaseModelInfo:
    """Return what is known of the model that a run begins from, its weights apart."""
    tokenizer = model.tokenizer
    return BaseModelInfo(model.network, tokenizer.config, model.layout, tokenizer.vocabulary_size)


def check_vocabulary(corpus: Corpus, model: Model) -> None:
    """Refuse a corpus whose tokens are not those of the model.

    Raises:
        ConfigError: its layout or its vocabulary is another one.
    """
    _check_equal("data.layout", corpus.layout, model.layout)
    ours, theirs = corpus.tokenizer, model.tokenizer
    _check_equal("tokenizer.kind", ours.config.kind, theirs.config.kind)
    sizes = ours.vocabulary_size, theirs.vocabulary_size  # a policy may have a token of its own
    if sizes[0] != sizes[1] or _vocabulary(ours) != _vocabulary(theirs):
        raise ConfigError(
            f"tokenizer: the corpus has a vocabulary of {sizes[0]} tokens that is not "
            f"that of the model, of {sizes[1]}: read it with the model's tokenizer",
            "tokenizer",
        )


def _given(config: TrainConfig, name: str, value: object, default: object) -> bool:
    return name in config.given or value != default


def _check_equal(name: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise ConfigError(
            f"{name} is {ours} and that of the model to begin from is {theirs}: leave it out",
            name,
        )


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    content = tokenizer.to_json()
    return {name: content[name] for name in content if name not in ("config", "layout")}
