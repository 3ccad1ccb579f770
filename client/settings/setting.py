"""`SETTINGS` lists the settings of a connection, with the variable and the type of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from treadle.client.errors import InputError

TRUE_WORDS = ("true", "1", "yes", "on")
FALSE_WORDS = ("false", "0", "no", "off")


@dataclass(frozen=True)
class Setting:
    """A setting of a connection."""

    name: str
    """Its name: the key in a profile, and the argument of `Client`."""
    flag: str
    """The flag of the command line; empty: none."""
    kind: type = str
    """The type of its value: text or bool."""
    is_path: bool = False
    """Whether it names a file."""

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"TREADLE_{self.name.upper()}"

    def read(self, text: str, source: str) -> str | bool:
        """Reads a value from a text.

        Args:
            text: The text.
            source: Where it stands, for the message.

        Returns:
            The value.

        Raises:
            InputError: It is no value of the setting's type.
        """
        if self.kind is bool:
            word = text.strip().lower()
            if word not in TRUE_WORDS + FALSE_WORDS:
                raise InputError(f"{source} is {text!r}: give 'true' or 'false'")
            return word in TRUE_WORDS
        return text


SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting("server", "--server"),
        Setting("tls", "--tls", bool),
        Setting("ca_file", "--ca-file", is_path=True),
        Setting("cert_file", "--cert-file", is_path=True),
        Setting("key_file", "--key-file", is_path=True),
        Setting("token", ""),
        Setting("token_file", "--token-file", is_path=True),
        Setting("allow_plaintext_token", "--allow-plaintext-token", bool),
    )
}
"""The settings by name, in the order in which they are shown."""

PROFILE_VARIABLE = "TREADLE_PROFILE"
"""The environment variable that names a profile."""

TOKENS = ("token", "token_file")
"""Settings of which one layer gives at most one."""

TLS_FILES = ("ca_file", "cert_file", "key_file")
"""Settings that turn TLS on."""
