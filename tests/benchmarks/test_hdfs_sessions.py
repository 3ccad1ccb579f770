"""The published HDFS sessions become the files of benchmarks/hdfs.py."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hdfs_sessions.py"


def session(label: int, *templates: str) -> defaultdict[str, Any]:
    found: defaultdict[str, Any] = defaultdict(list, templates=list(templates))
    found["label"] = label
    return found


def convert(folder: Path, train: object, test: object) -> subprocess.CompletedProcess[str]:
    for name, sessions in (("train", train), ("test", test)):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(sessions, protocol=4))
    return subprocess.run(
        [sys.executable, str(SCRIPT), "train.pkl", "test.pkl"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_events_are_numbered_in_the_order_of_the_sessions(tmp_path: Path) -> None:
    train = {np.str_("blk_-1"): session(0, "receive", "receive", "close")}
    test = {np.str_("blk_2"): session(1, "close", "delete"), np.str_("blk_3"): session(0)}
    done = convert(tmp_path, train, test)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "hdfs100k_train.jsonl").read_text() == (
        '{"block":"blk_-1","label":0,"events":[1,1,2]}\n'
    )
    assert (tmp_path / "hdfs100k_test.jsonl").read_text() == (
        '{"block":"blk_2","label":1,"events":[2,3]}\n{"block":"blk_3","label":0,"events":[]}\n'
    )


def test_a_file_with_code_in_it_is_refused(tmp_path: Path) -> None:
    done = convert(tmp_path, {"blk_1": Path("/")}, {})
    assert done.returncode == 1
    assert "sessions hold no pathlib" in done.stderr
