"""A model as one safetensors file.

Tensors stand under PyTorch's names and in its layout, so that the module in docs/pytorch.md
loads the file as it is. The header's metadata holds one JSON object under the key `treadle`, with
`format`, `network`, `tokenizer`, `training` and `default_context` (one key, since safetensors
writes several in a random order, and equal models are to be equal files). A novelty index, where
there is one, is two more tensors (see `treadle.model.generation.novelty`). Nothing is pickled. A
file is written under a temporary name, synced and renamed, and so is whole or not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from treadle.model.config import NetworkConfig
from treadle.model.errors import ConfigError, CorpusError, LoadError
from treadle.model.generation.novelty import NAMES, NoveltyIndex
from treadle.model.network.shape import Shape, check_network
from treadle.model.network.torch_state_dict import from_torch, to_torch
from treadle.model.scratch_files import Require, anything
from treadle.model.temporary_files import write_whole
from treadle.model.tensor_file import open_tensors, read_tensors, safetensors_parts
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import tokenizer_from_json
from treadle.model.training_record import TrainingRecord

Array = npt.NDArray[np.float32]

_VOCABULARY_LIMIT = 45_000_000
"""Bytes; safetensors holds 100 MB of header, and JSON within JSON may double its quotes."""

FORMAT = "1"
"""The version of the file format; a reader refuses any other."""

_UNREADABLE = (KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""What JSON that is damaged, or of another shape, makes of an attempt to read it."""


@dataclass(frozen=True)
class ModelHeader:
    """Everything in a model file but the tensors."""

    network: NetworkConfig
    """The network's settings."""
    tokenizer: Tokenizer
    """How it reads text."""
    training: TrainingRecord | None
    """How it was trained; None where it was imported."""
    default_context: int
    """The token it goes on from where there is no prompt."""
    novelty_index: bool = False
    """Whether the file holds a novelty index; told by its tensors, not by the metadata."""

    @property
    def shape(self) -> Shape:
        """The network's sizes."""
        return Shape.of(self.network, self.tokenizer.vocabulary_size)

    def to_metadata(self) -> dict[str, str]:
        """Returns the header as safetensors metadata."""
        content = {
            "format": FORMAT,
            "network": self.network.to_json(),
            "tokenizer": self.tokenizer.to_json(),
            "training": None if self.training is None else self.training.to_json(),
            "default_context": self.default_context,
        }
        return {"treadle": json.dumps(content, ensure_ascii=False, separators=(",", ":"))}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelHeader:
        """Reads safetensors metadata.

        Raises:
            LoadError: It is not that of a Treadle model, or of another format.
        """
        if "treadle" not in metadata:
            raise LoadError(
                "the file is no Treadle model: its header lacks the key treadle; "
                "weights from elsewhere come in through import_state_dict"
            )
        try:
            content = _plain(json.loads(metadata["treadle"]), metadata["treadle"])
            if content["format"] != FORMAT:
                raise LoadError(
                    f"the file has format {content['format']!r}, and this Treadle reads "
                    f"{FORMAT!r}: take a newer Treadle"
                )
            training = content["training"]
            header = cls(
                NetworkConfig.from_json(content["network"]),
                tokenizer_from_json(content["tokenizer"]),
                None if training is None else TrainingRecord.from_json(training),
                int(content["default_context"]),
            )
            check_network(header.network)
        except (*_UNREADABLE, ConfigError) as fault:
            raise LoadError(f"the file's header cannot be read: {fault}") from fault
        if not 0 <= header.default_context < header.tokenizer.vocabulary_size:
            raise LoadError("the file's header names a default context out of its vocabulary")
        return header


def _plain(content: Any, text: str) -> Any:
    """Returns what was read of a header, if all of its texts are such as can be written again.

    Raises:
        ValueError: One holds half of a surrogate pair, which only an escape can say.
    """
    if "\\ud" in text or "\\uD" in text:
        json.dumps(content, ensure_ascii=False).encode()
    return content


def write(
    path: str | os.PathLike[str],
    header: ModelHeader,
    named: Mapping[str, Array],
    novelty: NoveltyIndex | None = None,
    require: Require = anything,
) -> None:
    """Writes a model file, whole or not at all.

    Args:
        path: Where to; an existing file is replaced.
        header: Everything but the tensors.
        named: The parameters under the names of `Shape.named`.
        novelty: The index of what the model was trained on; None without one.
        require: Asked before bytes are written.
    """
    network = header.network
    tensors: dict[str, npt.NDArray[Any]] = {**to_torch(named, network.cell, network.layers)}
    if novelty is not None:
        tensors |= novelty.tensors()
    write_whole(Path(path), safetensors_parts(tensors, header.to_metadata()), require=require)


def check_vocabulary(tokenizer: Tokenizer) -> None:
    """Refuses a vocabulary that no file could hold, before anything is trained with it.

    Raises:
        CorpusError: Its symbols are too many or too long together.
    """
    size = len(json.dumps(tokenizer.to_json()))  # escaped: no less than what is written
    if size > _VOCABULARY_LIMIT:
        raise CorpusError(
            f"the vocabulary takes {size:,} bytes and a model file holds {_VOCABULARY_LIMIT:,}: "
            "lower max_vocabulary_size, or take another tokenizer"
        )


def read_header(path: str | os.PathLike[str]) -> ModelHeader:
    """Reads what a model file says of itself, without its tensors.

    Raises:
        LoadError: It is no model file of this format, or it is damaged.
        OSError: It cannot be read.
    """
    with open_tensors(path) as file:
        return _header(file)


def _header(file: Any) -> ModelHeader:
    indexed = not set(NAMES).isdisjoint(file.keys())
    return replace(ModelHeader.from_metadata(file.metadata() or {}), novelty_index=indexed)


def read(
    path: str | os.PathLike[str],
) -> tuple[ModelHeader, dict[str, Array], NoveltyIndex | None]:
    """Reads a model file.

    Returns:
        The header, the parameters under the names of `Shape.named`, and the novelty index, if
        there is one.

    Raises:
        LoadError: It is no model file of this format, or it is damaged.
        OSError: It cannot be read.
    """
    with open_tensors(path) as file:
        header = _header(file)
        tensors = read_tensors(file)
    index = {name: tensors.pop(name) for name in NAMES if name in tensors}
    cell, named = from_torch(tensors)
    if cell is not header.network.cell:
        raise LoadError(
            f"the file's tensors are those of a {cell} network, its header says "
            f"{header.network.cell}"
        )
    novelty = NoveltyIndex.from_tensors(index, header.tokenizer) if index else None
    return header, named, novelty
