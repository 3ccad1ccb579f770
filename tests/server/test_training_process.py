"""The training process by itself: what it says where the disk is full at its very end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from treadle.model.config import DataConfig, LimitsConfig, NetworkConfig, TrainConfig
from treadle.server import wire
from treadle.server.job_files import FINAL_FILE, LAST_FILE, STATE_FILE

from .harness import PATIENCE_S, TEXT

FULL_AT_THE_END = """
import errno, sys
from treadle.model import Model
from treadle.server import training
save = Model.save
def full(model, path):
    if path.name == "final.safetensors":
        raise OSError(errno.ENOSPC, "No space left on device")
    save(model, path)
Model.save = full
"""
SERVE = """
import sys
from treadle.server import training
requests, replies = open(0, "rb", buffering=0), open(1, "wb", buffering=0)
sys.exit(training.serve(requests, replies, False))
"""


def order(folder: Path) -> wire.Message:
    """Returns a job of a few steps."""
    corpus = folder / "corpus"
    corpus.write_bytes(TEXT)
    config = TrainConfig(
        network=NetworkConfig(hidden_size=4, embedding_size=2),
        data=DataConfig(batch_size=2, window=8),
        limits=LimitsConfig(max_steps=5),
    )
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
    }


def serve(script: str, job: wire.Message) -> list[wire.Message]:
    """Has a process do a job, and returns what it says, to its last word."""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(wire.encode({"job": job}))
        process.stdin.flush()
        said = []
        for line in process.stdout:
            said.append(wire.decode(line))
            if said[-1]["event"] in ("saved", "paused", "failed", "stopped"):
                break
        process.stdin.close()
        process.wait(PATIENCE_S)
    return said


def test_a_disk_that_is_full_at_the_very_end_pauses_the_job(tmp_path: Path) -> None:
    first = serve(FULL_AT_THE_END + SERVE, order(tmp_path))
    last = first[-1]
    assert (last["event"], last["full"]) == ("paused", True)
    assert "No space left" in last["reason"]
    assert (tmp_path / STATE_FILE).exists()
    again = serve(SERVE, order(tmp_path))
    assert again[-1]["event"] == "saved"
    # What was told last is told again, for a server that died before it noted that.
    told = [said for said in again if said["event"] == "progress"]
    assert told[0] in first
    assert told[-1]["step"] == 5
    assert (tmp_path / FINAL_FILE).exists()
    assert (tmp_path / LAST_FILE).exists()


def test_what_fails_at_once_is_told(tmp_path: Path) -> None:
    job = order(tmp_path)
    (tmp_path / "corpus").write_bytes(b"")
    said = serve(SERVE, job)
    assert [message["event"] for message in said] == ["ready", "failed"]
    assert said[-1]["error"]["type"] == "CorpusError"


def test_a_job_whose_checkpoints_are_damaged_says_that_it_begins_anew(tmp_path: Path) -> None:
    serve(FULL_AT_THE_END + SERVE, order(tmp_path))
    for path in tmp_path.glob(f"{STATE_FILE}*"):
        path.write_bytes(b"damaged")
    said = serve(SERVE, order(tmp_path))
    assert [message["event"] for message in said[:3]] == ["ready", "anew", "started"]
    assert "begins anew" in said[1]["reason"]
    assert said[-1]["event"] == "saved"


def test_a_model_that_was_left_does_not_pass_for_this_runs(tmp_path: Path) -> None:
    (tmp_path / FINAL_FILE).write_bytes(b"of an end that was not to be")
    said = serve(FULL_AT_THE_END + SERVE, order(tmp_path))
    assert said[-1]["event"] == "paused"
    assert not (tmp_path / FINAL_FILE).exists()
