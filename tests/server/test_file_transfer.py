"""Files that travel to a node and back, and the directory of a job there."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from treadle.model.atomic_files import leftovers
from treadle.server.failures import NoSpaceError
from treadle.server.jobs.executors.file_transfer import (
    PIECE_BYTES,
    DamagedTransferError,
    IncomingFile,
    OutgoingFile,
)
from treadle.server.jobs.executors.job_scratch import JobScratch
from treadle.server.storage.job_files import BEST_FILE, LAST_FILE, STATE_FILE


def carry(source: Path, target: Path, previous: Path | None = None) -> None:
    """Takes a file from one place to another, as between two machines."""
    outgoing = OutgoingFile(source)
    incoming = IncomingFile(target, outgoing.size, previous=previous)
    while piece := outgoing.read():
        incoming.write(piece)
    incoming.finish(outgoing.sha256)
    incoming.discard()
    outgoing.close()


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_a_file_arrives_as_it_was(tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    target = tmp_path / "target"
    target.write_bytes(b"old")
    carry(source, target, previous=tmp_path / "before")
    assert target.read_bytes() == source.read_bytes()
    assert (tmp_path / "before").read_bytes() == b"old"
    assert not list(leftovers(tmp_path))


def test_a_file_that_is_replaced_meanwhile_arrives_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a" * (PIECE_BYTES + 1))
    outgoing = OutgoingFile(source)
    pieces = [outgoing.read()]
    (tmp_path / "newer").write_bytes(b"b" * 5)
    (tmp_path / "newer").replace(source)
    while piece := outgoing.read():
        pieces.append(piece)
    outgoing.close()
    assert b"".join(pieces) == b"a" * (PIECE_BYTES + 1)
    assert outgoing.size == PIECE_BYTES + 1


def test_a_damaged_file_takes_nobodys_place(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    incoming = IncomingFile(target, 3, previous=tmp_path / "before")
    incoming.write(b"neW")
    with pytest.raises(DamagedTransferError, match="target did not arrive as it was sent"):
        incoming.finish(hashlib.sha256(b"new").hexdigest())
    incoming.discard()
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path) -> None:
    def require(size: int) -> None:
        raise NoSpaceError(size, 0, 0)

    with pytest.raises(OSError, match="bytes of it are free") as caught:
        IncomingFile(tmp_path / "target", 1000, require)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_results_are_told_apart_by_their_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch = JobScratch("j")
    assert scratch.results() == []
    for name in (LAST_FILE, BEST_FILE, STATE_FILE):
        (scratch.directory / name).write_bytes(b"1")
    before = dict(scratch.results())
    assert list(before) == [STATE_FILE, BEST_FILE, LAST_FILE]  # a checkpoint leaves first
    (tmp_path / "new").write_bytes(b"2")
    (tmp_path / "new").replace(scratch.directory / LAST_FILE)
    after = dict(scratch.results())
    assert {name for name in after if after[name] != before[name]} == {LAST_FILE}
    scratch.remove()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    die = (
        "import os, tempfile\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from treadle.server.jobs.executors.job_scratch import JobScratch\n"
        "JobScratch('killed')\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", die], check=True)
    [left] = tmp_path.iterdir()
    assert left.stat().st_mode & 0o077 == 0
    foreign = tmp_path / "another"
    foreign.mkdir()
    first = JobScratch("first")
    second = JobScratch("second")
    assert set(tmp_path.iterdir()) == {foreign, first.root, second.root}
    first.remove()
    second.remove()
