"""`bad_job_row` and others attack by stored data: one damaged thing must not hurt the others."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from treadle.benchmarks.scenarios import template
from treadle.benchmarks.scenarios.report import Figure
from treadle.benchmarks.scenarios.target import MESSAGE, Target, scenario, status_of
from treadle.v1 import sequence_pb2 as pb


def _failed(target: Target, **calls: Callable[[], object]) -> Figure:
    """Counts the calls that fail."""
    statuses = {name: status_of(call) for name, call in calls.items()}
    failed = [name for name, status in statuses.items() if status != "OK"]
    note = ", ".join(f"{name} {status}" for name, status in statuses.items())
    return Figure("calls that fail", float(len(failed)), "", 0.0, note)


def _listing(target: Target) -> dict[str, Callable[[], object]]:
    return {
        "ListJobs": lambda: target.stub.ListJobs(pb.ListJobsRequest(page_size=1000), timeout=60.0),
        "ListModels": lambda: target.stub.ListModels(pb.ListModelsRequest(), timeout=60.0),
    }


@scenario("unknown-fields")
def unknown_fields(target: Target) -> list[Figure]:
    """Two Train calls with 3.5 MB of unknown fields in their specs; then the lists."""
    corpus = template.words(5000).encode()
    target.begin(template.upload(template.endless_spec("busy"), corpus))
    for number in range(2):
        spec = template.spec(f"unknown-{number}")
        spec.MergeFromString(template.unknown_field(3_500_000))
        target.begin(template.upload(spec, corpus), until="state")
    return [_failed(target, **_listing(target))]


def _name_often(folder: Path, data_dir: Path) -> None:
    rows = [("log", f"{'alias' * 18}-{number:05d}", 1) for number in range(45_000)]
    template.execute(data_dir, "INSERT INTO aliases VALUES (?, ?, ?)", *rows)


@scenario("stored-aliases", prepare=_name_often)
def stored_aliases(target: Target) -> list[Figure]:
    """A model that an older server let have 45,000 aliases."""
    get = pb.GetModelRequest(model="log")
    return [
        _failed(
            target, GetModel=lambda: target.stub.GetModel(get, timeout=60.0), **_listing(target)
        )
    ]


def _sample_long(folder: Path, data_dir: Path) -> None:
    progress = pb.TrainingProgress(step=5, sample="x" * 36_000)
    template.add_jobs(
        folder,
        data_dir,
        300,
        state="succeeded",
        progress=progress.SerializeToString(),
        started_s=1.8e9,
        ended_s=1.8e9,
    )


@scenario("long-samples", prepare=_sample_long)
def long_samples(target: Target) -> list[Figure]:
    """ListJobs of 1,000 where 300 jobs have samples of 36,000 characters."""
    token = ""
    seen = 0

    def list_all() -> None:
        nonlocal token, seen
        while True:
            request = pb.ListJobsRequest(page_size=1000, page_token=token)
            reply = target.stub.ListJobs(request, timeout=60.0)
            assert reply.ByteSize() <= MESSAGE + 4096
            seen += len(reply.jobs)
            token = reply.next_page_token
            if not token:
                return

    failed = _failed(target, ListJobs=list_all)
    return [failed, Figure("jobs not listed", 300.0 - min(seen, 300), "", 0.0)]


@scenario("growing-record")
def growing_record(target: Target) -> list[Figure]:
    """A model that learns and is published again and again: does its record grow?"""
    sizes = []
    for _ in range(12):
        messages = [
            pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="log")),
            pb.LearnStreamRequest(learn=pb.TextPiece(text="2026-11-01", end=True)),
            pb.LearnStreamRequest(publish=pb.Publish()),
        ]
        list(target.stub.LearnStream(iter(messages), timeout=60.0))
        model = target.stub.GetModel(pb.GetModelRequest(model="log"), timeout=60.0).model
        sizes.append(len(model.training.ended_by))
    grew = float(sizes[-1] - sizes[-2])
    return [Figure("last publish made it longer by", grew, "bytes", 2.0, f"{sizes[-1]} in all")]


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes what the header of a model's file says, and its hash with it."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    content = json.loads(header["__metadata__"]["treadle"])
    change(content)
    header["__metadata__"]["treadle"] = json.dumps(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.unlink()  # it is a link to the template's
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    path.with_name(template.HASH_FILE).unlink(missing_ok=True)


def _spoil_record(folder: Path, data_dir: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["training"]["steps"] = -1

    change_header(template.model_dir(data_dir, "words") / template.MODEL_FILE, spoil)


@scenario("bad-model-record", prepare=_spoil_record)
def bad_model_record(target: Target) -> list[Figure]:
    """A model's file whose record has steps = -1: do the others stay visible?"""
    return [_failed(target, **_listing(target))]


def _spoil_row(folder: Path, data_dir: Path) -> None:
    over = {"state": "succeeded", "started_s": 1.8e9, "ended_s": 1.8e9}
    template.add_jobs(folder, data_dir, 3, **over)
    [job] = template.add_jobs(folder, data_dir, 1, **over)
    template.execute(data_dir, "UPDATE jobs SET spec = X'FF' || spec WHERE id = ?", [job])


@scenario("bad-job-row", prepare=_spoil_row)
def bad_job_row(target: Target) -> list[Figure]:
    """A bad byte in one job's row: the lists, and then --fsck --repair."""
    failed = _failed(target, **_listing(target))
    target.collect()
    target.may_end = True
    target.server.terminate()
    return [failed, _repaired(target)]


def _repaired(target: Target) -> Figure:
    command = [*target.command, "--fsck", "--repair", "--data-dir", str(target.data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120.0)
    last = (done.stdout + done.stderr).strip().rpartition("\n")[2]
    return Figure("exit code of --fsck --repair", float(done.returncode), "", 1.0, last[-60:])


@scenario("linked-tmp")
def linked_tmp(target: Target) -> list[Figure]:
    """DATA/tmp that is a link to somebody's files: --fsck --repair, and then a start."""
    elsewhere = target.data_dir.with_name("elsewhere")
    elsewhere.mkdir()
    for number in range(5):
        (elsewhere / f"file-{number}").write_text("precious")
    target.collect()
    target.may_end = True
    target.server.terminate()
    tmp = target.data_dir / "tmp"
    for file in tmp.iterdir():
        file.unlink()
    tmp.rmdir()
    tmp.symlink_to(elsewhere)
    repaired = _repaired(target)
    lost = 5 - len(list(elsewhere.iterdir()))
    return [Figure("files of others deleted", float(lost), "", 0.0, repaired.note)]
