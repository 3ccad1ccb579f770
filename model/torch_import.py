"""`import_state_dict` makes a model of a PyTorch state dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from treadle.model.errors import ConfigError, LoadError
from treadle.model.model import Model
from treadle.model.network.parameters import Parameters
from treadle.model.network.shape import Shape, check_network
from treadle.model.network.softmax_clusters import check_clusters_fit
from treadle.model.network.torch_state_dict import clusters_of, from_torch, network_of
from treadle.model.network.trained_network import default_context
from treadle.model.tokenizers.base import Tokenizer


def import_state_dict(
    state_dict: Mapping[str, Any], tokenizer: Tokenizer, tied_weights: bool = False
) -> Model:
    """Makes a model of the weights of a PyTorch module (docs/pytorch.md shows which).

    Cell, layers and sizes follow from names and shapes. To read a file, use
    `safetensors.numpy.load_file`; nothing here unpickles.

    Args:
        state_dict: Tensors by name; anything that `numpy.asarray` reads, detached and on the CPU.
        tokenizer: The tokenizer that the network was trained with; its tokens must have the
            network's ids.
        tied_weights: Whether the output layer's weights are the embedding's, and stay so in further
            training; False keeps two arrays, equal or not.

    Returns:
        The model, without a training record.

    Raises:
        LoadError: Names or shapes are not those of such a module, a number is not finite, the
            network is larger than a network of Treadle may be, the vocabulary and the output layer
            differ in size, or weights to be tied are not equal.
    """
    clusters = clusters_of(state_dict)
    cell, named = from_torch(state_dict)
    vocabulary = named["by"].shape[0]
    if vocabulary != tokenizer.vocabulary_size:
        raise LoadError(
            f"the network has {vocabulary} tokens, but the tokenizer {tokenizer.vocabulary_size}: "
            "give the tokenizer that the network was trained with"
        )
    network = replace(network_of(cell, named, clusters), tied_weights=tied_weights)
    try:
        check_network(network)
        check_clusters_fit(clusters, vocabulary)
    except ConfigError as fault:
        raise LoadError(str(fault)) from fault
    parameters = Parameters.from_named(Shape.of(network, vocabulary), named)
    return Model(network, tokenizer, parameters, None, default_context(tokenizer, fallback=0))
