"""`Checkpoint` is a paused training run; `write` and `read` store it as one safetensors file.

A run that continues from it gets the same bits as one that was never paused.

The header's metadata holds one JSON object under the key `treadle_run`: `format`, `sha256` and
`content`. The SHA-256 is that of the content and of every tensor with its name, type and shape.
Nothing is pickled. A file is written under a temporary name, synced and renamed. The previous
file is kept as `<name>.previous`, and is used if the newer one is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.model.atomic_files import leftovers, write_atomically
from treadle.model.bounded_json import read_json
from treadle.model.config import TrainConfig
from treadle.model.data.token_array import blocks
from treadle.model.errors import ConfigError, LoadError
from treadle.model.scratch_files import Require, anything
from treadle.model.tensor_file import open_tensors, read_tensors, safetensors_parts

if TYPE_CHECKING:
    from treadle.model.data.corpus import Corpus

Array = npt.NDArray[np.float32]

FORMAT = "1"
"""The version of the file format; a reader refuses any other."""

_KEY = "treadle_run"


class _DamagedError(LoadError):
    """The file is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next step of a run depends on, and the best weights."""

    content: Mapping[str, Any]
    """Everything but the tensors, as JSON values; `config` is the resolved config."""
    tensors: Mapping[str, Array]
    """Arrays of float32, by name."""


def write(
    path: str | os.PathLike[str], checkpoint: Checkpoint, require: Require = anything
) -> None:
    """Writes a checkpoint atomically; the previous file is kept as `<name>.previous`.

    Args:
        path: Where to write it.
        checkpoint: The checkpoint.
        require: Called before bytes are written; raises OSError if they may not be written.

    Raises:
        OSError: It could not be written, for instance for lack of space; the old file is unchanged.
    """
    path = Path(path)
    content = json.dumps(checkpoint.content, separators=(",", ":"))
    arrays = checkpoint.tensors
    tensors = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    header = {"format": FORMAT, "sha256": _digest(content, tensors), "content": content}
    parts = safetensors_parts(tensors, {_KEY: json.dumps(header)})
    write_atomically(path, parts, _previous(path), require)


def read(path: str | os.PathLike[str]) -> Checkpoint | None:
    """Reads the newest undamaged checkpoint, and removes temporary files of killed writers.

    The previous file replaces a damaged one, so that the next write does not lose it.

    Args:
        path: The path given to `write`.

    Returns:
        The checkpoint; None if there is no file.

    Raises:
        LoadError: There are files and all of them are damaged, or of another format.
        OSError: A file cannot be read.
    """
    path = Path(path)
    for leftover in leftovers(path.parent):
        if leftover.name.startswith(f".{path.name}."):
            leftover.unlink(missing_ok=True)
    try:
        return _read(path)
    except FileNotFoundError:
        try:
            return _read(_previous(path))
        except FileNotFoundError:
            return None
    except _DamagedError as damage:
        try:
            checkpoint = _read(_previous(path))
        except (FileNotFoundError, _DamagedError):
            raise damage from None
        _previous(path).replace(path)
        return checkpoint


def saved_config(path: str | os.PathLike[str]) -> TrainConfig | None:
    """Returns the resolved settings of a stored run; None if there is no checkpoint.

    A trainer built with them can restore the run, even if a preset would now pick others.

    Args:
        path: The path given to `write`.

    Raises:
        LoadError: See `read`; or the settings are of another version.
        OSError: A file cannot be read.
    """
    checkpoint = read(path)
    return None if checkpoint is None else _config(checkpoint)


def settled_config(asked: TrainConfig, path: str | os.PathLike[str]) -> TrainConfig:
    """Returns the settings that continue a stored run: those that its start settled.

    A checkpoint that cannot be read is ignored here; the error comes when the run is restored.

    Args:
        asked: The settings as they were given at first; returned where there is no checkpoint.
        path: The path given to `write`.

    Raises:
        OSError: A file cannot be read.
    """
    with suppress(LoadError):
        saved = saved_config(path)
        if saved is not None:
            # The model keeps the tokenizer's policy as requested, also after a restart.
            policy = asked.tokenizer.unknown_policy
            return replace(saved, tokenizer=replace(saved.tokenizer, unknown_policy=policy))
    return asked


def corpus_fingerprint(corpus: Corpus) -> str:
    """Returns the SHA-256 of a corpus' tokens and vocabulary, in hexadecimal."""
    vocabulary = corpus.tokenizer.to_json()
    del vocabulary["config"]  # compared separately, when it is resolved
    content = hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode())
    for name in ("train", "valid", "test"):
        data = {"train": corpus.train, "valid": corpus.valid, "test": corpus.test}[name]
        arrays = () if data is None else (data.tokens, data.offsets)
        for array in arrays:
            if array is not None:
                content.update(f"{name} {array.dtype} {array.shape} ".encode())
                for block in blocks(array):
                    content.update(np.ascontiguousarray(block).view(np.uint8).data)
    return content.hexdigest()


def check_same(checkpoint: Checkpoint, config: TrainConfig, fingerprint: str) -> None:
    """Checks that a checkpoint belongs to a run.

    Args:
        checkpoint: The checkpoint.
        config: The resolved settings of the run.
        fingerprint: The `corpus_fingerprint` of its corpus.

    Raises:
        LoadError: The corpus or a setting differs; the message names it.
    """
    if checkpoint.content.get("corpus") != fingerprint:
        raise LoadError(
            "the checkpoint belongs to another corpus: continue with the corpus that the run began "
            "with"
        )
    odd = differing_settings(_config(checkpoint), config)
    if odd:
        raise LoadError(
            f"the checkpoint belongs to other settings (see {', '.join(odd)}): continue with the "
            "settings that the run began with"
        )


def differing_settings(theirs: TrainConfig, ours: TrainConfig) -> list[str]:
    """Returns the dotted names of the settings in which two runs differ, sorted."""
    one = _flat(theirs.to_json())
    other = _flat(ours.to_json())
    return sorted(name for name in one | other if one.get(name) != other.get(name))


def _config(checkpoint: Checkpoint) -> TrainConfig:
    """Returns the settings of a checkpoint; those that its version lacks have their defaults."""
    try:
        return TrainConfig.from_json(checkpoint.content.get("config"))
    except ConfigError as fault:
        raise LoadError(
            f"the settings of the checkpoint cannot be read: {fault}; continue with the version of "
            "Treadle that wrote it"
        ) from fault


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns settings by their dotted names."""
    if not isinstance(config, dict):
        return {prefix: config}
    result: dict[str, Any] = {}
    for name, value in config.items():
        result |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return result


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _digest(content: str, tensors: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"\n{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file is a checkpoint whose content matches its hash."""
    try:
        _read(Path(path))
    except (LoadError, OSError):
        return False
    return True


def _read(path: Path) -> Checkpoint:
    try:
        with open_tensors(path) as file:
            header = read_json((file.metadata() or {})[_KEY])
            tensors = read_tensors(file)
        content = read_json(header["content"])
        whole = header["sha256"] == _digest(header["content"], tensors)
        version = header["format"]
    except (LoadError, KeyError, TypeError, ValueError, RecursionError) as fault:
        raise _damaged(f": {fault}") from fault
    if not whole:
        raise _damaged("")
    if version != FORMAT:
        raise LoadError(
            f"the checkpoint has format {version!r}, and this version of Treadle reads {FORMAT!r}: "
            "continue with the version that wrote it"
        )
    return Checkpoint(content, tensors)


def _damaged(why: str) -> _DamagedError:
    return _DamagedError(
        f"the checkpoint is damaged{why}, and so is the one before it, if there was one"
    )
