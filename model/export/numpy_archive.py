"""`write_npz` writes a model as an archive of NumPy arrays, which `numpy.load` reads.

The arrays have the names and the layout of a model file, which are PyTorch's (docs/model-file.md).
The array `treadle`, of one text, is the JSON of its header.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from treadle.model.atomic_files import write_atomically
from treadle.model.model_file import ModelHeader
from treadle.model.network.torch_state_dict import to_torch

if TYPE_CHECKING:
    from treadle.model.model import Model


def write_npz(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes a model as an .npz file, whole or not at all.

    It holds the float32 weights, in whatever precision the model is viewed.

    Args:
        model: The model.
        path: The file; an existing one is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    network = model.network
    header = ModelHeader(network, model.tokenizer, model.training, model.default_context)
    arrays: dict[str, Any] = {
        **to_torch(
            model.parameters.named(), network.cell, network.layers, network.softmax_clusters
        ),
        **{name: np.array(text) for name, text in header.to_metadata().items()},
    }
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_atomically(Path(path), [content.getbuffer()])
