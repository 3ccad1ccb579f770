"""`unused_settings` finds the settings of a run that have no effect because of other settings."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING

from treadle.model.enums import CorpusFormat, OptimizerKind, Schedule, Split, TokenizerKind

if TYPE_CHECKING:
    from treadle.model.config import DataConfig, OptimizerConfig, TokenizerConfig, TrainConfig
    from treadle.model.data.corpus import Corpus
    from treadle.model.field_checks import Checked

_IGNORED_BY = {
    TokenizerKind.BYTES: ("max_vocabulary_size", "min_frequency", "lower_case"),
    TokenizerKind.CHARACTERS: ("max_vocabulary_size",),
    TokenizerKind.SUBWORDS: ("min_frequency",),
}
"""The settings that a tokenizer does not use."""

_OF_VOCABULARY = ("kind", "max_vocabulary_size", "min_frequency", "lower_case")
"""The settings that a tokenizer is built with."""

_OF_ROWS = ("column", "missing")
"""Settings of files that hold rows: JSONL and CSV."""

_OF_ADAM = ("beta1", "beta2")

_OF_SCHEDULE = {
    Schedule.COSINE: ("final_rate",),
    Schedule.PLATEAU: ("plateau_factor", "plateau_patience"),
}
"""The settings that only one schedule uses."""


def unused_settings(given: TrainConfig, used: TrainConfig, corpus: Corpus) -> tuple[str, ...]:
    """Returns a sentence for each given setting that has no effect.

    A setting counts as given if it differs from its default.

    Args:
        given: The settings as given, before a preset has chosen any.
        used: The settings of the run.
        corpus: The corpus that is trained on.
    """
    return (
        *_of_tokenizer(given.tokenizer),
        *_of_reading(given, corpus),
        *_of_data(given.data, given.tokenizer, corpus),
        *_of_optimizer(given.optimizer, used.optimizer),
        *_of_one_layer(used),
        *_unwatched(used, corpus),
    )


def _given(config: Checked, *names: str) -> Iterator[str]:
    """Yields each of these settings that differs from its default, with its value."""
    defaults = type(config)()
    for name in names:
        value = getattr(config, name)
        if value != getattr(defaults, name):
            yield f"{name} {_plain(value)!r}"


def _plain(value: object) -> object:
    """Returns the word of an enum, and any other value as it is."""
    return str(value) if isinstance(value, enum.Enum) else value


def _of_tokenizer(config: TokenizerConfig) -> Iterator[str]:
    for setting in _given(config, *_IGNORED_BY.get(config.kind, ())):
        yield (
            f"{setting} has no effect: the tokenizer '{config.kind}' does not use it; leave it out"
        )


def _of_reading(given: TrainConfig, corpus: Corpus) -> Iterator[str]:
    """Yields sentences about settings for reading, where the corpus was already read by others."""
    sentence = "{} has no effect: the corpus is already read, with {}; read it with this setting"
    for config, names, used in (
        (given.tokenizer, _OF_VOCABULARY, corpus.tokenizer.config),
        (given.data, ("layout",), corpus),
    ):
        for name in names:
            theirs = getattr(used, name)
            if theirs != getattr(config, name):
                for setting in _given(config, name):
                    yield sentence.format(setting, repr(_plain(theirs)))


def _of_data(config: DataConfig, tokenizer: TokenizerConfig, corpus: Corpus) -> Iterator[str]:
    if config.format is CorpusFormat.PLAIN:
        for setting in _given(config, *_OF_ROWS):
            yield (
                f"{setting} has no effect: the format 'plain' has no columns; set format to "
                "'jsonl' or 'csv'"
            )
    if tokenizer.kind is TokenizerKind.BYTES:
        for setting in _given(config, "encoding"):
            yield f"{setting} has no effect: the tokenizer 'bytes' decodes no text; leave it out"
    for name, split in (
        ("validation_fraction", corpus.valid_split),
        ("test_fraction", corpus.test_split),
    ):
        if split is Split.FILES and getattr(config, name):  # 0 is true: nothing is split off
            for setting in _given(config, name):
                yield f"{setting} has no effect: the corpus has files for that part; leave it out"


def _of_optimizer(given: OptimizerConfig, used: OptimizerConfig) -> Iterator[str]:
    if used.kind is not OptimizerKind.ADAM:
        for setting in _given(given, *_OF_ADAM):
            yield (
                f"{setting} has no effect: the optimizer '{used.kind}' does not use it; set "
                "optimizer.kind to 'adam'"
            )
    for schedule, names in _OF_SCHEDULE.items():
        if used.schedule is not schedule:
            for setting in _given(given, *names):
                yield (
                    f"{setting} has no effect: the schedule '{used.schedule}' does not use it; "
                    f"set schedule to '{schedule}'"
                )


def _of_one_layer(used: TrainConfig) -> Iterator[str]:
    network = used.network
    if network.dropout and network.layers == 1:
        yield (
            f"dropout {network.dropout!r} has no effect: it acts between layers, and the network "
            "has one; set layers to 2 or more"
        )


def _unwatched(used: TrainConfig, corpus: Corpus) -> Iterator[str]:
    """Yields sentences about settings that need validations, for a run without any."""
    if corpus.valid is not None:
        return
    waiting = []
    if used.limits.early_stopping_patience:
        waiting.append("early_stopping_patience")
    if used.optimizer.schedule is Schedule.PLATEAU:
        waiting.append("the schedule plateau")
    for name in waiting:
        yield (
            f"{name} has no effect: nothing is kept for validation; set validation_fraction above 0"
        )
