"""`ConfigFile` is the configuration file of the client: named profiles of connections, in TOML.

    default_profile = "prod"

    [profiles.prod]
    server = "treadle.example.com:443"
    ca_file = "company-ca.pem"
    token_file = "~/.config/treadle/prod.token"

Names of files are relative to the folder of the configuration file.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from treadle.client.errors import InputError
from treadle.client.settings.setting import SETTINGS, TOKENS

Profile: TypeAlias = Mapping[str, str | bool]
"""The settings of a profile by name."""

DEFAULT_PROFILE = "default"
"""The profile that applies where none is named."""

MAX_FILE_BYTES = 1024 * 1024
"""The largest configuration file that is read."""


@dataclass(frozen=True)
class ConfigFile:
    """What a configuration file holds."""

    path: Path | None
    """The file; None: there is no home directory to look in."""
    profiles: Mapping[str, Profile] = field(default_factory=dict, repr=False)
    """The profiles by name."""
    default_profile: str = ""
    """The profile that applies where none is named; empty: `default`, if there is one."""
    warnings: tuple[str, ...] = ()
    """What is not as it should be, in sentences."""
    exists: bool = False
    """Whether there is such a file."""

    def chosen(self, name: str) -> str:
        """Returns the name of the profile that applies; empty: none.

        Args:
            name: The profile that was asked for; empty: none was.

        Raises:
            InputError: There is no such profile.
        """
        chosen = name or self.default_profile
        if not chosen:
            return DEFAULT_PROFILE if DEFAULT_PROFILE in self.profiles else ""
        if chosen not in self.profiles:
            raise InputError(self._missing(chosen, bool(name)))
        return chosen

    def _missing(self, name: str, is_named: bool) -> str:
        """Returns the sentence about a profile that does not exist."""
        if self.path is None:
            return f"there is no profile {name!r}: there is no home directory with profiles"
        if not self.exists:
            return f"there is no profile {name!r}: there is no file '{self.path}'"
        names = ", ".join(sorted(self.profiles)) or "none"
        who = "there is no profile" if is_named else "default_profile names no profile:"
        return f"{who} {name!r} in '{self.path}'; it has: {names}"


def config_path(environment: Mapping[str, str]) -> Path | None:
    """Returns the path of the configuration file; None where there is no home directory.

    Args:
        environment: The environment variables; XDG_CONFIG_HOME and HOME count.
    """
    base = environment.get("XDG_CONFIG_HOME", "")
    if os.path.isabs(base):  # others are to be ignored
        return Path(base) / "treadle" / "config.toml"
    home = environment.get("HOME", "")
    return Path(home) / ".config" / "treadle" / "config.toml" if os.path.isabs(home) else None


def read_config(path: Path | None) -> ConfigFile:
    """Reads a configuration file; one that does not exist has no profiles.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        InputError: It cannot be read, is no TOML, or has wrong keys or values.
    """
    content = None if path is None else _read(path)
    if path is None or content is None:
        return ConfigFile(path)
    text, mode = content
    document = parse_toml(text, path)
    for key in document:
        if key not in ("default_profile", "profiles"):
            raise _fault(
                path, text, (key,), f"{key!r} is unknown: give default_profile or profiles"
            )
    default_profile = document.get("default_profile", "")
    if not isinstance(default_profile, str):
        raise _fault(path, text, ("default_profile",), "default_profile is the name of a profile")
    tables = document.get("profiles", {})
    if not isinstance(tables, dict):
        raise _fault(path, text, ("profiles",), "profiles is a table: write [profiles.NAME]")
    profiles = {name: _read_profile(path, text, name, table) for name, table in tables.items()}
    warnings: tuple[str, ...] = ()
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and any("token" in each for each in profiles.values()):
        warnings = (
            f"'{path}' holds a token and others may read or change it: run `chmod 600 {path}`",
        )
    return ConfigFile(path, profiles, default_profile, warnings, exists=True)


def read_default_profile(path: Path) -> str:
    """Returns the file's default_profile, whatever else is wrong with the file; empty: none.

    Args:
        path: The file.

    Raises:
        InputError: It cannot be read, or is no TOML.
    """
    content = _read(path)
    name = parse_toml(content[0], path).get("default_profile") if content else ""
    return name if isinstance(name, str) else ""


def parse_toml(text: str, path: Path) -> dict[str, object]:
    """Parses TOML.

    Args:
        text: The text.
        path: The file that it comes from.

    Returns:
        The document.

    Raises:
        InputError: It is no TOML. The message has the place, and nothing of the content.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"'{path}' is no valid TOML: {error}") from None
    except RecursionError:
        raise InputError(f"'{path}' is nested too deeply") from None


def _read(path: Path) -> tuple[str, int] | None:
    """Reads a file.

    Returns:
        Its text and its mode; None where there is no such file.

    Raises:
        InputError: It cannot be read, or is no text.
    """
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        # A process under another user id often still has the home directory of root.
        if not os.access(path.parent, os.X_OK):
            return None
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"'{path}' is larger than {MAX_FILE_BYTES:,} bytes: it is no such file")
    try:
        return content.decode("utf-8"), mode
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"'{path}' is not UTF-8 in line {line}") from None


def _read_profile(path: Path, text: str, name: str, table: object) -> Profile:
    """Reads a profile.

    Returns:
        Its settings; names of files are absolute.

    Raises:
        InputError: A key or a value is wrong.
    """
    if not isinstance(table, dict):
        raise _fault(path, text, ("profiles", name), f"profile {name!r} is not a table")
    profile: dict[str, str | bool] = {}
    for key, value in table.items():
        place = ("profiles", name, key)
        setting = SETTINGS.get(key)
        if setting is None:
            known = ", ".join(f"'{each}'" for each in SETTINGS)
            raise _fault(path, text, place, f"{key!r} is unknown: a profile has {known}")
        if not isinstance(value, setting.kind) or value == "":
            kind = "true or false" if setting.kind is bool else "a text in quotes"
            raise _fault(path, text, place, f"the value of {key!r} must be {kind}")
        if setting.is_path and isinstance(value, str):
            value = os.path.join(path.parent, os.path.expanduser(value))
        profile[key] = value
    if all(key in profile for key in TOKENS):
        raise _fault(path, text, ("profiles", name, "token"), "give either 'token' or 'token_file'")
    return profile


def _fault(path: Path, text: str, place: tuple[str, ...], reason: str) -> InputError:
    """Returns the error about a key, with its line where it can be found."""
    line = line_of(text, place)
    return InputError(f"'{path}'{f' line {line}' if line else ''}: {reason}")


def line_of(text: str, place: tuple[str, ...]) -> int:
    """Returns the line of a key in TOML, from 1; 0 where it cannot be found.

    tomllib has no positions, so each line is parsed by itself here.

    Args:
        text: The document.
        place: The key with the tables around it.
    """
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            keys = _first_keys(tomllib.loads(line))
        except (tomllib.TOMLDecodeError, RecursionError):
            # A value of several lines; its first line has the key.
            try:
                keys = _first_keys(tomllib.loads(line.partition("=")[0] + "= 0"))
            except (tomllib.TOMLDecodeError, RecursionError):
                continue
        if line.lstrip().startswith("["):
            table = keys
            keys = ()
        if (table + keys)[: len(place)] == place:
            return number
    return 0


def _first_keys(document: object) -> tuple[str, ...]:
    """Returns the keys on the way to the first value of a document."""
    keys: list[str] = []
    while isinstance(document, list) and document:
        document = document[0]
    while isinstance(document, dict) and document:
        key = next(iter(document))
        keys.append(key)
        document = document[key]
        while isinstance(document, list) and document and isinstance(document[0], dict):
            document = document[0]
    return tuple(keys)
