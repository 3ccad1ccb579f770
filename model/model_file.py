"""`read` and `write` a model file: a model as one safetensors file, with its `ModelHeader`.

Tensors have PyTorch's names and layout, so that the module in docs/pytorch.md loads the file as it
is. The header's metadata holds one JSON object under the key `treadle`, with `format`, `network`,
`tokenizer`, `training` and `default_context`. It is one key because safetensors writes several in a
random order, and equal models must be equal files. A novelty index, if there is one, is two more
tensors (see `treadle.model.generation.novelty`). Nothing is pickled. A file is written under a
temporary name, synced and renamed, so it is complete or not there.
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

from treadle.model.atomic_files import write_atomically
from treadle.model.bounded_json import read_json
from treadle.model.config import NetworkConfig
from treadle.model.errors import ConfigError, CorpusError, LoadError
from treadle.model.generation.novelty import NAMES, NoveltyIndex
from treadle.model.network.shape import Shape, check_network
from treadle.model.network.softmax_clusters import check_clusters_fit
from treadle.model.network.torch_state_dict import clusters_of, from_torch, to_torch
from treadle.model.scratch_files import Require, anything
from treadle.model.tensor_file import open_tensors, read_tensors, safetensors_parts
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.build import tokenizer_from_json
from treadle.model.training_record import TrainingRecord

Array = npt.NDArray[np.float32]

_VOCABULARY_LIMIT = 45_000_000
"""The most bytes of a vocabulary: safetensors allows a header of 100 MB, and JSON within JSON may
double its quotes."""

FORMAT = "1"
"""The version of the file format; a reader refuses any other."""

_UNREADABLE = (KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""Errors of reading JSON that is damaged or has another structure."""


@dataclass(frozen=True)
class ModelHeader:
    """Everything in a model file except the tensors."""

    network: NetworkConfig
    """The network's settings."""
    tokenizer: Tokenizer
    """Turns text into tokens and back."""
    training: TrainingRecord | None
    """How the model was trained; None if it was imported."""
    default_context: int
    """The token that a text follows where there is no prompt (layout TEXT)."""
    novelty_index: bool = False
    """Whether the file has a novelty index; set from its tensors, not from the metadata."""

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
        """Reads a header from safetensors metadata.

        Args:
            metadata: The metadata of the file.

        Returns:
            The header.

        Raises:
            LoadError: It does not belong to a Treadle model, or has another format.
        """
        if "treadle" not in metadata:
            raise LoadError(
                "the file is not a Treadle model, since its header lacks the key treadle: load "
                "weights of other programs with import_state_dict"
            )
        try:
            content = _plain(read_json(metadata["treadle"]), metadata["treadle"])
            if content["format"] != FORMAT:
                raise LoadError(
                    f"the file has format {content['format']!r}, but this Treadle reads only "
                    f"{FORMAT!r}: use a newer Treadle"
                )
            training = content["training"]
            header = cls(
                NetworkConfig.from_json(content["network"]),
                tokenizer_from_json(content["tokenizer"]),
                None if training is None else TrainingRecord.from_json(training),
                int(content["default_context"]),
            )
            check_network(header.network)
            check_clusters_fit(header.network.softmax_clusters, header.tokenizer.vocabulary_size)
        except (*_UNREADABLE, ConfigError) as fault:
            raise LoadError(f"the file's header cannot be read: {fault}") from fault
        if not 0 <= header.default_context < header.tokenizer.vocabulary_size:
            raise LoadError("the default context in the file's header is not in its vocabulary")
        return header


def _plain(content: Any, text: str) -> Any:
    """Returns the content of a header, if all of its texts can be written again.

    Raises:
        ValueError: A text contains half of a surrogate pair, which only an escape can express.
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
        path: The file; an existing one is replaced.
        header: Everything except the tensors.
        named: The parameters under the names of `Shape.named`.
        novelty: The index of what the model was trained on; None without one.
        require: Called before bytes are written.

    Raises:
        OSError: The disk failed or is full, or `require` refused.
    """
    network = header.network
    tensors = to_torch(named, network.cell, network.layers, network.softmax_clusters)
    if novelty is not None:
        tensors |= novelty.tensors()
    write_atomically(Path(path), safetensors_parts(tensors, header.to_metadata()), require=require)


def check_vocabulary(tokenizer: Tokenizer) -> None:
    """Refuses a vocabulary that is too large for a model file, before training begins.

    Raises:
        CorpusError: It has too many symbols, or they are too long.
    """
    size = len(json.dumps(tokenizer.to_json()))  # escaped: no less than what is written
    if size > _VOCABULARY_LIMIT:
        raise CorpusError(
            f"the vocabulary takes {size:,} bytes, but a model file holds {_VOCABULARY_LIMIT:,}: "
            "lower max_vocabulary_size, or use another tokenizer"
        )


def read_header(path: str | os.PathLike[str]) -> ModelHeader:
    """Reads the header of a model file, without its tensors.

    Returns:
        The header.

    Raises:
        LoadError: The file is not a model file of this format, or it is damaged.
        OSError: The file cannot be read.
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
        LoadError: The file is not a model file of this format, or it is damaged.
        OSError: The file cannot be read.
    """
    with open_tensors(path) as file:
        header = _header(file)
        tensors = read_tensors(file)
    index = {name: tensors.pop(name) for name in NAMES if name in tensors}
    cell, named = from_torch(tensors)
    if cell is not header.network.cell:
        raise LoadError(
            f"the file's tensors are those of a {cell} network, but its header says "
            f"{header.network.cell}"
        )
    if clusters_of(tensors) != header.network.softmax_clusters:
        raise LoadError("the clusters of the file's softmax are not those of its header")
    novelty = NoveltyIndex.from_tensors(index, header.tokenizer) if index else None
    return header, named, novelty
