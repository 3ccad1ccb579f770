"""`set_value` and `unset_value` change the configuration file and keep its comments and layout."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.client.errors import InputError
from treadle.client.settings.config_file import MAX_FILE_BYTES, parse_toml
from treadle.client.settings.setting import TOKENS

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

MODE = 0o600
"""The mode of a file that may hold a token."""


def set_value(path: Path, profile: str, key: str, value: str | bool) -> None:
    """Sets a key of a profile, or of the file as a whole.

    Args:
        path: The file, which is created if it is missing. Only its user may read it afterwards.
        profile: The profile, which is created if it is missing; empty: the file as a whole.
        key: The key. A token replaces the file of a token, and the other way round.
        value: The value.

    Raises:
        InputError: tomlkit is not installed, or the file cannot be read or written.
    """
    import_tomlkit()
    document = _open(path)
    table = _table(document, profile, path) if profile else document
    for other in TOKENS:
        if key in TOKENS and other != key:
            table.pop(other, None)
    table[key] = value
    _write(path, document)


def unset_value(path: Path, profile: str, key: str) -> bool:
    """Removes a key of a profile, or of the file as a whole.

    Args:
        path: The file.
        profile: The profile, which is removed with its last key; empty: the file as a whole.
        key: The key.

    Returns:
        Whether the key was set.

    Raises:
        InputError: tomlkit is not installed, or the file cannot be read or written.
    """
    import_tomlkit()
    document = _open(path)
    tables = document.get("profiles", {}) if profile else {"": document}
    table = tables.get(profile) if isinstance(tables, MutableMapping) else None
    if not isinstance(table, MutableMapping) or key not in table:
        return False
    del table[key]
    if profile and not table:
        del tables[profile]
    _write(path, document)
    return True


def import_tomlkit() -> Any:
    """Returns the module tomlkit.

    Raises:
        InputError: It is not installed.
    """
    try:
        import tomlkit
    except ImportError:
        raise InputError(
            "changing the configuration file needs tomlkit: run `pip install '.[cli]'` in a "
            "checkout of Treadle, or edit the file that `treadle config path` names"
        ) from None
    return tomlkit


def check_profile_name(name: str) -> None:
    """Checks the name of a new profile.

    Raises:
        InputError: It has other characters, or is too long.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise InputError(
            f"a profile cannot be called {name!r}: give up to 64 letters, digits, '.', '_' and '-'"
        )


def _open(path: Path) -> TOMLDocument:
    """Reads the file for a change; one that does not exist is empty.

    Returns:
        The document.

    Raises:
        InputError: It cannot be read, or is no TOML.
    """
    text = ""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_FILE_BYTES).decode("utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"'{path}' cannot be read: {reason}") from None
    parse_toml(text, path)  # for the message, which never shows the content
    document: TOMLDocument = import_tomlkit().parse(text)
    return document


def _table(document: TOMLDocument, profile: str, path: Path) -> Any:
    """Returns the table of a profile, which is created if it is missing.

    Raises:
        InputError: Something else stands in its place.
    """
    table: Any = document
    for key in ("profiles", profile):
        if key not in table:
            new = import_tomlkit().table(is_super_table=key == "profiles")
            table[key] = new
        table = table[key]
        if not isinstance(table, MutableMapping):
            raise InputError(f"'{path}': {key!r} is no table: remove it first")
    return table


def _write(path: Path, document: TOMLDocument) -> None:
    """Replaces the file in one step.

    Raises:
        InputError: It cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link to it stays one
    new = ""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, new = tempfile.mkstemp(prefix=".config-", dir=target.parent)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, MODE)
            file.write(import_tomlkit().dumps(document))
            file.flush()
            os.fsync(descriptor)
        os.replace(new, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            if new:
                os.unlink(new)
        raise InputError(f"'{path}' cannot be written: {error.strerror}") from None
