"""`ModelStore` finds, names and describes the models that are stored.

All methods block on the disk: call them from threads.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc

from treadle.server.errors import StatusError, not_found, shorten, unknown_alias
from treadle.server.failures import is_out_of_files
from treadle.server.names import LATEST, check_alias, is_name, split
from treadle.server.storage import model_version
from treadle.server.storage.database import Database
from treadle.server.storage.model_limits import (
    DEFAULT_LIMITS,
    ModelLimits,
    too_many_aliases,
    too_many_models,
    too_many_versions,
)
from treadle.server.storage.model_version import MODEL_FILE, Description, StoredModel
from treadle.server.storage.version_index import VersionIndex

logger = logging.getLogger(__name__)

_REMEMBERED = 4096

_ALIASES = 100
"""Aliases of a version that are shown."""


class ModelStore:
    """The models that are stored.

    Args:
        models: Their directory.
        database: Where their aliases are.
        limits: How many there may be.
    """

    def __init__(
        self, models: Path, database: Database, limits: ModelLimits = DEFAULT_LIMITS
    ) -> None:
        self._models = models
        self._limits = limits
        self.database = database
        """Jobs, events, aliases and corpora."""
        # Names and versions change under this lock only.
        self._changing = threading.Lock()
        self._naming = threading.Lock()
        self._described: OrderedDict[StoredModel, Description] = OrderedDict()
        self._index = VersionIndex(models)
        self._aliases: dict[str, dict[int, tuple[list[str], int]]] = {}
        self._aliases_changed = 0

    def check_free(self, name: str) -> None:
        """Checks that versions of `name` can be stored, before anybody trains one.

        Raises:
            StatusError: FAILED_PRECONDITION.
        """
        home = self._models / name
        if home.is_symlink():
            message = f"the server cannot change model {name!r}: a link has the name of its folder"
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)
        if home.exists() and not home.is_dir():
            message = f"the server cannot store model {name!r}: a file has the name of its folder"
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)

    def check_new(self, name: str, alias: str = "", coming: Sequence[str] = ()) -> None:
        """Checks that there may be one more version of a model, and one with an alias.

        Args:
            name: The model.
            alias: The alias; empty: none.
            coming: The models of which others are about to store a version each.

        Raises:
            StatusError: FAILED_PRECONDITION.
            OSError: The disk failed.
            DatabaseError: The database failed.
        """
        self.check_free(name)
        ahead = coming.count(name)
        count = len(self._index.numbers(name))
        if count + ahead >= self._limits.versions:
            raise too_many_versions(name, count, ahead)
        if not count and not ahead:
            models = len(os.listdir(self._models))
            new = sum(not self._is_there(other) for other in {*coming, name})
            if not self._is_there(name) and models + new > self._limits.models:
                raise too_many_models(models)
        if alias:
            self._check_alias(name, alias)

    def versions(self, name: str) -> list[int]:
        """Returns a model's versions, oldest first; none where there is no such model."""
        return [*self._index.numbers(name)]

    def find(self, name: str, version: int = 0) -> StoredModel:
        """Returns one version of a model, by default the newest.

        Args:
            name: NAME or NAME@ALIAS.
            version: Its version; 0: what the alias says, or the newest.

        Raises:
            StatusError: NOT_FOUND; INVALID_ARGUMENT for an alias and a version.
            DatabaseError: The database failed.
        """
        name, alias = split(name, version)
        if alias and not is_name(name):  # the rest of NAME@ALIAS is not checked before
            raise not_found(shorten(name, 100))
        if alias and alias != LATEST:
            version = self.database.aliased(name, alias)
            if version < 1:
                raise unknown_alias(name, alias) if self.versions(name) else not_found(name)
        if not version:
            return self._newest_of(name)
        try:
            return self._stat(name, version)
        except (FileNotFoundError, NotADirectoryError):
            raise not_found(name, version) from None

    def _newest_of(self, name: str) -> StoredModel:
        for _ in range(2):
            version = max(self._index.numbers(name), default=0)
            if not version:
                break
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return self._stat(name, version)
            self._index.forget(name)  # its file was taken away by hand
        raise not_found(name)

    def set_alias(self, name: str, alias: str, version: int = 0) -> StoredModel:
        """Gives a version, by default the newest, a name, and takes it from any other.

        Raises:
            StatusError: NOT_FOUND; INVALID_ARGUMENT for what cannot be an alias;
                FAILED_PRECONDITION where the model has too many.
            OSError: The disk is full.
            DatabaseError: The database failed.
        """
        check_alias(alias)
        with self._changing:
            model = self.find(name, version)
            self._check_alias(model.name, alias)
            with self._renaming(model.name):
                self.database.set_alias(model.name, alias, model.version)
        return model

    def _check_alias(self, name: str, alias: str) -> None:
        """Refuses a new alias where a model has as many as it may."""
        known = self.database.aliases(name)
        if alias not in known and len(known) >= self._limits.aliases:
            raise too_many_aliases(name, len(known))

    def _is_there(self, name: str) -> bool:
        return (self._models / name).exists()

    def delete_alias(self, name: str, alias: str) -> None:
        """Takes a name away from the version that has it.

        Raises:
            StatusError: NOT_FOUND.
            OSError: The disk is full.
            DatabaseError: The database failed.
        """
        with self._renaming(name):
            there = self.database.delete_alias(name, alias)
        if not there:
            raise unknown_alias(name, alias) if self.versions(name) else not_found(name)

    def aliases_of(self, name: str, version: int) -> tuple[list[str], int]:
        """Returns the first names of a version in their order, and how many there are.

        `latest` is not among them.

        Raises:
            DatabaseError: The database failed.
        """
        known = self._aliases.get(name, {}).get(version)
        if known is not None:
            return known
        changed = self._aliases_changed
        found = self.database.aliases_of(name, version, _ALIASES)
        with self._naming:
            if changed == self._aliases_changed:  # else it may be what was there before
                if len(self._aliases) >= _REMEMBERED:
                    self._aliases.clear()
                self._aliases.setdefault(name, {})[version] = found
        return found

    @contextlib.contextmanager
    def _renaming(self, name: str) -> Iterator[None]:
        """Has the database asked again which aliases a model has, after a change of them."""
        try:
            yield
        finally:
            with self._naming:
                self._aliases_changed += 1
                self._aliases.pop(name, None)

    def describe(self, model: StoredModel) -> Description:
        """Returns what a model's file says of it; remembered, since versions never change.

        Raises:
            StatusError: DATA_LOSS where the file is damaged; NOT_FOUND where it is gone.
        """
        description = self._described.get(model)
        if description is None:
            description = self._described[model] = model_version.describe(model)
            while len(self._described) > _REMEMBERED:
                self._described.popitem(last=False)
        return description

    def page(self, size: int, after: str = "") -> tuple[list[StoredModel], str]:
        """Returns one page of the newest versions, by name.

        Models that cannot be read are among them; `describe` says what is wrong.

        Args:
            size: The most models on the page.
            after: Name after which the page begins.

        Returns:
            The models, and the name after which the next page begins; empty on the last.
        """
        models: list[StoredModel] = []
        for model in self.newest(after):
            if len(models) == size:
                return models, models[-1].name
            models.append(model)
        return models, ""

    def newest(self, after: str = "") -> Iterator[StoredModel]:
        """Yields the newest version of each model, by name; see `page`.

        Args:
            after: Name after which they begin.
        """
        names = sorted(name for name in os.listdir(self._models) if name > after)
        for name in filter(is_name, names):
            try:
                yield self.find(name)
            except StatusError:  # a directory without a version, or just deleted
                continue
            except OSError as error:
                if is_out_of_files(error):
                    raise
                # It is closed to us, and nobody knows its versions.
                logger.warning("a model cannot be read: %s", error)
                yield StoredModel(name, 0, self._file(name, 0), 0.0, 0)

    def _file(self, name: str, version: int) -> Path:
        return self._models / name / str(version) / MODEL_FILE

    def _stat(self, name: str, version: int) -> StoredModel:
        path = self._file(name, version)
        stat = path.stat()
        return StoredModel(name, version, path, stat.st_mtime, stat.st_size)
