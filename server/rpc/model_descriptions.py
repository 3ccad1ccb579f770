"""`ModelDescriptions` describes stored models to callers, from memory where possible.

A version never changes, so its description is made once. Only its aliases may change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from treadle.server.errors import StatusError
from treadle.server.messages import responses
from treadle.server.messages.page import Page
from treadle.server.storage.model_version import StoredModel
from treadle.server.storage.models import ModelStore
from treadle.v1 import sequence_pb2 as pb

_KEPT_BYTES = 32 << 20
"""Bytes of descriptions that are kept: those of some 20,000 models."""


class ModelDescriptions:
    """Describes stored models. All methods may block on the disk and be called from any thread.

    Args:
        model_store: The stored models.
        max_message_bytes: Bytes of the largest reply.
    """

    def __init__(self, model_store: ModelStore, max_message_bytes: int) -> None:
        self._model_store = model_store
        self._max_message_bytes = max_message_bytes
        self._kept: OrderedDict[StoredModel, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def page(
        self, most: int, after: str, is_shown: Callable[[str], bool] = lambda _: True
    ) -> tuple[list[pb.Model], str]:
        """Returns one page of the newest versions, sorted by name, including damaged ones.

        Args:
            most: The most models on the page; it has fewer if a reply holds no more.
            after: The name after which the page begins.
            is_shown: Returns whether the caller may see a model of that name.

        Returns:
            The models, and the name after which the next page begins; empty on the last page.
        """
        page: Page[pb.Model] = Page(most, self._max_message_bytes)
        for stored in self._model_store.newest(after, is_shown):
            if not page.take(self._listed(stored)):
                return page.items, page.items[-1].name
        return page.items, ""

    def describe(self, stored: StoredModel) -> pb.Model:
        """Returns the description of a version.

        Raises:
            StatusError: DATA_LOSS: its file is damaged; NOT_FOUND: it was deleted.
            DatabaseError: The database failed.
        """
        message = self._description(stored)
        names, message.alias_count = self._model_store.aliases.of_version(
            stored.name, stored.version
        )
        message.aliases.extend(names)
        return message

    def _listed(self, stored: StoredModel) -> pb.Model:
        try:
            return self.describe(stored)
        except StatusError as error:
            return responses.damaged_model(stored, error.message)

    def _description(self, stored: StoredModel) -> pb.Model:
        """Returns the description of a version without its aliases."""
        with self._lock:
            kept = self._kept.get(stored)
            if kept is not None:
                self._kept.move_to_end(stored)
        if kept is not None:
            return pb.Model.FromString(kept)
        message = responses.model(stored, self._model_store.describe(stored))
        data = message.SerializeToString()
        with self._lock:
            if stored not in self._kept:
                self._kept[stored] = data
                self._kept_bytes += len(data)
            while self._kept_bytes > _KEPT_BYTES:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return message
