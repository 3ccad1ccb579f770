"""`read_rights` reads the role, the models and the quotas of a table of the callers file."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from treadle.server.access.caller import ALL_MODELS, Role
from treadle.server.access.quotas import Quotas
from treadle.server.access.toml_table import TomlTable, kind_of, shown

UNLIMITED = "unlimited"
"""The quota of a caller that has none, whatever the defaults are."""

QUOTAS = tuple(item.name for item in fields(Quotas))
"""The names of the quotas."""

_PATTERN = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._*?-]{0,99}")
_MOST_BYTES = (1 << 63) - 1
_MOST_COUNT = (1 << 32) - 1
_ROLES = {role.title: role for role in Role}
ROLES = tuple(_ROLES)
"""The names of the roles, from the least to the most."""


@dataclass(frozen=True)
class Rights:
    """What a caller may do, and how much."""

    role: Role
    """Its role."""
    read_models: tuple[str, ...]
    """Patterns of the models that it may read."""
    write_models: tuple[str, ...]
    """Patterns of the models that it may write; none of a role below trainer."""
    quotas: Quotas
    """Its quotas, those by default included."""


def read_rights(table: TomlTable, default_quotas: Quotas) -> Rights:
    """Returns the rights that a table gives.

    Args:
        table: It has `role`, `models` or `read_models` and `write_models`, and `quotas`.
        default_quotas: The quotas that it does not name.

    Raises:
        TomlError: One of them is missing or cannot be used.
    """
    role = _ROLES[table.text("role", fault=role_fault)]
    both = table.texts("models", fault=pattern_fault)
    read = table.texts("read_models", fault=pattern_fault)
    write = table.texts("write_models", fault=pattern_fault)
    quotas = read_quotas(table, default_quotas)
    if role is Role.ADMIN:
        for key in ("models", "read_models", "write_models"):
            if table.has(key) and table.texts(key) != ALL_MODELS:
                raise table.error(key, "does not limit an admin; remove it, or use another role")
        return Rights(role, ALL_MODELS, ALL_MODELS, quotas)
    if not any(table.has(key) for key in ("models", "read_models", "write_models")):
        raise table.error(
            "models", 'is missing; list the names or patterns, or ["*"] for every model'
        )
    if table.has("write_models") and role < Role.TRAINER:
        raise table.error(
            "write_models", f"needs the role trainer, not {role.title}; use read_models"
        )
    may_write = both + write if role >= Role.TRAINER else ()
    return Rights(role, _once(both + read + write), _once(may_write), quotas)


def read_quotas(table: TomlTable, defaults: Quotas) -> Quotas:
    """Returns the quotas in the key `quotas` of a table.

    Args:
        table: The table.
        defaults: Those that it does not name.

    Raises:
        TomlError: One is unknown or no number.
    """
    values = table.table("quotas")
    if values is None:
        return defaults
    quotas: dict[str, int | None] = {}
    for name in QUOTAS:
        value = values.value(name)
        if value is None:
            quotas[name] = getattr(defaults, name)
            continue
        if fault := quota_fault(name, value):
            raise values.error(name, fault)
        quotas[name] = None if value == UNLIMITED else value
    values.finish()
    return Quotas(**quotas)


def _once(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(patterns))


def pattern_fault(pattern: str) -> str:
    """Returns what is wrong with a pattern of model names, as a clause that follows, or ''."""
    if _PATTERN.fullmatch(pattern):
        return ""
    form = "a model's name with * for any characters and ? for one, such as 'team-a-*'"
    return f"must have patterns, each {form}, not {shown(pattern)}"


def role_fault(text: str) -> str:
    """Returns what is wrong with the name of a role, as a clause that follows it, or ''."""
    return "" if text in _ROLES else f"must be {_either(list(_ROLES))}, not {shown(text)}"


def quota_fault(name: str, value: object) -> str:
    """Returns what is wrong with a quota, as a clause that follows it, or ''.

    Args:
        name: The name of the quota, a field of `Quotas`.
        value: A number, or `UNLIMITED`.
    """
    least = 1 if name == "tokens_per_minute" else 0
    most = _MOST_BYTES if name.endswith(("_bytes", "_minute")) else _MOST_COUNT
    if value == UNLIMITED:
        return ""
    if isinstance(value, bool) or not isinstance(value, int):
        found = shown(value) if isinstance(value, str) else kind_of(value)
        return f'must be a whole number or "{UNLIMITED}", not {found}'
    if not least <= value <= most:
        return f'must be {least} to {most}, or "{UNLIMITED}"'
    return ""


def _either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
