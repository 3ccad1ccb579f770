"""What is stored badly, or is large, is listed by itself and takes nothing else down."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.internal import encoder, wire_format

from treadle.model.config import TrainConfig
from treadle.model.training_record import TrainingRecord
from treadle.server.errors import from_exception
from treadle.server.failures import DamagedDatabaseError
from treadle.server.fsck.check import check
from treadle.server.jobs.submissions.submission import new_row
from treadle.server.jobs.submissions.upload import MAX_SPEC_BYTES
from treadle.server.messages import responses
from treadle.server.messages.list_truncation import ITEM_BYTES
from treadle.server.storage.data_dir import DATABASE_FILE, DataDir
from treadle.server.storage.database import Database
from treadle.server.storage.job_damage import damage, without_damage
from treadle.server.storage.model_version import MODEL_FILE
from treadle.server.storage.schema import COLUMNS
from treadle.server.storage.upload_files import UploadedFile
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Caller, Server, fields_of, long_spec, tiny_spec
from .samples import job_row, put_model, tiny_model

Start = Callable[..., Server]


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def with_unknown(message: pb.TrainSpec, size: int) -> bytes:
    """Returns a spec, serialized, with fields that no version of the contract has."""
    field: list[bytes] = []
    tag = encoder.TagBytes(5000, wire_format.WIRETYPE_LENGTH_DELIMITED)
    encoder._EncodeVarint(field.append, size)  # type: ignore[attr-defined]
    return message.SerializeToString() + tag + b"".join(field) + bytes(size)


def test_unknown_fields_are_not_stored(start: Start) -> None:
    """They stood in every list of jobs for a month, which no reply could hold."""
    server = start()
    network = tiny_spec("m").network.SerializeToString()
    inner = pb.TrainSpec.FromString(with_unknown(tiny_spec("m"), 1_500_000))
    inner.network.ParseFromString(network + with_unknown(pb.TrainSpec(), 1_500_000))
    assert inner.ByteSize() > 3_000_000
    requests = [
        pb.TrainRequest(spec=inner),
        pb.TrainRequest(corpus_chunk=TEXT),
        pb.TrainRequest(corpus_end=pb.CorpusEnd(size_bytes=len(TEXT))),
    ]
    job = list(server.caller.train(inner, source=requests))[-1].job
    assert server.caller.job(job).ByteSize() < 4000
    assert sum(listed.ByteSize() for listed in server.caller.jobs()) < 4000
    server.end()
    assert (server.data_dir / DATABASE_FILE).stat().st_size < 1_000_000


def test_a_spec_too_large_to_keep_is_refused(caller: Caller) -> None:
    spec = tiny_spec("m")
    spec.data.encoding = "utf" + "-" * MAX_SPEC_BYTES + "8"
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(spec, TEXT))
    assert fields_of(caught.value) == ["spec"]


def test_the_names_of_many_files_are_bounded_together(caller: Caller) -> None:
    """The row of a job has them all, and a queue holds a thousand rows in memory."""
    digest = hashlib.sha256(b"").hexdigest()

    def requests() -> Iterator[pb.TrainRequest]:
        yield pb.TrainRequest(spec=tiny_spec("m"))
        for _ in range(300):
            yield pb.TrainRequest(corpus_file=pb.CorpusFile(name="\U0001f600" * 255))
            yield pb.TrainRequest(corpus_chunk=b"x")

    with pytest.raises(grpc.RpcError) as caught:
        list(caller.train(tiny_spec("m"), source=requests()))
    assert fields_of(caught.value) == ["corpus_file.name"]
    files = [UploadedFile(digest, "\U0001f600" * 255, "train", 1.0, 1)] * 128
    row = new_row("j", tiny_spec("m"), TrainConfig(), files)
    assert len(row.files.encode()) < 1.5 * (128 << 10)
    assert not damage(row)


def test_the_largest_job_and_model_are_small_in_a_list(tmp_path: Path) -> None:
    long = "é" * 30_000
    spec = tiny_spec("m")
    spec.data.column = "\U0001f600" * (MAX_SPEC_BYTES // 5)
    started = pb.TrainingStarted(spec=spec, notices=[long] * 1000)
    progress = pb.TrainingProgress(step=1, sample=long, notices=[long] * 1000)
    row = job_row(
        "j",
        reason=long,
        spec=spec.SerializeToString(),
        started=started.SerializeToString(),
        progress=progress.SerializeToString(),
    )
    listed = responses.listed_job(row, 0, "")
    assert not listed.damage
    assert listed.spec.model == "m"
    assert not listed.progress.HasField("sample")
    assert listed.started.notices[-1] == "... and 980 more"
    assert listed.ByteSize() <= ITEM_BYTES < 1 << 16
    assert responses.job(row).ByteSize() <= ITEM_BYTES

    data_dir = DataDir(tmp_path / "data")
    model = tiny_model()
    record = TrainingRecord(TrainConfig(), 1, 1, 1.0, None, 1.0, long, notices=(long,) * 1000)
    draft = data_dir.models.new_draft()
    stored = put_model(data_dir, "m")
    model.save(draft / MODEL_FILE)
    description = data_dir.models.describe(stored)
    large = responses.model(stored, type(description)(**{**vars(description), "training": record}))
    assert large.ByteSize() <= ITEM_BYTES
    for number in range(1000):
        data_dir.database.set_alias("m", f"{number:0100}", 1)
    names, count = data_dir.models.aliases.of_version("m", 1)
    assert (len(names), count) == (100, 1000)
    assert names == sorted(names)
    described = responses.model(stored, description, (names, count))
    assert described.alias_count == 1000
    assert described.ByteSize() < 1 << 16
    data_dir.close()


def test_samples_are_kept_short() -> None:
    message = responses.progress({"step": 1, "sample": "\U0001f600" * 10_000})
    assert 10_000 < len(message.sample.encode()) <= 16 << 10


def rewrite_record(path: Path, **values: object) -> None:
    """Changes what a model's file says of its training."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    content = json.loads(header["__metadata__"]["treadle"])
    content["training"] |= values
    header["__metadata__"]["treadle"] = json.dumps(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize("field", ["steps", "tokens_seen", "weights_step", "valid_tokens"])
@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_count_that_cannot_be_is_a_damaged_file(tmp_path: Path, field: str, value: int) -> None:
    record = TrainingRecord(TrainConfig(), 1, 1, 1.0, None, 1.0, "").to_json()
    assert TrainingRecord.from_json(record)
    with pytest.raises(Exception, match=f"{field} is {value}"):
        TrainingRecord.from_json({**record, field: value})


def test_damaged_models_are_listed_as_such(start: Start, tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    models = {name: put_model(data_dir, name) for name in ("a", "good", "negative", "odd")}
    data_dir.close()
    rewrite_record(models["negative"].path, steps=-1)
    models["odd"].path.write_bytes(b"\xff" * 64)
    server = start()
    listed = server.caller.stub.ListModels(pb.ListModelsRequest(page_size=2), timeout=PATIENCE_S)
    request = pb.ListModelsRequest(page_token=listed.next_page_token)
    found = [*listed.models, *server.caller.stub.ListModels(request, timeout=PATIENCE_S).models]
    assert [model.name for model in found] == sorted(models)
    faults = {model.name: model for model in found if model.damage}
    assert sorted(faults) == ["negative", "odd"]
    assert "steps is -1" in faults["negative"].damage
    assert faults["negative"].version == 1
    assert not faults["negative"].HasField("network")
    for name in faults:
        described = partial(server.caller.stub.GetModel, pb.GetModelRequest(model=name))
        assert code_of(described) is grpc.StatusCode.DATA_LOSS
        gone = server.caller.stub.DeleteModel(pb.DeleteModelRequest(model=name, all_versions=True))
        assert list(gone.versions) == [1]


def change(root: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(root / DATABASE_FILE) as connection:
        connection.execute(statement, values)
    connection.close()


DAMAGE: dict[str, tuple[str, object]] = {
    "text": ("reason = CAST(? AS TEXT)", b"\xff\xfe"),
    "spec": ("spec = ?", b"\xff\xff"),
    "type": ("spec = ?", "text"),
    "state": ("state = ?", "runninf"),
    "progress": ("progress = ?", b"\xff"),
    "time": ("created_s = ?", 1e300),
    "config": ("config = ?", "{"),
    "files": ("files = ?", "[{}]"),
    "count": ("restarts = ?", -1),
    "model": ("model = CAST(? AS TEXT)", b"m\xff"),
}


def test_damaged_jobs_are_listed_as_such_and_can_be_deleted(start: Start, tmp_path: Path) -> None:
    """One bad byte in the row of one job was an internal error of every list, for ever."""
    server = start("--training-slots", "1")
    running = server.caller.train(long_spec("running"), TEXT)
    next(event for event in running if event.HasField("progress"))
    queued = {next(server.caller.train(tiny_spec("m"), TEXT)).job for _ in range(3)}
    server.end()
    root = tmp_path / "data"
    database = Database(root / DATABASE_FILE)
    for name in DAMAGE:
        database.add_job(job_row(name, spec=pb.TrainSpec(model="m").SerializeToString()))
    database.add_job(job_row("no-time", state="failed", ended_s=4e9))
    database.add_job(job_row("over", state="succeeded", last_sequence=5, ended_s=4e9))
    database.close()
    for name, (fault, value) in DAMAGE.items():
        change(root, f"UPDATE jobs SET {fault} WHERE id = ?", value, name)
    change(root, "UPDATE jobs SET created_s = ? WHERE id = 'no-time'", b"soon")
    server = start("--training-slots", "1")
    caller = server.caller
    listed = {job.id: job for job in caller.jobs(page_size=4)}
    assert listed.keys() == {*queued, *DAMAGE, "over", "no-time", running_job(listed)}
    assert {name for name, job in listed.items() if job.damage} == DAMAGE.keys()
    states = [pb.JOB_STATE_QUEUED, pb.JOB_STATE_SUCCEEDED]
    assert {"over", "spec", "progress"} <= {job.id for job in caller.jobs(states=states)}
    for name in DAMAGE:
        assert listed[name].damage
        assert not listed[name].HasField("spec")
        calls: list[Callable[[], object]] = [
            partial(caller.job, name),
            partial(watched, caller, name),
            partial(caller.stub.CancelJob, pb.CancelJobRequest(job=name)),
            partial(caller.stub.PauseJob, pb.PauseJobRequest(job=name)),
            partial(caller.stub.ResumeJob, pb.ResumeJobRequest(job=name)),
        ]
        for call in calls:
            assert code_of(call) is grpc.StatusCode.DATA_LOSS, name
        caller.stub.DeleteJob(pb.DeleteJobRequest(job=name), timeout=PATIENCE_S)
        assert code_of(partial(caller.job, name)) is grpc.StatusCode.NOT_FOUND
    # Its events are gone, and number 5 never comes.
    assert code_of(partial(watched, caller, "over")) is grpc.StatusCode.DATA_LOSS
    assert not any(job.damage for job in caller.jobs())


def watched(caller: Caller, job: str) -> list[pb.JobEvent]:
    return list(caller.watch(job))


def running_job(listed: dict[str, pb.Job]) -> str:
    return next(job.id for job in listed.values() if job.model == "running")


def test_an_event_that_cannot_be_read_has_its_number(start: Start, tmp_path: Path) -> None:
    server = start()
    events = list(server.caller.train(tiny_spec("m"), TEXT))
    server.end()
    change(tmp_path / "data", "UPDATE events SET payload = ? WHERE sequence = 2", b"\xff\xff")
    server = start()
    again = list(server.caller.watch(events[0].job))
    assert [event.sequence for event in again] == list(range(1, len(events) + 1))
    assert again[1].WhichOneof("event") is None
    assert [*again[:1], *again[2:]] == [*events[:1], *events[2:]]


def test_a_damaged_field_that_a_job_can_do_without_is_emptied() -> None:
    whole = job_row("j", state="succeeded", reason="it ended")
    assert not damage(whole)
    can_do_without: list[dict[str, Any]] = [
        {"progress": b"\xff"},
        {"restarts": -1},
        {"started_s": 1e300},
        {"queued_s": 1e300},
    ]
    for changes in can_do_without:
        row = job_row("j", state="succeeded", reason="it ended", **changes)
        assert damage(row)
        repaired_row = without_damage(row)
        assert repaired_row is not None
        assert replace(repaired_row, queued_s=whole.queued_s) == whole
    needs: list[dict[str, Any]] = [
        {"spec": b"\xff"},
        {"state": "x"},
        {"files": "x"},
        {"last_sequence": -1},
    ]
    for changes in needs:
        failed = without_damage(job_row("j", **changes))
        assert failed is not None
        assert not damage(failed)
        assert failed.state == "failed"
        assert "was damaged" in failed.reason
    assert without_damage(job_row("")) is None
    assert set(COLUMNS) >= {"spec", "state", "files"}


def test_a_page_that_is_damaged_while_a_server_runs_is_data_loss(
    tmp_path: Path,
) -> None:
    """The calls that need the page say what to do, without a path of the server's."""
    database = Database(tmp_path / "other.db")
    database.add_job(job_row("j"))
    database.close()
    with sqlite3.connect(tmp_path / "other.db") as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'jobs'"
        ((root,),) = connection.execute(query).fetchall()
    connection.close()
    data = bytearray((tmp_path / "other.db").read_bytes())
    data[(root - 1) * 4096 : root * 4096] = b"\xee" * 4096
    (tmp_path / "other.db").write_bytes(data)
    damaged = Database(tmp_path / "other.db", upgrade=False)
    with pytest.raises(DamagedDatabaseError) as caught:
        damaged.jobs()
    damaged.close()
    status = from_exception(caught.value, "ListJobs")
    assert status.code is grpc.StatusCode.DATA_LOSS
    assert "run treadle-server --fsck --repair" in status.message
    assert str(tmp_path) not in status.message


def test_a_repair_keeps_what_is_whole_in_a_damaged_row(tmp_path: Path) -> None:
    root = tmp_path / "data"
    data_dir = DataDir(root)
    spec = pb.TrainSpec(model="m").SerializeToString()
    first = pb.JobEvent(state=pb.JobStateChange(reason="first")).SerializeToString()
    for name in ("good", *DAMAGE):
        data_dir.database.add_job(job_row(name, spec=spec, state="paused"), first)
        data_dir.database.append_event(name, first, 2.5)
    data_dir.database.append_event("good", first, 3.5)
    data_dir.jobs.directory("model")
    data_dir.database.touch_corpus("ab" * 32, 1, 1.5)
    put_model(data_dir, "m")
    data_dir.database.set_alias("m", "prod", 1)
    data_dir.close()
    for name, (fault, value) in DAMAGE.items():
        change(root, f"UPDATE jobs SET {fault} WHERE id = ?", value, name)
    change(root, "UPDATE events SET payload = ? WHERE job = 'good' AND sequence = 2", b"\xff")
    change(root, "INSERT INTO events VALUES ('good', 'x', 1.5, ?)", first)
    change(root, "INSERT INTO aliases VALUES ('m', 'bad', 'x')")
    change(root, "INSERT INTO corpora VALUES ('x', 1, 1.5)")
    change(root, "DELETE FROM events WHERE job = 'text' AND sequence = 2")

    looked = check(root, repair=False)
    assert not (root / "damaged").exists()
    done = check(root, repair=True)
    assert len(looked.findings) >= len(DAMAGE) + 4
    lines = (root / "damaged" / "rows.jsonl").read_text().splitlines()[1:]
    left = [json.loads(line) for line in lines]
    # The events of the one job whose name is lost, and the four odd rows.
    assert len([row for row in left if row["table"] == "jobs"]) == len(DAMAGE)
    assert len([row for row in left if row["table"] == "events"]) == 2 + 2
    assert {row["table"] for row in left} == {"jobs", "events", "aliases", "corpora"}
    said = "".join(map(str, done.findings))
    for name in DAMAGE:
        assert f"the record of job {name} is damaged" in said
    assert (root / "damaged" / "jobs" / "model").is_dir()
    again = check(root, repair=True).findings
    assert [finding.what for finding in again] == []

    data_dir = DataDir(root)
    jobs = {row.id: row for row in data_dir.database.jobs()}
    assert jobs.keys() == {"good", *DAMAGE} - {"model"}
    assert not any(damage(row) for row in jobs.values())
    assert jobs["good"].state == jobs["text"].state == jobs["progress"].state == "paused"
    assert jobs["spec"].state == jobs["config"].state == jobs["files"].state == "failed"
    assert [number for number, _, _ in data_dir.database.events("good", 0)] == [1, 2, 3]
    assert data_dir.database.events("text", 1) != []  # its watchers come to an end
    assert data_dir.database.aliases("m") == {"prod": 1}
    data_dir.close()
