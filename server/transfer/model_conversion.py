"""`check_model` reads an imported model as a whole, and `convert` makes one of a state dict.

Both read files that a client has sent: whatever is wrong with one is INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from treadle.model import Model
from treadle.model.errors import LoadError
from treadle.model.tensor_file import open_tensors, read_tensors
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.torch_import import import_state_dict
from treadle.server.errors import StatusError, invalid
from treadle.server.messages import responses
from treadle.server.storage.model_version import Description, StoredModel

FIELD = "chunk"
"""The field that carries the file."""

_MODEL_TIMES = 3
"""Memory of a model that is checked, in sizes of its file: arrays, read and converted, and its
parameters."""

_HEADER_TIMES = 12
"""Memory of a header of JSON within JSON, in its bytes."""

_STATE_DICT_TIMES = 8
"""Memory of a state dict that is converted, in sizes of its file. It may have 2 bytes per number,
and each becomes one of 4 bytes in three copies."""


def check_bytes(path: Path, is_converted: bool) -> int:
    """Returns the bytes of memory that `check_model` or `convert` take for a file.

    Args:
        path: The file.
        is_converted: Whether it is a state dict.

    Raises:
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header = min(int.from_bytes(file.read(8), "little"), size)
    return most_bytes(size, is_converted) + _HEADER_TIMES * header


def most_bytes(size: int, is_converted: bool) -> int:
    """Returns the bytes of memory for a file of a size, without those of its header.

    Args:
        size: Bytes of the file.
        is_converted: Whether it is a state dict.
    """
    return (_STATE_DICT_TIMES if is_converted else _MODEL_TIMES) * size


def check_model(path: Path) -> Model:
    """Reads a file that is a model of Treadle.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        StatusError: INVALID_ARGUMENT.
        OSError: It cannot be read.
    """
    try:
        with open_tensors(path) as file:
            if "treadle" not in (file.metadata() or {}):
                text = "the file is not a model of Treadle, since its header lacks the key treadle"
                remedy = "import the weights of a PyTorch module with state_dict and a vocabulary"
                raise LoadError(f"{text}: {remedy}")
        return Model.load(path)
    except LoadError as error:
        raise invalid([(FIELD, str(error))]) from error


def convert(
    source: Path,
    target: Path,
    tokenizer: Tokenizer,
    tied_weights: bool,
    require: Callable[[int], None],
) -> Model:
    """Makes a model of the state dict of a PyTorch module, and writes it.

    Args:
        source: The file of the state dict.
        target: The file of the model.
        tokenizer: Turns text into the tokens of the module.
        tied_weights: Whether the output layer's weights are the embedding's.
        require: Called with the number of bytes before they are written.

    Returns:
        The model.

    Raises:
        StatusError: INVALID_ARGUMENT: names or shapes are not those of a network of Treadle.
        OSError: The disk failed or is full.
    """
    try:
        with open_tensors(source) as file:
            if "treadle" in (file.metadata() or {}):
                text = "the file is a model of Treadle already, and needs no state_dict"
                raise LoadError(text)
            tensors = _unwrapped(read_tensors(file))
        model = import_state_dict(tensors, tokenizer, tied_weights)
    except LoadError as error:
        raise invalid([(FIELD, str(error))]) from error
    del tensors
    model.save(target, require)
    return model


def check_description(model: Model, stored: StoredModel) -> None:
    """Checks that the server can describe a model, with the record of its training.

    Args:
        model: The model.
        stored: Its file.

    Raises:
        StatusError: INVALID_ARGUMENT.
    """
    description = Description(
        network=model.network,
        tokenizer=model.tokenizer.config,
        layout=model.layout,
        vocabulary_size=model.vocabulary_size,
        parameter_count=model.parameter_count,
        training=model.training,
        sha256="",
        novelty_index=model.novelty is not None,
    )
    try:
        responses.model(stored, description)
    except StatusError as error:
        text = f"the header of the file cannot be used: {error.message}"
        raise invalid([(FIELD, text)]) from error


def _unwrapped(tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns tensors without a prefix that all of them share, as `module.` of DataParallel."""
    while tensors:
        prefixes = {name.partition(".")[0] for name in tensors}
        if len(prefixes) > 1 or any(name.count(".") < 2 for name in tensors):
            break
        tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
    return tensors
