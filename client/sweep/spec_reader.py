"""`load_spec` and `read_spec` turn a sweep's file into a `SweepSpec`, and say what is wrong."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from treadle.client.errors import InputError
from treadle.client.files.paths import display_path, open_file
from treadle.client.sweep.search_space import Choices, Range, Value, Values
from treadle.client.sweep.settings import (
    check_searched,
    check_setting,
    is_number,
    is_whole,
    nearest,
    setting_name,
)
from treadle.client.sweep.spec import Method, Metric, SweepFile, SweepSpec, grid_size
from treadle.client.sweep.trial_tags import OWN_TAGS, is_own_tag

MOST_TRIALS = 10_000
MOST_PARALLEL = 1_000
MOST_TAG_CHARACTERS = 256
"""The most characters of a tag's value, which holds a chosen value."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_TABLES = ("sweep", "files", "train", "search", "tags")
_SWEEP = (
    "name",
    "model",
    "method",
    "trials",
    "parallel",
    "seed",
    "metric",
    "max_time_s",
    "alias",
    "prune",
    "prune_after_trials",
    "prune_after_validations",
    "startup_trials",
)
_RANGE = ("min", "max", "scale", "step", "points")


def load_spec(path: str | os.PathLike[str]) -> SweepSpec:
    """Reads a file in TOML; the paths in it are relative to its folder.

    Args:
        path: The file.

    Returns:
        The sweep.

    Raises:
        InputError: The file cannot be read, or a key is at fault, which the message names.
    """
    shown = display_path(path)
    try:
        with open_file(path) as file:
            text = file.read().decode()
        return read_spec(tomllib.loads(text), Path(path).parent)
    except OSError as error:
        raise InputError(f"cannot read {shown}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{shown} is not text in UTF-8: save it as that") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{shown} is not TOML: {error}") from error
    except InputError as error:
        if str(error).startswith("cannot read"):
            raise
        raise InputError(f"{shown}: {error}") from error


def read_spec(tables: Mapping[str, Any], folder: Path) -> SweepSpec:
    """Reads a sweep from the tables of a file.

    Args:
        tables: The tables by name: `sweep`, `files`, `train`, `search` and `tags`.
        folder: The folder that paths are relative to.

    Returns:
        The sweep.

    Raises:
        InputError: A key is at fault, which the message names.
    """
    for name, table in tables.items():
        if name not in _TABLES:
            raise InputError(
                f"[{name}] is no table of a sweep{nearest(name, _TABLES)}: "
                "it has [sweep], [files], [train], [search] and [tags]"
            )
        if not isinstance(table, Mapping):
            raise InputError(f"{name} must be a table: write [{name}] above its keys")
    fields = _sweep(_needed(tables, "sweep"))
    fields["train"] = _train(tables.get("train", {}))
    fields["search"] = _search(_needed(tables, "search"), fields)
    fields["files"] = _files(_needed(tables, "files"), folder)
    fields["tags"] = _tags(tables.get("tags", {}))
    for name in fields["search"]:
        if name in fields["train"]:
            raise InputError(f"{name} is in [train] and in [search]: leave it out of one of them")
    _check_validation(fields)
    _check_trials(fields)
    return SweepSpec(**fields)


def _needed(tables: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Returns a table that must be there and have a key."""
    table = tables.get(name)
    if not table:
        has = {
            "sweep": "the sweep's name, model and method",
            "files": 'the training files: train = "corpus.txt"',
            "search": "the values to try: hidden_size = [64, 128]",
        }
        raise InputError(f"[{name}] is missing or empty: it has {has[name]}")
    return cast(Mapping[str, Any], table)


def _sweep(table: Mapping[str, Any]) -> dict[str, Any]:
    """Reads [sweep]."""
    for key in table:
        if key.replace("-", "_") not in _SWEEP:
            raise InputError(
                f"sweep.{key} is no key of a sweep{nearest(key, _SWEEP)}; a setting of the "
                "training belongs in [train] or [search]"
            )
    keys = {key.replace("-", "_"): value for key, value in table.items()}
    for key in ("name", "model", "method"):
        if key not in keys:
            raise InputError(f'sweep.{key} is missing: add {key} = "..." under [sweep]')
    fields: dict[str, Any] = {
        "name": _matching(keys["name"], "sweep.name", _NAME, 64),
        "model": _matching(keys["model"], "sweep.model", _MODEL, 100),
        "method": _word(keys["method"], "sweep.method", get_args(Method)),
    }
    if "metric" in keys:
        fields["metric"] = _word(keys["metric"], "sweep.metric", get_args(Metric))
    if "alias" in keys:
        alias = _matching(keys["alias"], "sweep.alias", _MODEL, 100)
        if alias == "latest" or alias.isdecimal():
            raise InputError(
                f"sweep.alias must not be {alias!r}, which means a version already: choose another"
            )
        fields["alias"] = alias
    if "prune" in keys:
        if not isinstance(keys["prune"], bool):
            raise InputError(f"sweep.prune must be true or false, not {keys['prune']!r}")
        fields["prune"] = keys["prune"]
    limits = {
        "trials": (1, MOST_TRIALS),
        "parallel": (1, MOST_PARALLEL),
        "seed": (0, 2**64 - 1),
        "prune_after_trials": (1, MOST_TRIALS),
        "prune_after_validations": (0, MOST_TRIALS),
        "startup_trials": (1, MOST_TRIALS),
    }
    for key, (least, most) in limits.items():
        if key in keys:
            fields[key] = _whole(keys[key], f"sweep.{key}", least, most)
    if "max_time_s" in keys:
        limit = _number(keys["max_time_s"], "sweep.max_time_s")
        if limit <= 0:
            raise InputError(f"sweep.max_time_s must be above 0, not {limit:g}")
        fields["max_time_s"] = float(limit)
    if "startup_trials" in keys and fields["method"] != "tpe":
        raise InputError('sweep.startup_trials is for method = "tpe": leave it out')
    for key in ("prune_after_trials", "prune_after_validations"):
        if key in keys and not fields.get("prune", True):
            raise InputError(f"sweep.{key} has no effect with prune = false: leave it out")
    return fields


def _train(table: Mapping[str, Any]) -> dict[str, Any]:
    """Reads [train]."""
    settings = {}
    for key, value in table.items():
        name = setting_name(key, "train")
        if name in settings:
            raise InputError(
                f"train.{key} is there twice, with _ and with -: leave one of them out"
            )
        check_setting(name, value, f"train.{key}")
        settings[name] = value
    return settings


def _search(table: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Values]:
    """Reads [search]."""
    space: dict[str, Values] = {}
    metric = fields.get("metric", "best_valid_loss")
    for key, value in table.items():
        name = setting_name(key, "search")
        if name in space:
            raise InputError(f"search.{key} is there twice, with _ and -: leave one of them out")
        check_searched(name, metric)
        place = f"search.{key}"
        if isinstance(value, Mapping):
            space[name] = _range(name, value, place, fields["method"])
        elif isinstance(value, list):
            space[name] = _choices(name, value, place)
        else:
            raise InputError(
                f"{place} must be a list of values or a range such as {{ min = 1, max = 4 }}, not "
                f"{value!r}: a single value belongs in [train]"
            )
    return space


def _choices(name: str, values: Sequence[Any], place: str) -> Choices:
    """Reads a list of values."""
    if not values:
        raise InputError(f"{place} is an empty list: give the values to try")
    seen = set()
    for index, value in enumerate(values):
        where = f"{place}[{index}]"
        if not isinstance(value, str | bool | int | float):
            raise InputError(f"{where} must be a number, a text, or true or false, not {value!r}")
        check_setting(name, value, where)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where} must be a finite number, not {value}")
        if len(json.dumps(value)) > MOST_TAG_CHARACTERS:
            raise InputError(f"{where} must have at most {MOST_TAG_CHARACTERS - 2} characters")
        if value in seen:
            raise InputError(f"{place} has {value!r} twice: leave it out once")
        seen.add(value)
    return Choices(tuple(cast(Sequence[Value], values)))


def _range(name: str, table: Mapping[str, Any], place: str, method: str) -> Range:
    """Reads a range."""
    if not is_number(name):
        raise InputError(f"{place} is no number: give a list of values, such as [...]")
    for key in table:
        if key not in _RANGE:
            raise InputError(
                f"{place}.{key} is no key of a range{nearest(key, _RANGE)}: "
                "it has min, max, scale, step and points"
            )
    for key in ("min", "max"):
        if key not in table:
            raise InputError(f"{place}.{key} is missing: give min and max")
    whole = is_whole(name)
    bounds = []
    for key in ("min", "max"):
        value = table[key]
        if whole:
            _whole(value, f"{place}.{key}", 0, 2**53)
        else:
            _number(value, f"{place}.{key}")
        check_setting(name, value, f"{place}.{key}")
        bounds.append(value)
    low, high = bounds
    if low >= high:
        raise InputError(f"{place}.min must be less than max, not {low:g} with max = {high:g}")
    scale = _word(table.get("scale", "linear"), f"{place}.scale", ("linear", "log"))
    is_log = scale == "log"
    if is_log and low <= 0:
        raise InputError(f'{place}.min must be above 0 with scale = "log", not {low:g}')
    step = 1
    if "step" in table:
        if not whole:
            raise InputError(f"{place}.step is for whole numbers: give a list of values instead")
        if is_log:
            raise InputError(f'{place}.step does not go with scale = "log": leave one of them out')
        step = _whole(table["step"], f"{place}.step", 1, high - low)
    points = 0
    if "points" in table:
        if method != "grid":
            raise InputError(f'{place}.points is for method = "grid": leave it out')
        if "step" in table:
            raise InputError(f"{place}.points does not go with step: leave one of them out")
        points = _whole(table["points"], f"{place}.points", 2, MOST_TRIALS)
    elif method == "grid" and (not whole or is_log):
        raise InputError(
            f"{place} needs points in a grid: how many values of the range are tried, such as "
            "points = 5"
        )
    return Range(low, high, whole, is_log, step, points)


def _files(table: Mapping[str, Any], folder: Path) -> tuple[SweepFile, ...]:
    """Reads [files]."""
    roles = ("train", "valid", "test")
    files = []
    for role, value in table.items():
        if role not in roles:
            raise InputError(
                f"files.{role} is no role of a file{nearest(role, roles)}: it has train, valid and "
                "test"
            )
        for index, entry in enumerate(value if isinstance(value, list) else [value]):
            place = f"files.{role}[{index}]" if isinstance(value, list) else f"files.{role}"
            files.append(_file(entry, place, role, folder))
    if not any(file.role == "train" for file in files):
        raise InputError('files.train is missing: name the training file, train = "corpus.txt"')
    return tuple(files)


def _file(entry: Any, place: str, role: Any, folder: Path) -> SweepFile:
    """Reads the entry of a file."""
    weight = 1.0
    if isinstance(entry, Mapping):
        wrong = [key for key in entry if key not in ("path", "weight")]
        if wrong or "path" not in entry:
            raise InputError(f'{place} must be {{ path = "FILE", weight = 2 }}, or just "FILE"')
        if "weight" in entry:
            if role != "train":
                raise InputError(f"{place}.weight is for training files: leave it out")
            weight = float(_number(entry["weight"], f"{place}.weight"))
            if not 0 < weight <= 100:
                raise InputError(f"{place}.weight must be above 0 and at most 100, not {weight:g}")
        entry = entry["path"]
    if not isinstance(entry, str) or not entry:
        raise InputError(f"{place} must be the path of a file, not {entry!r}")
    path = folder / entry
    if path.is_dir():
        raise InputError(f"{place}: {display_path(path)} is a folder: name a file")
    open_file(path).close()
    return SweepFile(path, role, weight)


def _tags(table: Mapping[str, Any]) -> dict[str, str]:
    """Reads [tags]; the server knows what a tag may be."""
    for name, value in table.items():
        if is_own_tag(name):
            raise InputError(
                f"tags.{name} is a tag that the sweep sets itself ({', '.join(OWN_TAGS)}): "
                "choose another name"
            )
        if not isinstance(value, str):
            raise InputError(f'tags.{name} must be a text: write {name} = "{value}"')
    return dict(table)


def _check_validation(fields: Mapping[str, Any]) -> None:
    """Checks that trials are validated, so that they can be compared.

    Raises:
        InputError: They are not.
    """
    has_file = any(file.role == "valid" for file in fields["files"])
    if not has_file and fields["train"].get("validation_fraction") == 0:
        raise InputError(
            "train.validation_fraction is 0 and files.valid is missing, so that there is no loss "
            "to compare trials by: leave validation_fraction out, or name a file"
        )


def _check_trials(fields: dict[str, Any]) -> None:
    """Sets the number of trials of a grid, and checks that of the others.

    Raises:
        InputError: It is missing, or the grid is too large.
    """
    if fields["method"] != "grid":
        if "trials" not in fields:
            raise InputError("sweep.trials is missing: add trials = 20 under [sweep]")
        return
    size = grid_size(fields["search"])
    if "trials" not in fields and size > MOST_TRIALS:
        raise InputError(
            f"[search] has {size:,} combinations, and a sweep at most {MOST_TRIALS:,} trials: take "
            'fewer values, or method = "random"'
        )
    fields["trials"] = min(size, fields.get("trials", size))


def _matching(value: Any, place: str, form: re.Pattern[str], most: int) -> str:
    """Returns a name.

    Raises:
        InputError: It is not one.
    """
    if isinstance(value, str) and form.fullmatch(value):
        return value
    raise InputError(
        f"{place} must be 1 to {most} letters, digits, '.', '_' and '-', the first a letter or "
        f"digit, not {value!r}"
    )


def _word(value: Any, place: str, words: Sequence[str]) -> str:
    """Returns one of some words.

    Raises:
        InputError: It is another one.
    """
    if isinstance(value, str) and value in words:
        return value
    raise InputError(f"{place} must be one of {', '.join(words)}, not {value!r}")


def _whole(value: Any, place: str, least: int, most: int) -> int:
    """Returns a whole number within limits.

    Raises:
        InputError: It is not one, or outside of them.
    """
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return value
    raise InputError(f"{place} must be a whole number from {least:,} to {most:,}, not {value!r}")


def _number(value: Any, place: str) -> int | float:
    """Returns a finite number.

    Raises:
        InputError: It is not one.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    raise InputError(f"{place} must be a number, not {value!r}")
