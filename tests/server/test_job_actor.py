"""`JobActor` without Ray: it trains in a directory of its own, and files come and go."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import pytest

from treadle.model import Model, train
from treadle.model.config import LimitsConfig, NetworkConfig, TrainConfig
from treadle.server.jobs.executors import job_scratch
from treadle.server.jobs.executors.file_transfer import OutgoingFile
from treadle.server.jobs.executors.job_actor import JobActor
from treadle.server.jobs.executors.job_scratch import JobScratch
from treadle.server.release import RELEASE
from treadle.server.storage.job_files import FINAL_FILE, LAST_FILE, STATE_FILE

from .harness import PATIENCE_S, TEXT

CONFIG = TrainConfig(
    network=NetworkConfig(hidden_size=4, embedding_size=2), limits=LimitsConfig(max_steps=3), seed=5
)


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder for temporary files of the node."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def request(sha256: str) -> dict[str, Any]:
    return {
        "request_id": "r",
        "caller": "",
        "log_level": 20,
        "files": [{"sha256": sha256, "path": "/none", "name": "c", "role": "train", "weight": 1.0}],
        "directory": "/none",
        "init_from": False,
        "config": CONFIG.to_json(),
        "threads": 1,
        "memory_limit_bytes": None,
        "checkpoint_interval_s": 0.0,
        "min_free_bytes": 0,
        "reserved_bytes": 1 << 60,
    }


async def send(actor: JobActor, path: Path, sha256: str) -> None:
    file = OutgoingFile(path)
    number = (await actor.begin_file("corpora", sha256, file.size))["number"]
    while piece := file.read():
        assert await actor.write_file(number, piece) == {}
    assert await actor.finish_file(number, file.sha256) == {}
    file.close()


async def fetch(actor: JobActor, name: str) -> bytes:
    number, size = await actor.open_result(name)
    pieces = []
    while piece := await actor.read_result(number):
        pieces.append(piece)
    content = b"".join(pieces)
    assert len(content) == size
    assert await actor.close_result(number) == hashlib.sha256(content).hexdigest()
    return content


async def messages_until(actor: JobActor, last: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        while last not in {message["event"] for message in messages}:
            messages += await actor.receive()
    return messages


def test_it_trains_what_was_sent_and_gives_the_files_back(node: Path, tmp_path: Path) -> None:
    async def run() -> None:
        corpus = tmp_path / "corpus"
        corpus.write_bytes(TEXT)
        sha256 = hashlib.sha256(TEXT).hexdigest()
        actor = JobActor("job", 0)
        about = await actor.start()
        assert about["release"] == RELEASE
        assert "fault" not in about
        await send(actor, corpus, sha256)
        await actor.submit(request(sha256), PATIENCE_S, None)
        messages = await messages_until(actor, "saved")
        assert {"started", "progress", "checkpoint", "log"} <= {m["event"] for m in messages}
        [line] = [m["line"] for m in messages if m["event"] == "log"]
        assert "job job is trained from step 0 on" in line
        assert {STATE_FILE, LAST_FILE, FINAL_FILE} <= {name for name, _ in await actor.results()}
        final = tmp_path / "final"
        final.write_bytes(await fetch(actor, FINAL_FILE))
        weights = Model.load(final).parameters.flat.tobytes()
        assert weights == train(TEXT, CONFIG).parameters.flat.tobytes()
        await actor.end()
        assert not list(node.glob("treadle-job-*"))

    asyncio.run(run())


def test_a_dead_worker_is_reported_after_its_log(node: Path) -> None:
    async def run() -> None:
        actor = JobActor("job", 0)
        await actor.start()
        # Not a request: the worker says so and fails; its end comes last.
        broken = request("0" * 64) | {"config": 5, "log_level": 20}
        await actor.submit(broken, PATIENCE_S, None)
        messages = await messages_until(actor, "died")
        assert "failed" in [message["event"] for message in messages]
        assert messages[-1]["event"] == "died"
        assert any("Traceback" in m["line"] for m in messages if m["event"] == "log")
        await actor.end()

    asyncio.run(run())


def test_a_directory_that_is_being_made_is_not_taken_for_an_abandoned_one(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs may begin on a node at the same moment."""
    lock = fcntl.flock

    def look_first(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX:
            job_scratch._remove_abandoned()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", look_first)
    scratch = JobScratch("job")
    assert scratch.directory.is_dir()
    JobScratch("other").remove()
    assert scratch.directory.is_dir()
    scratch._lock.close()  # as when its process is killed
    JobScratch("other").remove()
    assert not scratch.root.exists()


def test_a_node_without_space_takes_no_file(node: Path) -> None:
    async def run() -> None:
        actor = JobActor("job", 1 << 60)
        reply = await actor.begin_file("job", STATE_FILE, 1000)
        assert "bytes of it are free" in reply["full"]
        assert reply["needs_bytes"] == 1000
        await actor.end()

    asyncio.run(run())
