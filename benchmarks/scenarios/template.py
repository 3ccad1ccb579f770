"""`make` builds the data directory of which every scenario gets a copy.

It holds small models for each kind of text, one of some hundred megabytes, and a training job,
written down as a row of the database to be multiplied.
"""

from __future__ import annotations

import base64
import json
import os
import random
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import grpc

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.benchmarks.scenarios import watchers
from treadle.benchmarks.scenarios.server import ServerProcess
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

LARGE_HIDDEN = 2048
"""Units of the large model: a file of 68 MB."""

DATABASE = "treadle.db"
MODEL_FILE = "model.safetensors"
HASH_FILE = "model.sha256"
_JOB = "job.json"
_UNKNOWN_FIELD = 15_000
_WORDS = 200_000


def words(size: int, seed: int = 0) -> str:
    """Returns text of random words."""
    draw = random.Random(seed)
    known = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(2000)]
    return " ".join(draw.choices(known, k=size // 6))


def letters(size: int) -> str:
    """Returns text without a place to cut it."""
    return "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=size))


def spec(model: str, **fields: Any) -> pb.TrainSpec:
    """Returns the spec of a small model that trains in a moment."""
    return pb.TrainSpec(
        **{
            "model": model,
            "network": pb.NetworkSpec(hidden_size=64),
            "data": pb.DataSpec(batch_size=8, window=16),
            "limits": pb.LimitsSpec(max_steps=4),
            "report": pb.ReportSpec(sample_tokens=0),
            **fields,
        }
    )


def endless_spec(model: str, **fields: Any) -> pb.TrainSpec:
    """Returns the spec of a small model that trains until it is stopped."""
    report = pb.ReportSpec(
        sample_tokens=0, progress_interval_s=0.1, validation_interval_steps=10**12
    )
    defaults = {"limits": pb.LimitsSpec(max_steps=10**12), "report": report}
    return spec(model, **{**defaults, **fields})


def unknown_field(size: int) -> bytes:
    """Returns a field that no version of the contract has, of the type bytes."""
    tag = _UNKNOWN_FIELD << 3 | 2
    return _varint(tag) + _varint(size) + b"x" * size


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def upload(train: pb.TrainSpec, *chunks: bytes) -> Iterator[pb.TrainRequest]:
    """Yields the messages of a Train call."""
    yield pb.TrainRequest(spec=train)
    for chunk in chunks:
        for start in range(0, len(chunk), 1 << 20):
            yield pb.TrainRequest(corpus_chunk=chunk[start : start + (1 << 20)])
    yield pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=sum(map(len, chunks))))


def make(command: Sequence[str], folder: Path) -> None:
    """Makes the template in a folder, by a server of the same kind as the scenarios'."""
    server = ServerProcess(command, folder / "data")
    try:
        with grpc.insecure_channel(server.address, THIS_MACHINE) as channel:
            stub = sequence_pb2_grpc.SequenceServiceStub(channel)
            _train_all(stub)
            _write_job(stub, folder)
    finally:
        server.close()


def _train_all(stub: sequence_pb2_grpc.SequenceServiceStub) -> None:
    text = words(_WORDS).encode()
    log = "\n".join(watchers.LINES).encode()
    skip = pb.UNKNOWN_POLICY_SKIP
    kinds = {
        "characters": pb.TOKENIZER_KIND_CHARACTERS,
        "subwords": pb.TOKENIZER_KIND_SUBWORDS,
        "words": pb.TOKENIZER_KIND_WORDS,
    }
    for name, kind in kinds.items():
        tokenizer = pb.TokenizerSpec(
            kind=kind,
            max_vocabulary_size=1000,
            unknown_policy=skip,
            lower_case=kind == pb.TOKENIZER_KIND_SUBWORDS,
        )
        _train(stub, spec(name, tokenizer=tokenizer), text)
    lines = pb.DataSpec(batch_size=8, window=16, layout=pb.CORPUS_LAYOUT_LINES)
    _train(
        stub, spec(watchers.MODEL, tokenizer=pb.TokenizerSpec(unknown_policy=skip), data=lines), log
    )
    large = spec(
        "large",
        network=pb.NetworkSpec(hidden_size=LARGE_HIDDEN, embedding_size=8),
        data=pb.DataSpec(batch_size=1, window=2, validation_fraction=0.0),
        limits=pb.LimitsSpec(max_steps=1),
    )
    _train(stub, large, text[:2000])


def _train(stub: sequence_pb2_grpc.SequenceServiceStub, train: pb.TrainSpec, text: bytes) -> None:
    if not list(stub.Train(upload(train, text)))[-1].HasField("completed"):
        raise SystemExit(f"the model {train.model} could not be trained")


def _write_job(stub: sequence_pb2_grpc.SequenceServiceStub, folder: Path) -> None:
    """Writes down the row of a job that waits behind another one, and deletes both."""
    text = words(10_000).encode()
    calls = []
    jobs = []
    for name in ("running", "queued"):
        call = stub.Train(upload(endless_spec(name), text))
        calls.append(call)
        jobs.append(next(call).job)
    with closing(sqlite3.connect(folder / "data" / DATABASE)) as database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM jobs WHERE id = ?", [jobs[1]]).fetchone())
    for job in reversed(jobs):
        stub.CancelJob(pb.CancelJobRequest(job=job))
    for call in calls:
        with suppress(grpc.RpcError):
            list(call)
    for job in jobs:
        stub.DeleteJob(pb.DeleteJobRequest(job=job))
    stored = {
        name: {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value
        for name, value in row.items()
    }
    (folder / _JOB).write_text(json.dumps(stored))


def copy(folder: Path, data_dir: Path) -> None:
    """Makes a data directory from the template; models' files, which never change, are linked."""

    def copy_file(source: str, place: str) -> str:
        if source.endswith(MODEL_FILE):
            os.link(source, place)
            return place
        return shutil.copy2(source, place)

    try:
        shutil.copytree(folder / "data", data_dir, copy_function=copy_file)
    except shutil.Error:  # another file system
        shutil.rmtree(data_dir)
        shutil.copytree(folder / "data", data_dir)


def add_jobs(folder: Path, data_dir: Path, count: int, **changes: Any) -> list[str]:
    """Adds rows of jobs to the database of a data directory that no server uses.

    Args:
        folder: The template's folder.
        data_dir: The data directory.
        count: How many.
        changes: Columns that differ from those of a job that waits.

    Returns:
        The jobs' ids.
    """
    row = {
        name: base64.b64decode(value["bytes"]) if isinstance(value, dict) else value
        for name, value in json.loads((folder / _JOB).read_text()).items()
    }
    row.update(last_sequence=0, **changes)
    ids = [f"job-{number:06d}-{secrets.token_hex(4)}" for number in range(count)]
    columns = ", ".join(row)
    places = ", ".join("?" * len(row))
    with closing(sqlite3.connect(data_dir / DATABASE)) as database, database:
        database.executemany(
            f"INSERT INTO jobs ({columns}) VALUES ({places})",
            [tuple({**row, "id": job, "request_id": ""}.values()) for job in ids],
        )
    return ids


def execute(data_dir: Path, statement: str, *rows: Sequence[object]) -> None:
    """Runs a statement on the database of a data directory that no server uses."""
    with closing(sqlite3.connect(data_dir / DATABASE)) as database, database:
        if rows:
            database.executemany(statement, rows)
        else:
            database.execute(statement)


def model_dir(data_dir: Path, name: str, version: int = 1) -> Path:
    """Returns the directory of a version of a model."""
    return data_dir / "models" / name / str(version)
