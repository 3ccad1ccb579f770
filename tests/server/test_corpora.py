from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.server.storage.corpora import Corpora
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.files import shared_with_group

DATA = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


@pytest.fixture
def corpora(data_dir: DataDir) -> Corpora:
    return data_dir.corpora


def put(corpora: Corpora, *pieces: bytes | bytearray | memoryview) -> str:
    writer = corpora.writer()
    for piece in pieces:
        writer.write(piece)
    return writer.claim()[0]


def test_a_corpus_is_stored_under_its_hash(tmp_path: Path, data_dir: DataDir) -> None:
    with shared_with_group(tmp_path):  # as a server does; the folder is its owner's only
        writer = data_dir.corpora.writer()
    for begin in range(0, len(DATA), 999):
        writer.write(DATA[begin : begin + 999])
    assert writer.size == len(DATA)
    assert not data_dir.corpora.has(SHA256)
    assert writer.claim() == (SHA256, len(DATA))
    path = data_dir.corpora.path(SHA256)
    assert path == tmp_path / "corpora" / SHA256
    assert path.read_bytes() == DATA
    assert data_dir.corpora.has(SHA256)
    assert path.stat().st_mode & 0o777 == 0o600
    ((known, size, used_s),) = data_dir.database.corpora()
    assert (known, size) == (SHA256, len(DATA))
    assert abs(used_s - time.time()) < 60
    writer.discard()
    assert path.read_bytes() == DATA
    assert not list((tmp_path / "tmp").iterdir())


def test_every_kind_of_bytes_may_be_written(corpora: Corpora) -> None:
    pieces = (DATA[:7], b"", bytearray(DATA[7:100]), memoryview(DATA)[100:])
    assert put(corpora, *pieces) == SHA256
    assert put(corpora) == hashlib.sha256(b"").hexdigest()


def test_the_same_corpus_is_stored_once(tmp_path: Path, corpora: Corpora) -> None:
    put(corpora, DATA)
    before = corpora.path(SHA256).stat()
    assert put(corpora, DATA) == SHA256
    assert corpora.path(SHA256).stat().st_ino == before.st_ino
    assert [path.name for path in (tmp_path / "corpora").iterdir()] == [SHA256]
    assert not list((tmp_path / "tmp").iterdir())


def test_a_corpus_cut_short_on_disk_is_replaced(corpora: Corpora) -> None:
    put(corpora, DATA)
    corpora.path(SHA256).write_bytes(DATA[:-1])
    put(corpora, DATA)
    assert corpora.path(SHA256).read_bytes() == DATA


def test_many_may_store_the_same_corpus_at_once(tmp_path: Path, corpora: Corpora) -> None:
    threads = [threading.Thread(target=put, args=(corpora, DATA)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert corpora.path(SHA256).read_bytes() == DATA
    assert not list((tmp_path / "tmp").iterdir())


def test_what_is_discarded_is_gone(tmp_path: Path, data_dir: DataDir) -> None:
    writer = data_dir.corpora.writer()
    writer.write(DATA)
    writer.discard()
    writer.discard()
    assert not list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "corpora").iterdir())
    assert data_dir.database.corpora() == []


@pytest.mark.parametrize("name", ["", "../treadle.db", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_what_is_no_hash_names_no_corpus(corpora: Corpora, name: str) -> None:
    assert not corpora.has(name)
    with pytest.raises(ValueError, match="is not a SHA-256"):
        corpora.path(name)
    with pytest.raises(ValueError, match="is not a SHA-256"):
        corpora.remove(name)


def test_a_removed_corpus_stays_for_who_has_it_open(data_dir: DataDir) -> None:
    put(data_dir.corpora, DATA)
    with data_dir.corpora.path(SHA256).open("rb") as reader:
        data_dir.corpora.remove(SHA256)
        assert reader.read() == DATA
    assert not data_dir.corpora.has(SHA256)
    assert data_dir.database.corpora() == []
    data_dir.corpora.remove(SHA256)


def test_only_what_was_not_wanted_since_expires(data_dir: DataDir) -> None:
    put(data_dir.corpora, DATA)
    data_dir.database.touch_corpus(SHA256, len(DATA), 100.0)
    assert not data_dir.corpora.expire(SHA256, 100.0)
    assert data_dir.corpora.has(SHA256)
    assert data_dir.corpora.expire(SHA256, 100.1)
    assert not data_dir.corpora.has(SHA256)
    assert not data_dir.corpora.expire(SHA256, 100.1)


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(data_dir.corpora, b"an earlier one")
    earlier = sorted((tmp_path / "corpora").iterdir())
    written = os.write
    space = [150_000]

    def nearly_full(handle: int, data: memoryview) -> int:
        if not space[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = written(handle, data[: space[0]])
        space[0] -= count
        return count

    monkeypatch.setattr(os, "write", nearly_full)
    writer = data_dir.corpora.writer()
    with pytest.raises(OSError, match="No space left"):
        writer.write(DATA)
    writer.discard()
    assert space == [0]  # a part was written before
    assert not list((tmp_path / "tmp").iterdir())
    assert sorted((tmp_path / "corpora").iterdir()) == earlier
    monkeypatch.undo()
    assert put(data_dir.corpora, DATA) == SHA256
    assert data_dir.corpora.path(SHA256).read_bytes() == DATA


def test_a_write_that_takes_a_part_is_gone_on_with(
    corpora: Corpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: written(handle, data[:1000]))
    assert put(corpora, DATA) == SHA256
    assert corpora.path(SHA256).read_bytes() == DATA


def test_a_sync_that_fails_stores_nothing(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = data_dir.corpora.writer()
    writer.write(DATA)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        writer.claim()
    writer.discard()
    assert not data_dir.corpora.has(SHA256)
    assert data_dir.database.corpora() == []


def test_a_write_that_comes_too_late_reaches_no_other_file(
    data_dir: DataDir, tmp_path: Path
) -> None:
    writer = data_dir.corpora.writer()
    writer.write(b"some")
    writer.discard()
    # The next file gets the handle that was closed.
    with (tmp_path / "other").open("wb") as other:
        with pytest.raises(OSError, match="Bad file descriptor"):
            writer.write(b"late")
        assert os.fstat(other.fileno()).st_size == 0
