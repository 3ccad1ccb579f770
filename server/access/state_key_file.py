"""`StateKeyFile` gives the keys of `--state-key-file` to a `StateSealer`, and follows changes."""

from __future__ import annotations

import logging

from treadle.server.access.state_sealer import StateSealer, state_keys
from treadle.server.config import ServerConfig, SettingError
from treadle.server.resources.file_watch import FileWatch

logger = logging.getLogger(__name__)


class StateKeyFile:
    """The file with the keys for states.

    Args:
        config: The settings, which name the file.

    Raises:
        SettingError: The file cannot be used.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._watch = FileWatch(config.state_key_file)
        self.sealer = StateSealer(state_keys(config.state_key_bytes()))
        """Seals with the first key; without a file it seals nothing."""

    async def follow(self) -> None:
        """Takes the keys of the file whenever it changes, until this is cancelled."""
        if self._config.state_key_file:
            await self._watch.follow(self.reload)

    def reload(self) -> None:
        """Reads the file again; if it cannot be used, the keys stay as they are."""
        try:
            keys = state_keys(self._config.state_key_bytes())
        except SettingError as error:
            logger.error("%s; the state keys that were read before stay in use", error)
            return
        before = self.sealer.keys
        self.sealer.keys = keys
        if keys != before:
            names = ", ".join(key.id.hex() for key in keys)
            logger.info("state keys in use, the first one for new states: %s", names)
