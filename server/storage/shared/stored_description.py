"""`written_description` and `read_description` keep the description of a version in its row.

So a list of models needs none of their files.
"""

from __future__ import annotations

import json

from treadle.model.config import NetworkConfig, TokenizerConfig
from treadle.model.enums import CorpusLayout
from treadle.model.errors import ConfigError
from treadle.model.training_record import TrainingRecord
from treadle.server.storage.model_version import Description

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, ConfigError)
"""Errors of reading what another Treadle has written."""


def written_description(description: Description) -> bytes:
    """Returns a description as JSON.

    Args:
        description: The description.
    """
    training = description.training
    content = {
        "network": description.network.to_json(),
        "tokenizer": description.tokenizer.to_json(),
        "layout": description.layout.value,
        "vocabulary_size": description.vocabulary_size,
        "parameter_count": description.parameter_count,
        "training": None if training is None else training.to_json(),
        "novelty_index": description.novelty_index,
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def read_description(data: bytes, sha256: str) -> Description | None:
    """Returns a description from what `written_description` returned.

    Args:
        data: What it returned.
        sha256: The hash of the file of the version.

    Returns:
        The description; None where this Treadle cannot read it.
    """
    try:
        content = json.loads(data)
        training = content["training"]
        return Description(
            network=NetworkConfig.from_json(content["network"]),
            tokenizer=TokenizerConfig.from_json(content["tokenizer"]),
            layout=CorpusLayout(content["layout"]),
            vocabulary_size=int(content["vocabulary_size"]),
            parameter_count=int(content["parameter_count"]),
            training=None if training is None else TrainingRecord.from_json(training),
            sha256=sha256,
            novelty_index=bool(content["novelty_index"]),
        )
    except _UNREADABLE:
        return None
