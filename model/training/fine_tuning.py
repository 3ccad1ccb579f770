"""`take_over` copies the settings of a base model to the run that starts from it.

`BaseModelInfo` describes a base model to checks that need no weights.
"""

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

_FREE = ("dropout", "output_dropout", "unknown_policy")
"""Settings of network and tokenizer that may differ from the base model's."""


@dataclass(frozen=True)
class BaseModelInfo:
    """The base model of a run, without its weights."""

    network: NetworkConfig
    """The settings of its network."""
    tokenizer: TokenizerConfig
    """The settings of its tokenizer."""
    layout: CorpusLayout
    """The layout of its corpus."""
    vocabulary_size: int
    """Tokens in its vocabulary."""


def take_over(config: TrainConfig, model: Model) -> TrainConfig:
    """Returns the settings with the model's network, tokenizer and layout.

    A setting counts as given if `config.given` names it, or if it differs from its default.

    Args:
        config: The run's settings.
        model: The base model.

    Raises:
        ConfigError: A given setting differs from the model's; the message names it.
    """
    network = config.network
    for field in fields(NetworkConfig):
        name = field.name
        theirs = getattr(model.network, name)
        given = _given(config, f"network.{name}", getattr(network, name), field.default)
        if given and name not in _FREE:
            _check_equal(f"network.{name}", getattr(network, name), theirs)
        if not given:
            network = replace(network, **{name: theirs})
    layout = config.data.layout
    used = model.tokenizer.config
    if _given(config, "data.layout", layout, CorpusLayout.TEXT):
        _check_equal("data.layout", layout, model.layout)
    for field in fields(TokenizerConfig):
        name = f"tokenizer.{field.name}"
        ours = getattr(config.tokenizer, field.name)
        if field.name not in _FREE and _given(config, name, ours, field.default):
            _check_equal(name, ours, getattr(used, field.name))
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
    """Returns the description of a base model."""
    tokenizer = model.tokenizer
    return BaseModelInfo(model.network, tokenizer.config, model.layout, tokenizer.vocabulary_size)


def check_vocabulary(corpus: Corpus, model: Model) -> None:
    """Checks that the tokens of a corpus are those of a model.

    Args:
        corpus: The corpus, already read.
        model: The base model.

    Raises:
        ConfigError: The layout or the vocabulary differs.
    """
    _check_equal("data.layout", corpus.layout, model.layout)
    ours = corpus.tokenizer
    theirs = model.tokenizer
    _check_equal("tokenizer.kind", ours.config.kind, theirs.config.kind)
    # The sizes may differ for equal symbols: the policy UNKNOWN adds a token.
    same_size = ours.vocabulary_size == theirs.vocabulary_size
    if not same_size or _vocabulary(ours) != _vocabulary(theirs):
        raise ConfigError(
            f"tokenizer: the corpus has a vocabulary of {ours.vocabulary_size} tokens that is not "
            f"that of the model, of {theirs.vocabulary_size}: read it with the model's tokenizer",
            "tokenizer",
        )


def _given(config: TrainConfig, name: str, value: object, default: object) -> bool:
    return name in config.given or value != default


def _check_equal(name: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise ConfigError(
            f"{name} is {ours} and that of the base model is {theirs}: leave it out",
            name,
        )


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    content = tokenizer.to_json()
    return {name: content[name] for name in content if name not in ("config", "layout")}
