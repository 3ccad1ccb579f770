"""Where models lie on disk.

::

    DATA_DIR/
      lock                                  held by the one server that uses the directory
      models/NAME/VERSION/model.safetensors the model; it never changes
      models/NAME/VERSION/model.sha256      its hash, as `sha256sum --check` reads it
      tmp/                                  what is being made; emptied at every start

A version is made under `tmp/`, synced, and claimed by renaming its directory: it is there
whole or not at all. A version's number is not given again while the model has others: where
the newest is deleted, its empty directory stays. Whatever else lies in the directory is left
alone. All methods block on the disk: call them from threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc

from treadle.model.checkpoint import read_header
from treadle.model.config import CorpusLayout, NetworkConfig, TokenizerConfig
from treadle.model.errors import CheckpointError
from treadle.model.record import TrainingRecord
from treadle.server.convert import NAME
from treadle.server.errors import StatusError, damaged, not_found

logger = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
HASH_FILE = "model.sha256"

_REMEMBERED = 4096


class StoreError(Exception):
    """The data directory cannot be used. The message is one sentence."""


@dataclass(frozen=True)
class StoredModel:
    """One version of a model on disk."""

    name: str
    """The model's name."""
    version: int
    """Its version, from 1."""
    path: Path
    """Its file."""
    created_s: float
    """When it was written, in seconds since the epoch."""
    size_bytes: int
    """Bytes of its file."""


@dataclass(frozen=True)
class Description:
    """What a model's file says of it; little enough to remember of thousands."""

    network: NetworkConfig
    """The shape of its network."""
    tokenizer: TokenizerConfig
    """How it reads text."""
    layout: CorpusLayout
    """How its corpus was cut."""
    vocabulary_size: int
    """Tokens in its vocabulary, special ones included."""
    parameter_count: int
    """Trained numbers in it."""
    training: TrainingRecord | None
    """How it was trained; None where it was imported."""
    sha256: str
    """SHA-256 of its file, in lower-case hexadecimal."""


class Store:
    """The models under one data directory, which it locks against other servers.

    Args:
        root: The data directory; made if it is missing.

    Raises:
        StoreError: Another server uses the directory, or it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._models = root / "models"
        self._tmp = root / "tmp"
        # Names and versions change under this lock only.
        self._changing = threading.Lock()
        self._described: OrderedDict[StoredModel, Description] = OrderedDict()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)  # models hold memorised text
            self._models.mkdir(exist_ok=True)
            self._lock = _lock(root / "lock")
            shutil.rmtree(self._tmp, ignore_errors=True)
            self._tmp.mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"the data directory {root} cannot be used: {error}") from error

    def close(self) -> None:
        """Lets another server use the directory."""
        self._lock.close()

    def new_file(self) -> Path:
        """Returns a new empty file under `tmp/`, for a corpus."""
        path = self._tmp_name("corpus")
        path.touch(mode=0o600, exist_ok=False)
        return path

    def new_draft(self) -> Path:
        """Returns a new directory under `tmp/`, for a version to be made in."""
        draft = self._tmp_name("model")
        draft.mkdir()
        return draft

    def discard(self, path: Path) -> None:
        """Removes what `new_file` or `new_draft` returned, if it is still there.

        What cannot be removed is logged and left for the next start.
        """
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("left under tmp/ until the next start: %s", error)

    def check_free(self, name: str) -> None:
        """Checks that versions of `name` can be stored, before anybody trains one.

        Raises:
            StatusError: FAILED_PRECONDITION.
        """
        home = self._models / name
        if home.exists() and not home.is_dir():
            message = f"the server cannot store model {name!r}: a file has the name of its folder"
            raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, message)

    def claim(self, name: str, draft: Path) -> StoredModel:
        """Makes the model in a draft the newest version of `name`.

        Args:
            name: The model's name, already checked.
            draft: Directory of `new_draft` that holds MODEL_FILE; it is moved away.

        Raises:
            CheckpointError: The draft's file is damaged.
            OSError: The disk failed or is full.
        """
        read_header(draft / MODEL_FILE)
        _sync(draft)
        with self._changing:
            home = self._models / name
            home.mkdir(exist_ok=True)
            version = max(_numbers(home), default=0) + 1
            os.rename(draft, home / str(version))
            _sync(home)
            _sync(self._models)
        # Hashed in its place: a large model takes seconds, and is safe by now.
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            _sha256(home / str(version))
        return self._stat(name, version)

    def versions(self, name: str) -> list[int]:
        """Returns a model's versions, oldest first; none where there is no such model."""
        home = self._models / name
        return [number for number in _numbers(home) if self._file(name, number).is_file()]

    def find(self, name: str, version: int = 0) -> StoredModel:
        """Returns one version of a model, by default the newest.

        Raises:
            StatusError: NOT_FOUND.
        """
        if not version:
            version = max(self.versions(name), default=0)
            if not version:
                raise not_found(name)
        try:
            return self._stat(name, version)
        except (FileNotFoundError, NotADirectoryError):
            raise not_found(name, version) from None

    def describe(self, model: StoredModel) -> Description:
        """Returns what a model's file says of it; remembered, since versions never change.

        Raises:
            StatusError: DATA_LOSS where the file is damaged; NOT_FOUND where it is gone.
        """
        description = self._described.get(model)
        if description is None:
            description = self._described[model] = _describe(model)
            while len(self._described) > _REMEMBERED:
                self._described.popitem(last=False)
        return description

    def page(self, size: int, after: str = "") -> tuple[list[StoredModel], str]:
        """Returns one page of the newest versions, by name.

        Models that cannot be read are left out and logged.

        Args:
            size: The most models on the page.
            after: Name after which the page begins.

        Returns:
            The models, and the name after which the next page begins; empty on the last.
        """
        names = sorted(name for name in os.listdir(self._models) if name > after)
        found = self._readable(name for name in names if NAME.fullmatch(name))
        models: list[StoredModel] = []
        for model in found:
            if len(models) == size:
                return models, models[-1].name
            models.append(model)
        return models, ""

    def delete(self, name: str, version: int = 0) -> list[int]:
        """Deletes one version of a model, by default all of them.

        Returns:
            The versions deleted, oldest first.

        Raises:
            StatusError: NOT_FOUND.
        """
        home = self._models / name
        with self._changing:
            present = self.versions(name)
            gone = [number for number in present if version in (0, number)]
            if not gone:
                raise not_found(name, version)
            trash = self._tmp_name("deleted")
            if gone == present:
                os.rename(home, trash)
            else:
                os.rename(home / str(version), trash)
                if version > max(_numbers(home)):
                    (home / str(version)).mkdir()
                _sync(home)
            _sync(self._models)
        self.discard(trash)
        return gone

    def _readable(self, names: Iterator[str]) -> Iterator[StoredModel]:
        for name in names:
            try:
                model = self.find(name)
                self.describe(model)
            except Exception as error:
                logger.warning("left out of the list: %s: %s", name, error)
                continue
            yield model

    def _tmp_name(self, kind: str) -> Path:
        return self._tmp / f"{kind}-{secrets.token_hex(8)}"

    def _file(self, name: str, version: int) -> Path:
        return self._models / name / str(version) / MODEL_FILE

    def _stat(self, name: str, version: int) -> StoredModel:
        path = self._file(name, version)
        stat = path.stat()
        return StoredModel(name, version, path, stat.st_mtime, stat.st_size)


def _lock(path: Path) -> IO[str]:
    """Returns the lock file, held until it is closed or the process ends."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise StoreError(
            f"the data directory {path.parent} is in use by another server (process {holder}); "
            "stop it, or name another --data-dir"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _numbers(home: Path) -> list[int]:
    """Returns the version numbers under a model's directory, in order; empty ones too."""
    try:
        names = os.listdir(home)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(name) for name in names if _is_version(name))


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name[0] != "0" and len(name) < 19


def _describe(model: StoredModel) -> Description:
    try:
        header = read_header(model.path)
        return Description(
            network=header.network,
            tokenizer=header.tokenizer.config,
            layout=header.tokenizer.layout,
            vocabulary_size=header.tokenizer.vocabulary_size,
            parameter_count=header.shape.parameter_count,
            training=header.training,
            sha256=_sha256(model.path.parent),
        )
    except CheckpointError as error:
        raise damaged(model.name, model.version, error) from error
    except FileNotFoundError:
        raise not_found(model.name, model.version) from None


def _sha256(directory: Path) -> str:
    """Returns the recorded hash of the model in a directory; hashes a model put there by hand."""
    try:
        recorded = (directory / HASH_FILE).read_text("ascii").split()[0]
        if len(bytes.fromhex(recorded)) == hashlib.sha256().digest_size:
            return recorded.lower()
    except (OSError, ValueError, IndexError):
        pass
    digest = _hash(directory)
    with contextlib.suppress(OSError):
        _write_hash(directory, digest)
    return digest


def _hash(directory: Path) -> str:
    with (directory / MODEL_FILE).open("rb") as model:
        return hashlib.file_digest(model, "sha256").hexdigest()


def _write_hash(directory: Path, digest: str) -> None:
    with (directory / HASH_FILE).open("w", encoding="ascii") as file:
        file.write(f"{digest}  {MODEL_FILE}\n")
        file.flush()
        os.fsync(file.fileno())
    _sync(directory)


def _sync(directory: Path) -> None:
    """Makes renames and new names in a directory last through a loss of power."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
