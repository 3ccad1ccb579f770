"""`check_setting` and `check_searched` check the training settings that a sweep's file names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, cast

from treadle.client.errors import InputError
from treadle.client.messages.fields import set_field
from treadle.client.options import TrainOptions, option_home
from treadle.v1.sequence_pb2 import TrainSpec

_ELSEWHERE = {
    "model": "[sweep] has the model's name, the same one for all trials",
    "request_id": "a sweep chooses it for each trial",
    "tags": "[tags] has them",
}
"""Settings of `treadle train` that are not for [train], with the reason or the right place."""

_SPLIT = "it changes what the loss is measured on, so that losses cannot be compared"
_REPORTS = "it changes what is reported, and nothing of the model"
_LIMIT = "it is a matter of the machine and changes nothing of the model"

_NOT_SEARCHED = {
    "column": _SPLIT,
    "encoding": _SPLIT,
    "format": _SPLIT,
    "layout": _SPLIT,
    "lower_case": _SPLIT,
    "max_memory_bytes": _LIMIT,
    "max_wall_time_s": _LIMIT,
    "missing": _SPLIT,
    "nodes": _LIMIT,
    "novelty_index": _REPORTS,
    "preset": "the server chooses settings by it: set them one by one",
    "progress_interval_s": _REPORTS,
    "sample_tokens": _REPORTS,
    "softmax_clusters": "it is a list: leave it to the server",
    "test_fraction": _SPLIT,
    "unknown_policy": _SPLIT,
    "validation_fraction": _SPLIT,
    "validation_interval_steps": _REPORTS,
}
"""Settings that a sweep does not search over, with the reason."""

_TOKENS = frozenset(("max_vocabulary_size", "min_frequency", "tokenizer"))
"""Settings that change what a token is, and so what a loss per token means."""


def setting_name(key: str, table: str) -> str:
    """Returns the setting that a key of a file means, which may have dashes as a flag has.

    Args:
        key: The key.
        table: The table that has it, `train` or `search`.

    Raises:
        InputError: There is no such setting, or it does not belong there.
    """
    name = key.replace("-", "_")
    if name in _ELSEWHERE:
        raise InputError(f"{table}.{key} cannot be set: {_ELSEWHERE[name]}")
    if name not in TrainOptions.__annotations__:
        names = sorted({*TrainOptions.__annotations__} - {*_ELSEWHERE})
        raise InputError(
            f"{table}.{key} is no training setting{nearest(name, names)}; `treadle train --help` "
            "lists them"
        )
    return name


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns the name that an unknown one may stand for, as the next words of a sentence."""
    found = difflib.get_close_matches(name, names, 1)
    longer = [each for each in names if each.startswith(f"{name}_")]
    return "".join(f" (did you mean {each}?)" for each in (found or longer)[:1])


def check_setting(name: str, value: Any, place: str) -> None:
    """Checks that a setting may have a value, as far as a client knows.

    Args:
        name: The setting.
        value: The value.
        place: The key that has it, for the error.

    Raises:
        InputError: The value is of the wrong type or out of range.
    """
    group, field = option_home(name)
    spec = TrainSpec()
    kind = _field(name)
    is_flag = kind.type == kind.TYPE_BOOL
    if is_flag != isinstance(value, bool):
        form = "true or false" if is_flag else "no truth value"
        raise InputError(f"{place} must be {form}, not {_shown(value)}")
    if name.endswith("_s") and isinstance(value, str):
        raise InputError(f"{place} must be seconds as a number, such as 90, not {value!r}")
    try:
        set_field(getattr(spec, group) if group else spec, field, value)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def check_searched(name: str, metric: str) -> None:
    """Checks that trials that differ in a setting can be compared.

    Args:
        name: The setting.
        metric: What they are compared by.

    Raises:
        InputError: They cannot.
    """
    if name in _NOT_SEARCHED:
        raise InputError(f"search.{name} cannot be searched: {_NOT_SEARCHED[name]}")
    if name in _TOKENS and metric != "bits_per_character":
        raise InputError(
            f"search.{name} changes what a token is, so that losses per token cannot be compared: "
            'set sweep.metric = "bits_per_character", or leave it out'
        )


def is_number(name: str) -> bool:
    """Returns whether a setting is a number, whole or not, and not a word or a switch."""
    kind = _field(name)
    return kind.enum_type is None and kind.cpp_type not in (
        kind.CPPTYPE_BOOL,
        kind.CPPTYPE_STRING,
        kind.CPPTYPE_MESSAGE,
    )


def is_whole(name: str) -> bool:
    """Returns whether a setting is a whole number."""
    kind = _field(name)
    return is_number(name) and kind.cpp_type not in (kind.CPPTYPE_DOUBLE, kind.CPPTYPE_FLOAT)


def _field(name: str) -> Any:
    """Returns the descriptor of a setting's field."""
    group, field = option_home(name)
    parts = TrainSpec.DESCRIPTOR.fields_by_name
    home = cast(Any, parts[group].message_type if group else TrainSpec.DESCRIPTOR)
    return home.fields_by_name[field]


def _shown(value: object) -> str:
    """Writes a value as TOML does, as far as people read it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)
