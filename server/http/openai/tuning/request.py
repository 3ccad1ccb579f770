"""`TuningRequest` is a request to `POST /v1/fine_tuning/jobs`, and the spec of the job for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from treadle.server.http.openai.json_fields import (
    MAX_UINT64,
    JsonFields,
    is_number,
    is_whole,
    shown,
)
from treadle.server.http.openai.model_ids import ModelReference, read_model_id
from treadle.server.http.openai.openai_error import invalid
from treadle.server.http.openai.tuning.presets import ADAM_RATE, NETWORKS, NEW
from treadle.server.http.openai.unknown_policies import POLICIES
from treadle.v1 import sequence_pb2 as pb

NAMES = {
    "init_from": "model",
    "init_from_version": "model",
    "max_epochs": "n_epochs",
    "learning_rate": "learning_rate_multiplier",
    "corpus_file": "training_file",
    "corpus_chunk": "training_file",
}
"""The fields of a request by those of Train that have another name."""

_SUFFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DEFAULT_SUFFIX = "ft"
_AUTO = "auto"


@dataclass(frozen=True)
class Hyperparameters:
    """What a run may set; None: the server chooses."""

    n_epochs: float | None = None
    """Passes over the training part."""
    batch_size: int | None = None
    """Sequences that are trained in parallel."""
    learning_rate_multiplier: float | None = None
    """The learning rate, as a multiple of ADAM_RATE."""


@dataclass(frozen=True)
class TuningRequest:
    """What a request asks for."""

    network: str
    """The new network, such as `lstm`; empty where a model is the base."""
    base: ModelReference
    """The model to start from; of no meaning for a new network."""
    training_file: str
    """The id of the file to train on."""
    validation_file: str
    """The id of the file to measure on; empty: a part of the other one."""
    suffix: str
    """What is added to the name of the model."""
    seed: int
    """The seed of the run."""
    unknown_policy: str
    """The treatment of symbols that the model does not have; empty: its own."""
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    """The settings of the run."""

    def spec(self, base: pb.Model | None) -> pb.TrainSpec:
        """Returns the spec of the job, without what depends on the files.

        Args:
            base: The model to start from; None for a new network.
        """
        spec = pb.TrainSpec()
        if base is None:
            spec.CopyFrom(NETWORKS[self.network])
            spec.model = self.suffix
        else:
            spec.model = f"{base.name}-{self.suffix or _DEFAULT_SUFFIX}"
            spec.init_from = base.name
            spec.init_from_version = base.version
        spec.seed = self.seed
        if self.unknown_policy:
            spec.tokenizer.unknown_policy = POLICIES[self.unknown_policy]
        settings = self.hyperparameters
        if settings.n_epochs is not None:
            spec.limits.max_epochs = settings.n_epochs
        if settings.batch_size is not None:
            spec.data.batch_size = settings.batch_size
        if settings.learning_rate_multiplier is not None:
            spec.optimizer.learning_rate = ADAM_RATE * settings.learning_rate_multiplier
        return spec


def read_tuning_request(values: dict[str, Any]) -> TuningRequest:
    """Returns what a request asks for.

    Args:
        values: The JSON object of its body.

    Raises:
        OpenAIError: 400 with the field at fault.
    """
    fields = JsonFields(values)
    model = fields.text("model") or ""
    network = model.removeprefix(NEW) if model.startswith(NEW) else ""
    base = ModelReference()
    if model.startswith(NEW):
        if network not in NETWORKS:
            listed = ", ".join(NEW + name for name in NETWORKS)
            raise invalid("model", f"{model[:40]!r} is not one of {listed}")
    else:
        base = read_model_id(model)
        if base.job:
            text = "model must be a stored model: wait until the job has succeeded"
            raise invalid("model", text)
    request = TuningRequest(
        network=network,
        base=base,
        training_file=_file(fields, "training_file"),
        validation_file=fields.text("validation_file") or "",
        suffix=_suffix(fields, network),
        seed=(fields.whole("seed", 0, MAX_UINT64) or 0),
        unknown_policy=fields.word("unknown_policy", list(POLICIES)) or "",
        hyperparameters=_hyperparameters(fields),
    )
    fields.unserved("integrations", "the server calls no other service; leave it out", [])
    fields.unserved("metadata", "jobs keep none; leave it out", {})
    fields.end()
    return request


def _file(fields: JsonFields, name: str) -> str:
    file = fields.text(name)
    if not file:
        raise invalid(name, f"{name} must be the id of a file: POST /v1/files gives one")
    return file


def _suffix(fields: JsonFields, network: str) -> str:
    suffix = fields.text("suffix") or ""
    if suffix and not _SUFFIX.fullmatch(suffix):
        form = "1 to 64 letters, digits, '.', '_' and '-'"
        raise invalid("suffix", f"suffix must be {form}, not {shown(suffix)}")
    if network and not suffix:
        raise invalid("suffix", "suffix is missing: it is the name of the new model")
    return suffix


def _hyperparameters(fields: JsonFields) -> Hyperparameters:
    """Returns the settings of the run, which may stand in two places."""
    own = fields.fields("hyperparameters")
    method = fields.fields("method")
    if method is not None:
        method.word("type", ("supervised",))
        inner = method.fields("supervised")
        for name in ("dpo", "reinforcement"):
            method.unserved(name, "the only method is supervised; leave it out")
        method.end()
        if inner is not None:
            nested = inner.fields("hyperparameters")
            inner.end()
            if nested is not None and own is not None:
                text = "hyperparameters are set twice: leave them out here, or in method"
                raise invalid("hyperparameters", text)
            own = nested or own
    if own is None:
        return Hyperparameters()
    found = Hyperparameters(
        n_epochs=_number(own, "n_epochs", 1000.0),
        batch_size=_whole(own, "batch_size", 4096),
        learning_rate_multiplier=_number(own, "learning_rate_multiplier", 1000.0),
    )
    own.end()
    return found


def _number(fields: JsonFields, name: str, most: float) -> float | None:
    value = fields.any(name)
    if value is None or value == _AUTO:
        return None
    if is_number(value) and 0 < value <= most:
        return float(value)
    text = f"{name} must be 'auto' or a number above 0 and at most {most:g}, not {shown(value)}"
    raise invalid(fields.place(name), text)


def _whole(fields: JsonFields, name: str, most: int) -> int | None:
    value = fields.any(name)
    if value is None or value == _AUTO:
        return None
    if is_whole(value) and 1 <= value <= most:
        return int(value)
    text = f"{name} must be 'auto' or a whole number from 1 to {most:,}, not {shown(value)}"
    raise invalid(fields.place(name), text)
