"""`name_violations` and its neighbours check names, aliases, request ids and tags.

NAME@ALIAS is the version of model NAME that ALIAS leads to. The alias `latest` always leads to the
newest version and is stored nowhere. Every other alias is a row of the database.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from treadle.server.errors import Violation, invalid, shorten

LATEST = "latest"
"""The alias of the newest version."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_FORM = "1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"

_MAX_REQUEST_ID = 100
"""The most characters of a request id."""

_TAG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")

_MAX_TAG_VALUE = 256
"""The most characters of the value of a tag."""

_SHOWN_CHARACTERS = 40
_SHOWN_BYTES = 100


def is_name(text: str) -> bool:
    """Returns whether a model, an alias or a job may have this name.

    A name is also the name of a directory: it has no slash and no leading dot.
    """
    return _NAME.fullmatch(text) is not None


def name_violations(name: str, field: str) -> list[Violation]:
    """Returns what is wrong with the name of a model or an alias.

    Args:
        name: The name.
        field: The field of the request that holds it.

    Returns:
        Nothing, or one violation of `field`.
    """
    if is_name(name):
        return []
    cut = name[:_SHOWN_CHARACTERS]
    shown = repr(name) if cut == name else f"{cut!r}…"
    return [(field, f"{field} must be {_NAME_FORM}, not {shown}")]


def alias_violations(alias: str, field: str = "alias") -> list[Violation]:
    """Returns what is wrong with an alias that a version is to get.

    Args:
        alias: The alias.
        field: The field of the request that holds it.

    Returns:
        Nothing, or one violation of `field`.
    """
    if alias == LATEST:
        text = f"{field} must not be '{LATEST}', which always is the newest version"
        return [(field, text)]
    if alias.isdecimal():
        shown = shorten(alias, _SHOWN_BYTES)
        return [(field, f"{field} must not be a number such as {shown!r}: set version instead")]
    return name_violations(alias, field)


def reference_violations(reference: str, field: str = "model") -> list[Violation]:
    """Returns what is wrong with NAME or NAME@ALIAS.

    Args:
        reference: The reference.
        field: The field of the request that holds it.

    Returns:
        Nothing, or one violation of `field`.
    """
    name, mark, alias = reference.partition("@")
    violations = name_violations(name, field)
    if mark and not violations:
        return name_violations(alias, field)
    return violations


def request_id_violations(request_id: str, field: str) -> list[Violation]:
    """Returns what is wrong with a request id, which may be empty.

    Args:
        request_id: The request id.
        field: The field of the request that holds it.

    Returns:
        Nothing, or one violation of `field`.
    """
    printable = request_id.isascii() and request_id.isprintable()
    if printable and len(request_id) <= _MAX_REQUEST_ID:
        return []
    text = f"request_id must be up to {_MAX_REQUEST_ID} printable characters of ASCII"
    return [(field, text)]


def tag_violations(tags: Mapping[str, str], field: str) -> list[Violation]:
    """Returns what is wrong with the names and values of tags.

    Args:
        tags: The tags.
        field: The field of the request that holds them.

    Returns:
        Nothing, or one violation of `field`, of the first tag at fault.
    """
    for name, value in sorted(tags.items()):
        shown = shorten(name, _SHOWN_BYTES)
        if _TAG_NAME.fullmatch(name) is None:
            form = "1 to 63 letters, digits, '.', '_', '-' and '/', the first a letter or digit"
            return [(field, f"{field} must have names of {form}, not {shown!r}")]
        if len(value) > _MAX_TAG_VALUE:
            most = f"at most {_MAX_TAG_VALUE} characters, not {len(value):,}"
            return [(field, f"{field} must have values of {most}: shorten that of {shown!r}")]
        if any(unicodedata.category(character) == "Cc" for character in value):
            text = f"{field} must have values without control characters: change that of {shown!r}"
            return [(field, text)]
    return []


def split(reference: str, version: int) -> tuple[str, str]:
    """Returns the name and the alias in NAME or NAME@ALIAS.

    Args:
        reference: The model as the caller names it.
        version: The version that the caller asks for; 0: none.

    Returns:
        The name and the alias; the alias is empty if the reference has no `@`.

    Raises:
        StatusError: INVALID_ARGUMENT: there is an alias and a version, or an empty alias.
    """
    name, mark, alias = reference.partition("@")
    if mark and version:
        shown = shorten(reference, _SHOWN_BYTES)
        text = f"{shown!r} names a version already: leave out version {version}, or the alias"
        raise invalid([("version", text)])
    if mark and not alias:
        raise invalid([("model", f"model must be NAME or NAME@ALIAS, not {name!r} with a bare @")])
    return name, alias


def check_name(name: str, field: str = "model") -> None:
    """Checks the name of a model.

    Raises:
        StatusError: INVALID_ARGUMENT: no model can have that name.
    """
    _check(name_violations(name, field))


def check_reference(reference: str, field: str = "model") -> None:
    """Checks NAME or NAME@ALIAS.

    Raises:
        StatusError: INVALID_ARGUMENT: no model or no alias can have that name.
    """
    _check(reference_violations(reference, field))


def check_alias(alias: str) -> None:
    """Checks that a version may get an alias.

    Raises:
        StatusError: INVALID_ARGUMENT: it is `latest` or a number, or no alias can have that name.
    """
    _check(alias_violations(alias))


def check_model_and_alias(model: str, alias: str) -> None:
    """Checks the `model` and `alias` fields of a request.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault.
    """
    _check(name_violations(model, "model") + alias_violations(alias))


def _check(violations: list[Violation]) -> None:
    if violations:
        raise invalid(violations)
