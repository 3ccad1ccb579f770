"""`convert` turns the published HDFS sessions into the two files that `benchmarks/hdfs.py` reads.

    python benchmarks/hdfs_sessions.py session_train.pkl session_test.pkl

The sessions are those of the first 100,000 lines of LogHub's HDFS log, as
https://github.com/logpai/deep-loglizer publishes them: session_train.pkl in
data/processed/HDFS_100k/hdfs_0.0_tar (normal sessions only) and session_test.pkl in
data/processed/HDFS_100k/hdfs_1.0_tar. Each is a pickled dictionary of blocks:
{"blk_...": {"templates": ["Receiving block <*> ...", ...], "label": 0 or 1}}. An event's number is
the place of its template in the order in which the sessions bring them up.

It writes hdfs100k_train.jsonl and hdfs100k_test.jsonl into the current directory.
"""

from __future__ import annotations

import argparse
import collections
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from treadle.benchmarks.script import input_file


def _scalar(kind: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, kind)[0]


# NumPy 2 has its scalars in another module than NumPy 1, which wrote the published files.
_ALLOWED: dict[str, Callable[..., Any]] = {
    "collections.defaultdict": collections.defaultdict,
    "builtins.list": list,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}


class _Sessions(pickle.Unpickler):
    """Reads dictionaries, lists, texts and numbers, and runs no code of the file's author."""

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"sessions hold no {module}.{name}") from None


def convert(source: Path, target: Path, numbers: dict[str, int]) -> None:
    """Writes the sessions of a file, an object per line; new templates get the next numbers."""
    with source.open("rb") as file:
        sessions = _Sessions(file).load()
    with target.open("w", encoding="utf-8") as lines:
        for block, session in sessions.items():
            events = [numbers.setdefault(name, len(numbers) + 1) for name in session["templates"]]
            record = {"block": str(block), "label": int(session["label"]), "events": events}
            print(json.dumps(record, separators=(",", ":")), file=lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=input_file, metavar="session_train.pkl")
    parser.add_argument("test", type=input_file, metavar="session_test.pkl")
    files = parser.parse_args(arguments)
    numbers: dict[str, int] = {}
    convert(files.train, Path("hdfs100k_train.jsonl"), numbers)
    convert(files.test, Path("hdfs100k_test.jsonl"), numbers)


if __name__ == "__main__":
    main()
