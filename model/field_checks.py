"""`Checked` is the base of the configs, whose fields carry their ranges as metadata.

A config is a frozen dataclass derived from `Checked`. The metadata of a field, made by `whole`,
`real`, `choice`, `flag`, `text`, `texts`, `numbers`, `biases` or `section`, defines its legal
values. A check takes any object and the field's dotted name, and returns the value in its proper
type or raises `ConfigError`. So a config may be built from plain strings and numbers, and once
built it is valid.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, ClassVar, Self, TypeVar, cast, get_args, get_type_hints

import numpy as np

from treadle.model.errors import ConfigError

Check = Callable[[object, str], object]
"""Takes a value and its field's dotted name; returns the value in its proper type."""

Member = TypeVar("Member", bound=enum.StrEnum)

MAX_UINT32 = 2**32 - 1
MAX_UINT64 = 2**64 - 1


def _error(field: str, expected: str, value: object) -> ConfigError:
    if isinstance(value, str):
        value = str(value)[:100]  # enough of a long text for the message
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ConfigError(f"{field} must be {expected}, not {shown}", field)


def whole(low: int, high: int, *, or_off: bool = False) -> dict[str, Check]:
    """Returns the metadata of a whole number.

    Args:
        low: Lowest legal number.
        high: Highest legal number.
        or_off: Whether 0 is legal as well, and turns the setting off.
    """

    def check(value: object, field: str) -> int:
        # bool is an int to Python, but True is not a size.
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            number = int(value)
            if low <= number <= high or (or_off and number == 0):
                return number
        raise _error(field, f"a whole number from {low:,} to {high:,}", value)

    return {"check": check}


def real(
    *,
    above: float | None = None,
    least: float = 0.0,
    below: float | None = None,
    most: float | None = None,
) -> dict[str, Check]:
    """Returns the metadata of a finite number within bounds; neither NaN nor infinity is one.

    Args:
        above: Bound that is itself not legal; takes the place of `least`.
        least: Lowest legal number.
        below: Upper bound that is itself not legal.
        most: Highest legal number.
    """
    expected = (
        f"a finite number above {above:g}"
        if above is not None
        else f"a finite number, {least:g} or more"
    )
    if most is not None:
        expected += f" and at most {most:g}"
    if below is not None:
        expected += f" and below {below:g}"

    def check(value: object, field: str) -> float:
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            number = _as_float(value)
            low_enough = number >= least if above is None else number > above
            if low_enough and number <= _or_inf(most) and number < _or_inf(below):
                return number
        raise _error(field, expected, value)

    return {"check": check}


def _or_inf(bound: float | None) -> float:
    return math.inf if bound is None else bound


def _as_float(value: int | float | np.number[Any]) -> float:
    """Returns the number as a float, or NaN, which fails every comparison, if it is not finite."""
    try:
        number = float(value)
    except (OverflowError, TypeError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def choice(kind: type[enum.StrEnum]) -> dict[str, Check]:
    """Returns the metadata of a member of `kind`, which may be given by its value."""
    expected = "one of " + ", ".join(f"{member.value!r}" for member in kind)

    def check(value: object, field: str) -> enum.StrEnum:
        if isinstance(value, str) and value in set(kind):
            return kind(value)
        raise _error(field, expected, value)

    return {"check": check}


def member(kind: type[Member], value: object, name: str) -> Member:
    """Returns a member of `kind`, which may be given by its value.

    Args:
        kind: The enum.
        value: A member or its value.
        name: The name of the value in messages.

    Raises:
        ConfigError: It is neither.
    """
    return cast(Member, choice(kind)["check"](value, name))


def flag() -> dict[str, Check]:
    """Returns the metadata of a truth value."""

    def check(value: object, field: str) -> bool:
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        raise _error(field, "true or false", value)

    return {"check": check}


def text(shortest: int, longest: int) -> dict[str, Check]:
    """Returns the metadata of a text of `shortest` to `longest` characters."""

    def check(value: object, field: str) -> str:
        if isinstance(value, str) and shortest <= len(value) <= longest:
            return value
        raise _error(field, f"a text of {shortest} to {longest} characters", value)

    return {"check": check}


def texts(most: int, longest: int) -> dict[str, Check]:
    """Returns the metadata of a tuple of up to `most` texts of 1 to `longest` characters each."""

    def check(value: object, field: str) -> tuple[str, ...]:
        if isinstance(value, (list, tuple)) and len(value) <= most:
            for index, text in enumerate(value):
                if not isinstance(text, str) or not 1 <= len(text) <= longest:
                    expected = f"a text of 1 to {longest} characters"
                    raise _error(f"{field}[{index}]", expected, text)
            return tuple(value)
        raise _error(field, f"a list of at most {most} texts", value)

    return {"check": check}


def numbers(most: int) -> dict[str, Check]:
    """Returns the metadata of a tuple of up to `most` whole numbers of 32 bits."""

    def check(value: object, field: str) -> tuple[int, ...]:
        if isinstance(value, (list, tuple)) and len(value) <= most:
            return tuple(_token(number, f"{field}[{index}]") for index, number in enumerate(value))
        raise _error(field, f"a list of at most {most} whole numbers", value)

    return {"check": check}


def _token(value: object, field: str) -> int:
    return cast(int, whole(0, MAX_UINT32)["check"](value, field))


def biases(most: int) -> dict[str, Check]:
    """Returns the metadata of up to `most` pairs: a token, and a number from -100 to 100."""

    def check(value: object, field: str) -> tuple[tuple[int, float], ...]:
        if isinstance(value, (list, tuple)) and len(value) <= most:
            return tuple(_pair(pair, f"{field}[{index}]") for index, pair in enumerate(value))
        raise _error(field, f"a list of at most {most} pairs", value)

    return {"check": check}


def _pair(value: object, field: str) -> tuple[int, float]:
    if isinstance(value, (list, tuple)) and len(value) == 2:
        check = real(least=-100, most=100)["check"]
        return _token(value[0], field), cast(float, check(value[1], field))
    raise _error(field, "a pair of a token and a number", value)


def section(kind: type[Checked]) -> dict[str, Check]:
    """Returns the metadata of a config within a config, which may be given as a mapping."""

    def check(value: object, field: str) -> Checked:
        return value if isinstance(value, kind) else kind.from_json(value)

    return {"check": check}


@dataclasses.dataclass(frozen=True)
class Checked:
    """Base class of the configs: checks every field when built, and converts to JSON and back."""

    section: ClassVar[str] = ""
    """The prefix of field names in errors, such as `network`."""

    def __post_init__(self) -> None:
        faults: list[ConfigError] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            try:
                checked = field.metadata["check"](value, self.dotted(field.name))
                object.__setattr__(self, field.name, checked)
            except ConfigError as fault:
                faults.extend(fault.faults)
        raise_faults(faults)

    @classmethod
    def dotted(cls, name: str) -> str:
        """Returns the name of a field in errors, such as `network.hidden_size`."""
        return f"{cls.section}.{name}" if cls.section else name

    def to_json(self) -> dict[str, Any]:
        """Returns the config as JSON values: dicts, lists, strings, numbers and None."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: _plain(value) for name, value in values}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Builds the config from what `to_json` returned; fields left out get their defaults.

        Returns:
            The config.

        Raises:
            ConfigError: A value is out of its range, or `data` is not a mapping, or it names a
                field that does not exist.
        """
        if not isinstance(data, Mapping):
            raise _error(cls.section or "config", "a mapping of fields to values", data)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = [cls.dotted(str(name)) for name in data if name not in known]
        raise_faults(
            [
                ConfigError(f"{name} is not a setting that exists: remove it", name)
                for name in unknown
            ]
        )
        return cls(**data)


def typed(kind: type[Any], data: object) -> dict[str, Any]:
    """Returns the fields of a dataclass from JSON values, after checking their types.

    Fields of numbers, texts and truth values are checked; those of other types are not.

    Args:
        kind: The dataclass.
        data: The values, as `json.loads` returned them.

    Raises:
        TypeError: It is not a mapping, or a field has another type.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{kind.__name__} is not a mapping")
    for name, hint in get_type_hints(kind).items():
        parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if name not in data or not set(parts) <= {int, float, str, bool, type(None)}:
            continue
        given = type(data[name])
        if given not in parts and not (given is int and float in parts):
            raise TypeError(f"{name} must not be {str(data[name])[:40]!r}")
    return dict(data)


def raise_faults(faults: list[ConfigError]) -> None:
    """Raises the first error, which carries the others; without errors, does nothing."""
    if faults:
        faults[0].others = tuple(faults[1:])
        raise faults[0]


def _plain(value: object) -> object:
    if isinstance(value, Checked):
        return value.to_json()
    if isinstance(value, enum.Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
