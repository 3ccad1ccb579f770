"""A model and rows of jobs for tests of the store."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from treadle.model import Model, train
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    ReportConfig,
    TrainConfig,
)
from treadle.server.access.state_sealer import StateSealer
from treadle.server.messages.session_states import SessionStates
from treadle.server.resources.memory_budget import MemoryBudget, Reservation
from treadle.server.storage import model_version
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.model_version import MODEL_FILE, StoredModel
from treadle.server.storage.schema import JobRow

_PLAIN = JobRow(
    id="",
    model="m",
    state="queued",
    reason="",
    spec=b"",
    config="{}",
    files="[]",
    corpus_bytes=0,
    request_id="",
    init_from="",
    created_s=1.0,
    queued_s=1.0,
    started_s=None,
    ended_s=None,
    last_sequence=0,
    restarts=0,
    started=b"",
    progress=b"",
    version=0,
    claim=0,
    error_code=0,
    error=b"",
    ran_s=0.0,
    init_from_version=0,
)


def job_row(job: str, **fields: Any) -> JobRow:
    """Returns the row of a queued job without corpora, but for the fields given."""
    return replace(_PLAIN, id=job, **fields)


@cache
def tiny_model(seed: int = 0) -> Model:
    """Returns a model of a few weights, other ones for each seed."""
    config = TrainConfig(
        network=NetworkConfig(hidden_size=4, embedding_size=2),
        data=DataConfig(batch_size=1, window=4),
        report=ReportConfig(sample_tokens=0),
        limits=LimitsConfig(max_steps=1),
        seed=seed,
    )
    return train(b"abcabcabcabc", config)


def has_recorded_hash(stored: StoredModel) -> bool:
    """Returns whether a version's file has the hash that is recorded of it."""
    return model_version.recorded(stored.path.parent) == model_version.file_hash(stored.path)


def plain_states() -> SessionStates:
    """Reads and writes states on a server without a key."""
    return SessionStates(StateSealer(), "")


def nothing_held() -> Reservation:
    """Returns a reservation of no bytes in a budget without bounds."""
    return MemoryBudget(1 << 50).reserve(0, "tests")


def put_model(data_dir: DataDir, name: str, seed: int = 0) -> StoredModel:
    """Stores a tiny model as the next version of `name`."""
    draft = data_dir.models.new_draft()
    tiny_model(seed).save(draft / MODEL_FILE)
    return data_dir.models.claim(name, draft)
