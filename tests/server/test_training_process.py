"""The training process by itself: what it says where the disk is full at its very end."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from treadle.model import Model
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    ReportConfig,
    TrainConfig,
)
from treadle.server.jobs import worker_protocol, worker_training
from treadle.server.jobs.worker_control import Replies, RunControl
from treadle.server.storage.job_files import FINAL_FILE, LAST_FILE, STATE_FILE

from .harness import PATIENCE_S, TEXT

FULL_AT_THE_END = """
import errno, sys
from treadle.model import Model
from treadle.server.jobs import worker_training
save = Model.save
def full(model, path, require):
    if path.name == "final.safetensors":
        raise OSError(errno.ENOSPC, "No space left on device")
    save(model, path)
Model.save = full
"""
LOST_RANK = """
from treadle.model.network.ranks.ranks import LostRankError
from treadle.server.jobs import worker_training
def lose(*_):
    raise LostRankError("another process of the run has not answered")
worker_training._work = lose
"""
SERVE = """
import sys
from treadle.server.jobs import worker_training
requests, replies = open(0, "rb", buffering=0), open(1, "wb", buffering=0)
sys.exit(worker_training.serve(requests, replies, False))
"""


def order(folder: Path, corpus_bytes: bytes = TEXT, **sections: Any) -> worker_protocol.Message:
    """Returns a job of a few steps."""
    corpus = folder / "corpus"
    corpus.write_bytes(corpus_bytes)
    defaults = {
        "network": NetworkConfig(hidden_size=4, embedding_size=2),
        "data": DataConfig(batch_size=2, window=8),
        "limits": LimitsConfig(max_steps=5),
    }
    config = TrainConfig(**{**defaults, **sections})
    file = {"path": str(corpus), "name": "corpus", "role": "train", "weight": 1.0}
    return {
        "files": [file],
        "directory": str(folder),
        "init_from": False,
        "config": config.to_json(),
        "threads": 1,
        "memory_limit_bytes": None,
        "checkpoint_interval_s": 0.0,
        "min_free_bytes": 0,
        "reserved_bytes": 0,
    }


Answer = Callable[[worker_protocol.Message], worker_protocol.Message | None]


def serve(
    script: str, job: worker_protocol.Message, answer: Answer | None = None
) -> list[worker_protocol.Message]:
    """Has a process do a job, and returns what it says, to its last word.

    Args:
        script: What the process runs.
        job: The job.
        answer: What the server answers to a message; None: nothing.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(worker_protocol.encode({"job": job}))
        process.stdin.flush()
        said = []
        for line in process.stdout:
            message = worker_protocol.decode(line)
            if message["event"] == "alive":  # as often as the machine is slow
                continue
            said.append(message)
            if said[-1]["event"] in ("saved", "paused", "failed", "stopped"):
                break
            reply = None if answer is None else answer(said[-1])
            if reply is not None:
                process.stdin.write(worker_protocol.encode(reply))
                process.stdin.flush()
        process.stdin.close()
        process.wait(PATIENCE_S)
    return said


def test_a_disk_that_is_full_at_the_very_end_pauses_the_job(tmp_path: Path) -> None:
    first = serve(FULL_AT_THE_END + SERVE, order(tmp_path))
    last = first[-1]
    assert (last["event"], last["needs_bytes"]) == ("paused", 1)
    assert "No space left" in last["reason"]
    assert (tmp_path / STATE_FILE).exists()
    again = serve(SERVE, order(tmp_path))
    assert again[-1]["event"] == "saved"
    # The last report is repeated, for a server that died before it stored that.
    reported = [said for said in again if said["event"] == "progress"]
    assert reported[0] in first
    assert reported[-1]["step"] == 5
    assert (tmp_path / FINAL_FILE).exists()
    assert (tmp_path / LAST_FILE).exists()


SMALL_DISK = """
import os
from pathlib import Path
from treadle.server.storage.files import DiskSpace
folder = Path(os.environ["SMALL_DISK"])
def free(self):
    '''A disk of so many bytes, of which the files of this process take some.'''
    used = sum(path.stat().st_size for path in folder.iterdir())
    for handle in Path("/proc/self/fd").iterdir():
        try:
            nameless = "(deleted)" in os.readlink(handle)
            used += handle.stat().st_size if nameless else 0
        except OSError:
            pass
    return int(os.environ["DISK_BYTES"]) - used
DiskSpace.free = free
"""


@pytest.mark.parametrize(
    ("disk_bytes", "where"), [(1 << 19, "preparation"), (5 << 20, "checkpoint")]
)
def test_a_job_that_needs_more_space_than_there_is_pauses_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_bytes: int, where: str
) -> None:
    monkeypatch.setenv("SMALL_DISK", str(tmp_path))
    monkeypatch.setenv("DISK_BYTES", str(disk_bytes))
    job = order(
        tmp_path, TEXT * (800 if where == "preparation" else 1), network={"hidden_size": 500}
    )
    corpus_bytes = sum(Path(file["path"]).stat().st_size for file in job["files"])
    job |= {"min_free_bytes": 100_000}
    monkeypatch.setenv("DISK_BYTES", str(disk_bytes + corpus_bytes))
    last = serve(SMALL_DISK + SERVE, job)[-1]
    assert last["event"] == "paused"
    assert "100,000 are to stay so" in last["reason"]
    assert last["needs_bytes"] > (disk_bytes - 200_000 if where == "preparation" else 1)
    left = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert left <= disk_bytes + corpus_bytes - 100_000
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    monkeypatch.setenv("DISK_BYTES", str(1 << 30))
    assert serve(SMALL_DISK + SERVE, job)[-1]["event"] == "saved"


def test_what_fails_at_once_is_told(tmp_path: Path) -> None:
    job = order(tmp_path)
    (tmp_path / "corpus").write_bytes(b"")
    said = serve(SERVE, job)
    assert [message["event"] for message in said] == ["ready", "failed"]
    assert said[-1]["error"]["type"] == "CorpusError"


def test_a_job_whose_checkpoints_are_damaged_says_that_it_starts_over(tmp_path: Path) -> None:
    serve(FULL_AT_THE_END + SERVE, order(tmp_path))
    for path in tmp_path.glob(f"{STATE_FILE}*"):
        path.write_bytes(b"damaged")
    said = serve(SERVE, order(tmp_path))
    assert [message["event"] for message in said[:3]] == ["ready", "restarted", "started"]
    assert "starts over" in said[1]["reason"]
    assert said[-1]["event"] == "saved"


def test_a_model_that_was_left_does_not_pass_for_this_runs(tmp_path: Path) -> None:
    (tmp_path / FINAL_FILE).write_bytes(b"of an end that was not to be")
    said = serve(FULL_AT_THE_END + SERVE, order(tmp_path))
    assert said[-1]["event"] == "paused"
    assert not (tmp_path / FINAL_FILE).exists()


# ---------------------------------------------------------------- leaving at any time

ENDLESS = """
import time
import treadle.model.training.trainer
def endless(*_):
    print("here", file=sys.stderr)
    time.sleep(1e6)
"""
IN_PREPARATION = f"import sys{ENDLESS}treadle.model.training.trainer.baseline = endless\n"
"""Counts n-grams for ever."""
AT_THE_END = f"import sys{ENDLESS}treadle.model.training.trainer.Trainer._final_loss = endless\n"
"""Reads the whole validation part for ever."""
SLOW_VALIDATIONS = """
import time
from treadle.model.scoring.scorer import Scorer
score = Scorer.log_probabilities
def slow(*arguments):
    time.sleep(0.06)  # more than the interval of reports
    return score(*arguments)
Scorer.log_probabilities = slow
"""
SAMPLED = {
    "data": DataConfig(batch_size=2, window=8, validation_fraction=0.5),
    "report": ReportConfig(progress_interval_s=0.05, sample_tokens=0),
}
LONG_TEXT = TEXT * 30
"""Long enough for a sample to be less than half of the validation part."""


def once(when: Callable[[worker_protocol.Message], bool], reply: worker_protocol.Message) -> Answer:
    """Answers the first message of a kind."""
    answered: list[worker_protocol.Message] = []

    def answer(message: worker_protocol.Message) -> worker_protocol.Message | None:
        if answered or not when(message):
            return None
        answered.append(message)
        return reply

    return answer


@pytest.mark.parametrize(
    ("reply", "event"),
    [
        ({"pause": "for a test"}, "paused"),
        ({"stop": "cancelled", "at_once": True}, "stopped"),
        ({"stop": "its time is over"}, "stopped"),
    ],
)
def test_a_run_that_is_being_prepared_is_left_at_once(
    reply: worker_protocol.Message, event: str, tmp_path: Path
) -> None:
    """However long what it is at takes: it takes for ever here."""
    answer = once(lambda said: said["event"] == "ready", reply)
    said = serve(IN_PREPARATION + SERVE, order(tmp_path), answer)
    assert [message["event"] for message in said] == ["ready", event]
    assert said[-1]["reason"] in reply.values()
    assert serve(SERVE, order(tmp_path))[-1]["event"] == "saved"


def test_a_large_corpus_is_said_to_be_read(tmp_path: Path) -> None:
    small = serve(SERVE, order(tmp_path))
    assert not any(message["event"] == "reading" for message in small)
    module = "treadle.server.jobs.worker_training"
    script = f"import {module}\n{module}._LARGE_CORPUS_BYTES = 1{SERVE}"
    said = serve(script, order(tmp_path))
    assert [message["event"] for message in said[:3]] == ["ready", "reading", "started"]
    assert said[1]["reason"] == f"reading a corpus of {len(TEXT):,} bytes"


def test_what_a_run_has_kept_is_not_lost_by_a_stop_in_its_preparation(tmp_path: Path) -> None:
    pause = once(lambda said: said["event"] == "checkpoint", {"pause": "for a test"})
    job = order(tmp_path, limits=LimitsConfig(max_steps=10**9))
    assert serve(SERVE, job, pause)[-1]["event"] == "paused"
    stop = once(lambda said: said["event"] == "ready", {"stop": "its time is over"})
    assert serve(SERVE, job, stop)[-1]["event"] == "saved"
    (tmp_path / FINAL_FILE).unlink()
    cancel = {"stop": "cancelled", "at_once": True}
    in_preparation = once(lambda said: said["event"] == "ready", cancel)
    said = serve(IN_PREPARATION + SERVE, job, in_preparation)
    assert [message["event"] for message in said] == ["ready", "stopped"]
    assert (tmp_path / LAST_FILE).exists()


def test_a_pause_in_the_pass_at_the_end_keeps_the_run(tmp_path: Path) -> None:
    job = order(tmp_path, LONG_TEXT, **SAMPLED)
    steps = job["config"]["limits"]["max_steps"]
    last = once(lambda said: said.get("step") == steps, {"pause": "for a test"})
    assert serve(AT_THE_END + SERVE, job, last)[-1]["event"] == "paused"
    assert serve(SERVE, job)[-1]["event"] == "saved"


def test_a_long_validation_is_told_and_left_and_made_again_to_the_same_bits(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / name for name in ("left", "whole")]
    for folder in folders:
        folder.mkdir()
    left, whole = (order(folder, LONG_TEXT, **SAMPLED) for folder in folders)
    pause = once(lambda said: said["event"] == "validation", {"pause": "for a test"})
    said = serve(SLOW_VALIDATIONS + SERVE, left, pause)
    assert said[-1]["event"] == "paused"
    (reported, *_) = (message for message in said if message["event"] == "validation")
    assert (reported["step"], reported["role"], reported["is_final"]) == (1, "valid", False)
    assert 0 < reported["tokens_done"] < reported["tokens_total"] < len(LONG_TEXT) / 4
    assert not any(message["event"] == "progress" for message in said), "it was not made"
    final = [
        [message for message in serve(SLOW_VALIDATIONS + SERVE, job) if message.get("is_final")]
        for job in (left, whole)
    ]
    assert final[0]
    assert {message["tokens_total"] for message in final[0]} == {len(LONG_TEXT) // 2 - 1}
    models = [Model.load(folder / FINAL_FILE) for folder in folders]
    assert models[0].parameters.flat.tobytes() == models[1].parameters.flat.tobytes()
    records = [model.training for model in models]
    assert records[0] is not None
    assert records[1] is not None
    assert records[0].valid_loss == records[1].valid_loss
    assert records[0].valid_tokens == len(LONG_TEXT) // 2 - 1


def test_allocating_more_than_a_job_may_take_fails_by_name(tmp_path: Path) -> None:
    takes_all = """
import numpy as np
from treadle.server.jobs import worker_training
worker_training._prepare = lambda *_: np.ones(1 << 30, np.uint8)
"""
    job = order(tmp_path) | {"memory_limit_bytes": 64 << 20}
    said = serve(takes_all + SERVE, job)
    assert said[-1]["event"] == "failed"
    assert said[-1]["error"]["type"] == "MemoryError"


def test_a_training_process_imports_only_what_it_needs() -> None:
    heavy = ("asyncio", "cryptography", "google.protobuf", "grpc", "prometheus_client")
    code = (
        "import sys; from treadle.server.jobs import worker_training\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_lost_rank_is_no_failure_of_the_job(tmp_path: Path) -> None:
    """The end of the process, of which it says nothing, has the server start another one."""
    said = serve(LOST_RANK + SERVE, order(tmp_path))
    assert [each["event"] for each in said] == ["ready"]


@pytest.mark.parametrize(("processes", "threads"), [(1, 8), (3, 2), (16, 1)])
def test_processes_of_one_machine_share_its_threads(
    monkeypatch: pytest.MonkeyPatch, processes: int, threads: int
) -> None:
    given: list[int] = []

    def work(job: worker_protocol.Message, *_: object) -> None:
        given.append(job["threads"])

    monkeypatch.setattr(worker_training, "_work", work)
    monkeypatch.setattr(worker_training, "limit_own", lambda *_: None)
    monkeypatch.setattr(worker_training, "log_to_stderr", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("os.kill", lambda *_: None)
    ranks: Any = SimpleNamespace(on_this_host=processes)
    job = worker_protocol.encode({"job": {"threads": 8, "memory_limit_bytes": None}})
    worker_training.serve(io.BytesIO(job), io.BytesIO(), False, ranks)
    assert given == [threads]
    control = RunControl(Replies(io.BytesIO()))
    worker_training._listen(io.BytesIO(worker_protocol.encode({"threads": 8})), control, ranks)
    assert control.threads == threads
