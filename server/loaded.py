"""Models in memory, loaded when first asked for and dropped when long unused."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from treadle.model import Model
from treadle.model.errors import CheckpointError
from treadle.server.errors import damaged, not_found
from treadle.server.store import Store, StoredModel

_TIMES_ITS_FILE = 3
"""What a model takes in memory: packed weights and a table lie beside its parameters."""


class LoadedModels:
    """The least recently used models go first once they are too large together.

    A dropped or deleted model lives on for the calls that are using it.

    Args:
        store: Where models come from.
        max_bytes: Models of this size together stay loaded, and always the newest one.
    """

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        # A whole StoredModel is the key, since a deleted model's name and number may come again.
        self._models: OrderedDict[StoredModel, Model] = OrderedDict()
        self._loading: dict[StoredModel, asyncio.Task[Model]] = {}

    async def get(self, name: str, version: int = 0) -> tuple[int, Model]:
        """Returns a model and its version, by default the newest.

        Raises:
            StatusError: NOT_FOUND, or DATA_LOSS for a damaged file.
        """
        stored = await asyncio.to_thread(self._store.find, name, version)
        if stored in self._models:
            self._models.move_to_end(stored)
            return stored.version, self._models[stored]
        if stored not in self._loading:
            loading = asyncio.create_task(self._load(stored))
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._loading[stored] = loading
        # Shielded: others may wait for the same model when this caller goes away.
        return stored.version, await asyncio.shield(self._loading[stored])

    def forget(self, name: str, versions: list[int]) -> None:
        """Drops versions that were deleted."""
        for stored in list(self._models):
            if stored.name == name and stored.version in versions:
                del self._models[stored]
        for stored in list(self._loading):
            if stored.name == name and stored.version in versions:
                del self._loading[stored]  # those who wait for it still get it

    async def _load(self, stored: StoredModel) -> Model:
        try:
            model = await asyncio.to_thread(Model.load, stored.path)
        except CheckpointError as error:
            raise damaged(stored.name, stored.version, error) from error
        except FileNotFoundError:
            raise not_found(stored.name, stored.version) from None
        finally:
            wanted = self._loading.pop(stored, None) is not None
        if not wanted:
            return model
        self._models[stored] = model
        while len(self._models) > 1 and self._size() > self._max_bytes:
            self._models.popitem(last=False)
        return model

    def _size(self) -> int:
        return _TIMES_ITS_FILE * sum(stored.size_bytes for stored in self._models)
