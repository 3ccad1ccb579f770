"""Names of versions: NAME@ALIAS is the version of model NAME that ALIAS names.

`latest` is always the newest version and is not kept anywhere; every other alias is a row of the
database, moved from one version to another at once.
"""

from __future__ import annotations

import grpc

from treadle.server.errors import StatusError, invalid, not_found, shorten
from treadle.server.messages.requests import NAME

LATEST = "latest"
"""The alias of the newest version."""

_SHOWN_BYTES = 100


def split(name: str, version: int) -> tuple[str, str]:
    """Returns the model's name and the alias in NAME or NAME@ALIAS; empty where there is none.

    Args:
        name: The name as asked for.
        version: The version asked for with it; 0: none.

    Raises:
        StatusError: INVALID_ARGUMENT for an alias and a version.
    """
    model, _, alias = name.partition("@")
    if "@" in name and version:
        shown = shorten(name, _SHOWN_BYTES)
        text = f"{shown!r} names a version already: leave out version {version}, or the alias"
        raise invalid([("version", text)])
    if "@" in name and not alias:
        raise invalid([("model", f"model must be NAME or NAME@ALIAS, not {model!r} with a bare @")])
    return model, alias


def check(alias: str) -> None:
    """Checks that a version may be given a name.

    Raises:
        StatusError: INVALID_ARGUMENT: it is `latest`, a number, or cannot be a name at all.
    """
    shown = shorten(alias, _SHOWN_BYTES)
    if not NAME.fullmatch(alias):
        wanted = "1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
        raise invalid([("alias", f"alias must be {wanted}, not {shown!r}")])
    if alias == LATEST:
        raise invalid([("alias", "alias must not be 'latest', which always is the newest version")])
    if alias.isdecimal():
        raise invalid([("alias", f"alias must not be a number such as {shown!r}: say version")])


def unknown(model: str, alias: str) -> StatusError:
    """Returns NOT_FOUND for an alias that a model does not have."""
    message = f"there is no alias {shorten(alias, _SHOWN_BYTES)!r} of model {model!r}"
    return StatusError(grpc.StatusCode.NOT_FOUND, message, *not_found(model).details)
