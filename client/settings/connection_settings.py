"""`ConnectionSettings` are the settings of a connection from flags, environment and a profile.

A flag takes precedence over an environment variable, and that over the profile. A profile is for
its own server: its token is sent to no other one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from treadle.client.argument_names import ArgumentNames
from treadle.client.errors import InputError
from treadle.client.settings.config_file import ConfigFile, Profile, config_path, read_config
from treadle.client.settings.setting import PROFILE_VARIABLE, SETTINGS, TLS_FILES, TOKENS

if TYPE_CHECKING:
    from treadle.client.access.bearer_token import TokenSource

SECRET_FILES = ("key_file", "token_file")
"""Settings that name files with secrets."""

FLAGS, ENVIRONMENT, PROFILE = range(3)
"""The layers, the highest precedence first."""


class Value(NamedTuple):
    """The value of a setting."""

    value: str | bool
    """The value."""
    source: str
    """Where it comes from: a flag, a variable, or a profile."""
    layer: int
    """The layer that it comes from."""

    def __repr__(self) -> str:
        return f"Value(..., source={self.source!r})"  # it may be a token


@dataclass(frozen=True)
class ConnectionSettings:
    """The settings of one connection."""

    values: Mapping[str, Value]
    """The settings that are given, by name."""
    config: ConfigFile
    """The configuration file."""
    profile: str
    """The profile that applies; empty: none."""
    profile_source: str = ""
    """Where its name comes from."""
    unused_profile: str = ""
    """The default profile, where it is left out because another server is named."""

    def warnings(self) -> list[str]:
        """Returns what is not as it should be, in sentences."""
        found = list(self.config.warnings)
        for name in SECRET_FILES:
            path = str(self.values[name].value) if name in self.values else ""
            if path and _is_open_to_all(path):
                found.append(
                    f"every user of this machine may read the secret in {path!r}: run `chmod 600 "
                    f"{path}`"
                )
        return found

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments for `Client`.

        Raises:
            InputError: The file of a token cannot be used.
        """
        arguments: dict[str, Any] = {
            name: value.value for name, value in self.values.items() if name != "server"
        }
        token = self.token()
        arguments.pop("token_file", None)
        if token is not None:
            arguments["token"] = token
        if "server" in self.values:
            arguments["address"] = self.values["server"].value
        return arguments

    def blamed(self, error: InputError) -> InputError:
        """Returns an error about a setting with the variable or the profile that gave it.

        Args:
            error: The error, in the names of `Client`.
        """
        names = {}
        for name, value in self.values.items():
            if value.layer == ENVIRONMENT and SETTINGS[name].kind is str:
                names[name] = value.source
            elif value.layer == PROFILE and SETTINGS[name].kind is str:
                names[name] = f"`{name}` of {value.source}"
        sentence = error.in_names_of(ArgumentNames(names, are_flags=True))
        return InputError(sentence, error.argument)

    def token(self) -> TokenSource | None:
        """Returns the token, or what reads it from a file; None: none is given.

        Raises:
            InputError: The file cannot be used.
        """
        from treadle.client.access.bearer_token import TokenFile

        if "token_file" in self.values:
            return TokenFile(str(self.values["token_file"].value))
        return str(self.values["token"].value) if "token" in self.values else None


def resolve_settings(
    flags: Mapping[str, str | bool],
    environment: Mapping[str, str],
    profile: str = "",
) -> ConnectionSettings:
    """Returns the settings of a connection.

    Args:
        flags: Settings that are given directly, by name.
        environment: The environment variables. Empty ones count as not set.
        profile: The profile that is asked for; empty: the one of TREADLE_PROFILE or the default.

    Returns:
        The settings, each with its source.

    Raises:
        InputError: The configuration file or a value is wrong, there is no such profile, settings
            contradict each other, or the profile's token would go to another server.
    """
    config = read_config(config_path(environment))
    name = profile or environment.get(PROFILE_VARIABLE, "")
    chosen = config.chosen(name)
    layers: list[dict[str, Value]] = [
        {key: Value(value, SETTINGS[key].flag or key, FLAGS) for key, value in flags.items()},
        _from_environment(environment),
    ]
    given = _merged(layers)
    settings = config.profiles.get(chosen, {})
    is_elsewhere = "server" in given and settings.get("server") not in (
        None,
        given["server"].value,
    )
    unused = ""
    if is_elsewhere and not name:
        unused = chosen
        chosen = ""
        settings = {}
    layers.append(
        {key: Value(each, f"profile {chosen!r}", PROFILE) for key, each in settings.items()}
    )
    values = _merged(layers)
    if is_elsewhere and any(values[key].layer == PROFILE for key in TOKENS if key in values):
        raise InputError(_elsewhere(chosen, settings, values["server"]))
    source = ""
    if chosen:
        source = "default" if not name else "--profile" if profile else PROFILE_VARIABLE
    return ConnectionSettings(values, config, chosen, source, unused)


def _is_open_to_all(path: str) -> bool:
    """Returns whether every user of the machine may read a file."""
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except (OSError, ValueError):  # reported where the file is read
        return False


def _elsewhere(profile: str, settings: Profile, server: Value) -> str:
    """Returns the sentence about a token that would go to another server than its own."""
    return (
        f"the token of the profile {profile!r} is for {settings['server']}, and {server.source} "
        f"names {server.value}: leave one of them out, or give another token"
    )


def _from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    """Reads the environment variables.

    Returns:
        The settings that they give.

    Raises:
        InputError: A value is wrong.
    """
    found = {}
    for name, setting in SETTINGS.items():
        text = environment.get(setting.variable, "")
        if text:
            value = setting.read(text, setting.variable)
            if setting.is_path and isinstance(value, str):
                value = os.path.expanduser(value)
            found[name] = Value(value, setting.variable, ENVIRONMENT)
    return found


def _merged(layers: list[dict[str, Value]]) -> dict[str, Value]:
    """Merges layers, the highest precedence first.

    A token replaces the file of a token of a lower layer, and the other way round. TLS that is
    turned off leaves out the files of lower layers, and a file leaves out a lower `tls`.

    Returns:
        The settings, in the order in which they are shown.

    Raises:
        InputError: A layer gives a token twice.
    """
    values: dict[str, Value] = {}
    for layer in layers:
        tokens = [layer[key] for key in TOKENS if key in layer]
        if len(tokens) > 1:
            raise InputError(f"give either {tokens[0].source} or {tokens[1].source}")
        left_out: set[str] = set()
        if any(key in values for key in TOKENS):
            left_out.update(TOKENS)
        if "tls" in values and not values["tls"].value:
            left_out.update(TLS_FILES)
        if any(key in values for key in TLS_FILES):
            left_out.add("tls")
        values |= {
            key: value for key, value in layer.items() if key not in left_out and key not in values
        }
    return {key: values[key] for key in SETTINGS if key in values}
