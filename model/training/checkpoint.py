"""A training run as one safetensors file, from which it goes on as if it had never stopped.

The header's metadata holds one JSON object under the key `treadle_run`: `format`, `sha256` and
`content`. The SHA-256 is that of the content and of every tensor with its name, type and shape.
Nothing is pickled. A file is written under a temporary name, synced and renamed; the one before it
is kept as `<name>.previous`, to go on from where the newer one turns out to be damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treadle.model.config import TrainConfig
from treadle.model.data.token_array import blocks
from treadle.model.errors import ConfigError, LoadError
from treadle.model.scratch_files import Require, anything
from treadle.model.temporary_files import leftovers, write_whole
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
    """What is written: everything that the next step depends on, and the best weights."""

    content: Mapping[str, Any]
    """All but the tensors, as JSON values; `config` is the config as filled in."""
    tensors: Mapping[str, Array]
    """float32, by name."""


def write(path: str | os.PathLike[str], state: Checkpoint, require: Require = anything) -> None:
    """Write a state, whole or not at all; the one before it becomes `<name>.previous`.

    Args:
        path: where to.
        state: what to write.
        require: asked before bytes are written.

    Raises:
        OSError: it could not be written, for instance for lack of space; the old one is whole.
    """
    path = Path(path)
    content = json.dumps(state.content, separators=(",", ":"))
    tensors = {name: np.ascontiguousarray(state.tensors[name]) for name in sorted(state.tensors)}
    held = {"format": FORMAT, "sha256": _digest(content, tensors), "content": content}
    parts = safetensors_parts(tensors, {_KEY: json.dumps(held)})
    write_whole(path, parts, _previous(path), require)


def read(path: str | os.PathLike[str]) -> Checkpoint | None:
    """Read the newest state that is whole, and remove what a killed writer left beside it.

    A damaged file gives way to the previous one, so that the next write does not lose that.

    Returns:
        The state; None where there is none.

    Raises:
        LoadError: there are files and all of them are damaged, or of another format.
        OSError: a file cannot be read.
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
            state = _read(_previous(path))
        except (FileNotFoundError, _DamagedError):
            raise damage from None
        _previous(path).replace(path)
        return state


def saved_config(path: str | os.PathLike[str]) -> TrainConfig | None:
    """Return the settings as filled in of the run that is stored there; None where none is.

    A trainer built with them can restore the state, whatever a preset would pick today.

    Raises:
        LoadError: as for `read`, or the settings are not of this version.
        OSError: a file cannot be read.
    """
    state = read(path)
    return None if state is None else _config(state)


def corpus_fingerprint(corpus: Corpus) -> str:
    """Return the SHA-256 of a corpus' tokens and vocabulary, in hexadecimal."""
    vocabulary = corpus.tokenizer.to_json()
    del vocabulary["config"]  # compared by itself, as filled in
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


def check_same(state: Checkpoint, config: TrainConfig, fingerprint: str) -> None:
    """Refuse a state of another run.

    Args:
        state: what was read.
        config: the settings as filled in of the run that is to go on from it.
        fingerprint: that of its corpus.

    Raises:
        LoadError: the corpus or a setting is another one; names it.
    """
    if state.content.get("corpus") != fingerprint:
        raise LoadError(
            "the training state belongs to another corpus: go on with the one that it was "
            "begun with"
        )
    theirs, ours = _flat(_config(state).to_json()), _flat(config.to_json())
    odd = sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name))
    if odd:
        raise LoadError(
            f"the training state belongs to other settings (see {', '.join(odd)}): go on with "
            "those that it was begun with"
        )


def _config(state: Checkpoint) -> TrainConfig:
    """The settings of a state; those that its Treadle did not know have their defaults."""
    try:
        return TrainConfig.from_json(state.content.get("config"))
    except ConfigError as fault:
        raise LoadError(
            f"the training state's settings cannot be read: {fault}; go on with the Treadle that "
            "wrote it"
        ) from fault


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
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
    """Return whether a file is a training state whose content has the hash that it names."""
    try:
        _read(Path(path))
    except (LoadError, OSError):
        return False
    return True


def _read(path: Path) -> Checkpoint:
    try:
        with open_tensors(path) as file:
            held = json.loads((file.metadata() or {})[_KEY])
            tensors = read_tensors(file)
        content = json.loads(held["content"])
        whole = held["sha256"] == _digest(held["content"], tensors)
        version = held["format"]
    except (LoadError, KeyError, TypeError, ValueError, RecursionError) as fault:
        raise _damaged(f": {fault}") from fault
    if not whole:
        raise _damaged("")
    if version != FORMAT:
        raise LoadError(
            f"the training state has format {version!r}, and this Treadle reads {FORMAT!r}: "
            "go on with the Treadle that wrote it"
        )
    return Checkpoint(content, tensors)


def _damaged(why: str) -> _DamagedError:
    return _DamagedError(
        f"the training state is damaged{why}, and so is the one before it, if there was one"
    )
