"""`trial_tags` writes what a job needs to be found again as a trial; `read_parameters` reads it.

A sweep keeps nothing on the machine that runs it: the tags and the request ids of its jobs are its
whole memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from treadle.client.sweep.search_space import Value
from treadle.client.sweep.spec import SweepSpec

SWEEP = "sweep"
TRIAL = "trial"
DIGEST = "sweep/spec"
PARAMETER = "param/"

OWN_TAGS = (SWEEP, TRIAL, DIGEST, f"{PARAMETER}...")
"""The tags that a sweep sets, as messages name them."""

_DIGEST_DIGITS = 12


def is_own_tag(name: str) -> bool:
    """Returns whether a tag is one that a sweep sets itself."""
    return name in (SWEEP, TRIAL, DIGEST) or name.startswith(PARAMETER)


def request_id(sweep: str, trial: int) -> str:
    """Returns the request id of a trial's job, so that no trial is submitted twice."""
    return f"sweep/{sweep}/{trial}"


def trial_tags(
    spec: SweepSpec, digest: str, trial: int, parameters: Mapping[str, Value]
) -> dict[str, str]:
    """Returns the tags of a trial's job.

    Args:
        spec: The sweep.
        digest: What `spec_digest` returns for it.
        trial: The trial's number.
        parameters: The settings that the sweep has chosen.
    """
    chosen = {f"{PARAMETER}{name}": json.dumps(value) for name, value in parameters.items()}
    own = {SWEEP: spec.name, TRIAL: str(trial), DIGEST: digest}
    return {**spec.tags, **own, **chosen}


def read_parameters(tags: Mapping[str, str]) -> dict[str, Value]:
    """Returns the settings that a sweep has chosen for a job."""
    return {
        name.removeprefix(PARAMETER): json.loads(value)
        for name, value in tags.items()
        if name.startswith(PARAMETER)
    }


def spec_digest(spec: SweepSpec, hashes: Sequence[str]) -> str:
    """Returns a text by which a later run recognizes that the sweep is still the same.

    The alias, the time limit, the tags and the number of trials may change. With a rule that
    compares trials, the number of open jobs decides which ones are compared.

    Args:
        spec: The sweep.
        hashes: The SHA-256 of each file.

    Returns:
        The name and a hash of each part: "sweep:0123456789ab,files:...".
    """
    rules: dict[str, Any] = {"method": spec.method, "seed": spec.seed, "metric": spec.metric}
    if spec.prune:
        rules["prune"] = [spec.prune_after_trials, spec.prune_after_validations]
    if spec.needs_order:
        rules["startup"] = spec.startup_trials
    if spec.prune or spec.needs_order:
        rules["parallel"] = spec.parallel
    files = [
        (file.role, file.weight, sha256) for file, sha256 in zip(spec.files, hashes, strict=True)
    ]
    # The order of the search space is that of a grid.
    search = [(name, values.to_json()) for name, values in spec.search.items()]
    parts = {
        "sweep": {**rules, "model": spec.model},
        "files": files,
        "train": dict(sorted(spec.train.items())),
        "search": search if spec.method == "grid" else sorted(search, key=lambda each: each[0]),
    }
    return ",".join(f"{name}:{_hash(part)}" for name, part in parts.items())


def differing_parts(before: str, now: str) -> list[str]:
    """Returns the tables of a sweep's file that differ between two digests."""
    old = dict(part.partition(":")[::2] for part in before.split(","))
    new = dict(part.partition(":")[::2] for part in now.split(","))
    return [f"[{name}]" for name in new if old.get(name) != new[name]]


def _hash(part: object) -> str:
    data = json.dumps(part, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()[:_DIGEST_DIGITS]
