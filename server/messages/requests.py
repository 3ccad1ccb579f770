"""`train_config` and its neighbours turn requests into settings of the model package.

The configs check ranges themselves, and their errors name every field at fault at once. Here
these names become those of the request. `_RENAMED` lists settings whose field has another name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from treadle.model.config import TrainConfig
from treadle.model.errors import ConfigError
from treadle.model.training.config_check import check_config
from treadle.model.training.fine_tuning import BaseModelInfo
from treadle.model.training_memory import check_memory
from treadle.server.errors import Violation, invalid
from treadle.server.messages.enums import word_of
from treadle.server.messages.fields import to_json
from treadle.server.messages.inference_precision import precision_violations
from treadle.server.names import (
    check_name,
    name_violations,
    reference_violations,
    request_id_violations,
    tag_violations,
)
from treadle.v1 import sequence_pb2 as pb

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_NODES = 1024
"""The most processes of a job."""

_SPEC = "spec"
_RENAMED = {"optimizer.kind": "optimizer.optimizer"}
"""Settings whose field in the contract has another name."""

Config = TypeVar("Config")


def train_config(
    spec: pb.TrainSpec,
    max_training_bytes: int | None = None,
    base: BaseModelInfo | None = None,
) -> TrainConfig:
    """Returns the settings of a training job.

    Args:
        spec: The spec.
        max_training_bytes: Bytes of memory that a run may take; a spec that needs more for any
            corpus is refused. None: no limit.
        base: The model to start from, if the spec names one.

    Raises:
        StatusError: INVALID_ARGUMENT with every field at fault.
    """
    values = to_json(spec)
    violations = _take_job_fields(values)
    if "optimizer" in values.get("optimizer", {}):
        values["optimizer"]["kind"] = values["optimizer"].pop("optimizer")
    if "preset" in values:
        values["given"] = sorted(_dotted(values))
    if base is not None:
        violations += _take_over(values, base)

    def make() -> TrainConfig:
        config = TrainConfig.from_json(values)
        check_config(config, base)
        if max_training_bytes is not None:
            check_memory(config, vocabulary_size=1, limit_bytes=max_training_bytes)
        return config

    return build(make, violations, spec_field)


def _take_job_fields(values: dict[str, Any]) -> list[Violation]:
    """Removes the fields of a spec that are no settings; returns their violations."""
    violations = name_violations(values.pop("model", ""), f"{_SPEC}.model")
    violations += request_id_violations(values.pop("request_id", ""), f"{_SPEC}.request_id")
    violations += tag_violations(values.pop("tags", {}), f"{_SPEC}.tags")
    nodes = values.pop("nodes", 1)
    if nodes > MAX_NODES:
        violations.append((f"{_SPEC}.nodes", f"nodes must be 1 to {MAX_NODES:,}, not {nodes:,}"))
    version = values.pop("init_from_version", 0)
    if version and "init_from" not in values:
        text = "init_from_version needs init_from, the model whose version it is"
        violations.append((f"{_SPEC}.init_from_version", text))
    values.pop("init_from", "")
    return violations


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the names of settings that have a value, such as `network.cell`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name


_FREE = {"dropout", "output_dropout", "unknown_policy"}
"""Settings of network and tokenizer that may differ from those of the model to start from."""


def _take_over(values: dict[str, Any], base: BaseModelInfo) -> list[Violation]:
    """Fills in the settings of the model to start from; returns violations of those that differ."""
    violations = []
    data = values.setdefault("data", {})
    if data.get("layout", base.layout) != base.layout:
        text = f"data.layout is {base.layout} in the model of init_from: leave it out"
        violations.append((f"{_SPEC}.data.layout", text))
    data["layout"] = base.layout.value
    taken = (("network", base.network.to_json()), ("tokenizer", base.tokenizer.to_json()))
    for name, config in taken:
        asked = values.get(name, {})
        for field, value in config.items():
            if field not in _FREE and field in asked and asked[field] != value:
                text = f"{name}.{field} is {value} in the model of init_from: leave it out"
                violations.append((f"{_SPEC}.{name}.{field}", text))
        values[name] = config | {key: value for key, value in asked.items() if key in _FREE}
    return violations


SourceRequest = pb.GenerateRequest | pb.ScoreRequest | pb.ScoreStreamSpec | pb.EmbedRequest
"""A request that names a model and version, or a job, and may say how precisely to compute."""


def source_violations(request: SourceRequest) -> list[Violation]:
    """Returns the violations of the fields that say what computes: weights, and a precision."""
    violations = precision_violations(request)
    if not request.job:
        violations = reference_violations(request.model) + violations
        if request.job_weights:
            violations.append(("job_weights", "job_weights needs job, whose weights they are"))
        return violations
    text = "job is set: leave model and version unset"
    named = [("model", text)] if request.model or request.version else []
    return named + violations


def on_error_violations(spec: pb.ScoreStreamSpec | pb.LearnStreamSpec) -> list[Violation]:
    """Returns the violations of the field `on_error` of a stream."""
    if spec.on_error in pb.OnError.values():
        return []
    text = "on_error must be ON_ERROR_STOP, ON_ERROR_SKIP or unset"
    return [("on_error", f"{text}, not {spec.on_error}")]


def job_states(request: pb.ListJobsRequest) -> list[str]:
    """Returns the states of the jobs to list, sorted; empty for all states.

    Raises:
        StatusError: INVALID_ARGUMENT: the contract does not have a state, or no model or tag can
            have that name.
    """
    kind = pb.JobState.DESCRIPTOR
    names = [word_of(kind, state) for state in request.states if state]
    if not all(isinstance(name, str) for name in names):
        raise invalid([("states", "states must be those of the contract")])
    if request.model:
        check_name(request.model)
    faults = tag_violations(dict(request.tags), "tags")
    if faults:
        raise invalid(faults)
    return sorted({str(name) for name in names})


def page_size(
    request: pb.ListModelsRequest | pb.ListJobsRequest | pb.ListFilesRequest,
) -> int:
    """Returns the number of entries of a page, at most `MAX_PAGE_SIZE`."""
    return min(request.page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)


def deletion(request: pb.DeleteModelRequest) -> int | None:
    """Returns the version of a model to delete; None for all of them.

    Raises:
        StatusError: INVALID_ARGUMENT: no model can have that name, or the request does not say
            which versions are meant.
    """
    violations = name_violations(request.model, "model")
    if request.version and request.all_versions:
        text = "version and all_versions exclude each other: set one of them"
        violations.append(("all_versions", text))
    elif not request.version and not request.all_versions:
        text = "version must be the version to delete, from 1; all_versions deletes all of them"
        violations.append(("version", text))
    if violations:
        raise invalid(violations)
    return None if request.all_versions else request.version


def spec_field(field: str) -> str:
    """Returns the field of TrainRequest of a training setting, such as `spec.seed`."""
    return f"{_SPEC}.{_RENAMED.get(field, field)}"


def build(
    make: Callable[[], Config], violations: list[Violation], rename: Callable[[str], str]
) -> Config:
    """Returns the config that `make` builds.

    Args:
        make: Builds the config.
        violations: Violations that were found before.
        rename: Maps the name of a setting to that of a field.

    Raises:
        StatusError: INVALID_ARGUMENT with the earlier violations and those of the config.
    """
    try:
        config = make()
    except ConfigError as error:
        violations += [
            (rename(fault.field), str(fault).replace(fault.field, rename(fault.field), 1))
            for fault in error.faults
        ]
    if violations:
        raise invalid(violations)
    return config
