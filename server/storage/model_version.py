"""`StoredModel` is one version of a model on disk; `describe` reads its description.

::

    NAME/VERSION/model.safetensors   the model; it never changes
    NAME/VERSION/model.sha256        its hash, as `sha256sum --check` reads it
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.model.atomic_files import write_atomically
from treadle.model.errors import LoadError
from treadle.model.model_file import read_header
from treadle.server.errors import damaged, not_found
from treadle.server.failures import is_out_of_files
from treadle.server.storage.files import check_no_link, read_small

if TYPE_CHECKING:
    from treadle.model.config import NetworkConfig, TokenizerConfig
    from treadle.model.enums import CorpusLayout
    from treadle.model.training_record import TrainingRecord

MODEL_FILE = "model.safetensors"
HASH_FILE = "model.sha256"


_NO_DIRECTORY = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


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
    """The description in a model's file, small enough to remember thousands."""

    network: NetworkConfig
    """The shape of its network."""
    tokenizer: TokenizerConfig
    """The settings of its tokenizer."""
    layout: CorpusLayout
    """The layout of its corpus."""
    vocabulary_size: int
    """Tokens in its vocabulary, special ones included."""
    parameter_count: int
    """Trained numbers in it."""
    training: TrainingRecord | None
    """The record of its training; None where it was imported."""
    sha256: str
    """SHA-256 of its file, in lower-case hexadecimal."""
    novelty_index: bool
    """Whether it holds a novelty index."""


def numbers(home: Path) -> list[int]:
    """Returns the version numbers in a model's directory in order, those of empty ones included."""
    try:
        names = os.listdir(home)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY:
            raise
        return []
    return sorted(int(name) for name in names if _is_version(name))


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name[0] != "0" and len(name) < 19


def describe(model: StoredModel) -> Description:
    """Returns the description in a model's file.

    Raises:
        StatusError: DATA_LOSS where the file is damaged; NOT_FOUND where it is gone.
    """
    try:
        return describe_file(model.path)
    except LoadError as error:
        raise damaged(model.name, model.version, error) from error
    except FileNotFoundError:
        raise not_found(model.name, model.version) from None
    except OSError as error:
        if is_out_of_files(error):  # the file itself may be whole
            raise
        fault = LoadError(error.strerror or "the disk failed")
        raise damaged(model.name, model.version, fault) from error


def describe_file(path: Path, digest: str = "") -> Description:
    """Returns the description in the file of a model.

    Args:
        path: The file.
        digest: Its hash; empty: the one that is recorded next to it.

    Raises:
        LoadError: It is damaged.
        OSError: It cannot be read.
    """
    header = read_header(path)
    return Description(
        network=header.network,
        tokenizer=header.tokenizer.config,
        layout=header.tokenizer.layout,
        vocabulary_size=header.tokenizer.vocabulary_size,
        parameter_count=header.shape.parameter_count,
        training=header.training,
        sha256=digest or sha256(path.parent),
        novelty_index=header.novelty_index,
    )


def sha256(directory: Path) -> str:
    """Returns the recorded SHA-256 of the model in a directory.

    A model without a recorded hash, put there by hand, is hashed, and the hash is recorded.

    Args:
        directory: The directory of the version.

    Raises:
        FileNotFoundError: There is no model.
    """
    digest = recorded(directory)
    if digest is None:
        digest = file_hash(directory / MODEL_FILE)
        with contextlib.suppress(OSError):
            record(directory, digest)
    return digest


def recorded(directory: Path) -> str | None:
    """Returns the hash in a directory's HASH_FILE; None where it cannot be read."""
    try:
        text = read_small(directory / HASH_FILE).split()[0]
        if len(bytes.fromhex(text)) == hashlib.sha256().digest_size:
            return text.lower()
    except (ValueError, IndexError):
        pass
    except OSError as error:
        if is_out_of_files(error):
            raise
    return None


def record(directory: Path, digest: str) -> None:
    """Writes the HASH_FILE of a directory.

    Args:
        directory: The directory of the version.
        digest: The SHA-256 of its model, in lower-case hexadecimal.

    Raises:
        OSError: The disk failed or is full; ELOOP: the directory is a link.
    """
    for place in (directory, directory.parent):
        check_no_link(place)
    write_atomically(directory / HASH_FILE, f"{digest}  {MODEL_FILE}\n".encode())


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of the bytes of a file, in lower-case hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
