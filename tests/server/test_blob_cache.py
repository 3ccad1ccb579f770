"""The cache of blobs on this machine: bounds, damage, and many who need the same blob."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle.server.failures import BlobsUnavailableError, DamagedBlobError, NoSpaceError
from treadle.server.storage.blobs import blob_cache
from treadle.server.storage.blobs.blob_cache import BlobCache
from treadle.server.storage.blobs.directory import MARKER, BlobDirectory
from treadle.server.storage.files import DiskSpace
from treadle.server.storage.model_version import file_hash


class CountedDirectory(BlobDirectory):
    """A folder of blobs that counts what is read, and may hold readers up."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.streamed = 0
        self.free = threading.Event()
        self.free.set()

    def stream(self, key: str) -> Iterator[bytes | memoryview]:
        self.streamed += 1
        assert self.free.wait(30)
        return super().stream(key)


class Setup:
    """A cache over a folder."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.root = tmp_path / "cache"
        self.root.mkdir()
        self.blobs = CountedDirectory(tmp_path / "blobs")
        self.space = DiskSpace(tmp_path)
        self.cache = self.opened()

    def opened(self, max_bytes: int = 2500) -> BlobCache:
        self.cache = BlobCache(self.root, self.blobs, self.space, max_bytes)
        return self.cache

    def store(self, key: str, size: int = 1000) -> str:
        data = os.urandom(size)
        (self.tmp_path / "file").write_bytes(data)
        self.blobs.put(key, self.tmp_path / "file")
        return hashlib.sha256(data).hexdigest()

    def names(self) -> set[str]:
        return {path.name for path in self.root.iterdir()}


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def test_a_blob_is_fetched_once(setup: Setup) -> None:
    sha256 = setup.store("a")
    for _ in range(3):
        with setup.cache.use("a", sha256) as path:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert setup.blobs.streamed == 1
    with setup.opened().use("a", sha256):  # by the next server of this folder as well
        pass
    assert setup.blobs.streamed == 1


def test_many_who_wait_share_one_fetch(setup: Setup) -> None:
    sha256 = setup.store("a")
    setup.blobs.free.clear()
    found: list[bytes] = []

    def read() -> None:
        with setup.cache.use("a", sha256) as path:
            found.append(path.read_bytes())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    setup.blobs.free.set()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert setup.blobs.streamed == 1


def test_those_who_wait_get_the_error_of_the_fetch(setup: Setup) -> None:
    sha256 = setup.store("a")
    setup.blobs.free.clear()
    (setup.tmp_path / "blobs" / MARKER).unlink()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            setup.cache.hold("a", sha256)
        except BlobsUnavailableError as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    (setup.tmp_path / "blobs" / "a").unlink()
    for thread in threads:
        thread.start()
    setup.blobs.free.set()
    for thread in threads:
        thread.join(30)
    assert len(errors) == 4


def test_what_was_not_used_for_longest_goes_first(setup: Setup) -> None:
    hashes = {key: setup.store(key) for key in "abc"}
    for key in ("a", "b", "a", "c"):
        with setup.cache.use(key, hashes[key]):
            pass
    assert setup.names() == {hashes["a"], hashes["c"]}
    assert setup.cache.size_bytes == 2000


def test_nothing_goes_that_is_in_use(setup: Setup) -> None:
    hashes = {key: setup.store(key) for key in "abcd"}
    held = [setup.cache.hold(key, hashes[key]) for key in "abcd"]
    assert setup.names() == {*hashes.values()}
    held[1].release()
    held[1].release()  # counts once
    assert setup.names() == {hashes["a"], hashes["c"], hashes["d"]}
    for one in held:
        one.release()
    assert setup.names() == {hashes["c"], hashes["d"]}


def test_the_blob_used_last_is_kept_whatever_its_size(setup: Setup) -> None:
    sha256 = setup.store("a", 5000)
    for _ in range(2):
        with setup.cache.use("a", sha256):
            pass
    assert setup.blobs.streamed == 1
    small = setup.store("b", 10)
    with setup.cache.use("b", small):
        pass
    assert setup.names() == {small}


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_file_is_fetched_again(setup: Setup, damage: str, reopened: bool) -> None:
    sha256 = setup.store("a")
    with setup.cache.use("a", sha256) as path:
        data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-1] + (b"" if damage == "cut" else bytes([data[-1] ^ 1])))
    if reopened:
        setup.opened()
    with setup.cache.use("a", sha256) as path:
        assert path.read_bytes() == data
    assert setup.blobs.streamed == 2
    assert setup.cache.size_bytes == 1000


def test_a_damaged_blob_is_an_error_and_leaves_nothing(setup: Setup) -> None:
    sha256 = setup.store("a")
    setup.store("a")
    with pytest.raises(DamagedBlobError, match="is damaged"):
        setup.cache.hold("a", sha256)
    assert setup.names() == set()


def test_what_is_here_needs_no_store(setup: Setup) -> None:
    sha256 = setup.store("a")
    with setup.cache.use("a", sha256):
        pass
    (setup.tmp_path / "blobs" / MARKER).unlink()
    with setup.cache.use("a", sha256):
        pass
    other = setup.opened()
    with other.use("a", sha256):
        pass


def test_a_local_file_need_not_be_fetched(setup: Setup) -> None:
    for move in (False, True):
        path = setup.tmp_path / "made"
        path.write_bytes(b"%d" % move)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        held = setup.cache.add(path, sha256, move=move)
        assert held.path.read_bytes() == b"%d" % move
        assert path.exists() is not move
        held.release()
        with setup.cache.use("nowhere", sha256) as path:
            assert path == held.path
    assert setup.blobs.streamed == 0


def test_a_full_disk_takes_from_the_cache_what_is_not_in_use(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = setup.opened(1 << 20)
    hashes = {key: setup.store(key) for key in "abcd"}
    held = cache.hold("a", hashes["a"])
    for key in "bc":
        with cache.use(key, hashes[key]):
            pass
    monkeypatch.setattr(setup.space, "free", lambda: 3500 - cache.size_bytes)
    setup.space.require_least()
    assert cache.size_bytes == 3000
    with cache.use("d", hashes["d"]):
        assert setup.names() == {hashes["a"], hashes["c"], hashes["d"]}
    setup.space.require(2000)
    assert setup.names() == {hashes["a"]}
    with pytest.raises(NoSpaceError):
        setup.space.require(3000)
    assert setup.names() == {hashes["a"]}
    held.release()


def test_a_forgotten_file_goes_unless_it_is_in_use(setup: Setup) -> None:
    sha256 = setup.store("a")
    held = setup.cache.hold("a", sha256)
    setup.cache.forget(sha256)
    assert setup.names() == {sha256}
    held.release()
    setup.cache.forget(sha256)
    assert setup.names() == set()
    assert setup.cache.size_bytes == 0


def test_a_file_that_is_being_checked_is_not_forgotten(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may have the same content as one that is deleted."""
    sha256 = setup.store("a")
    with setup.cache.use("a", sha256):
        pass
    cache = setup.opened()

    def forgotten(path: Path) -> str:
        found = file_hash(path)
        cache.forget(sha256)
        return found

    monkeypatch.setattr(blob_cache, "file_hash", forgotten)
    with cache.use("a", sha256) as path:
        assert path.exists()


def test_a_damaged_file_does_not_pass_for_one_that_is_added(setup: Setup) -> None:
    sha256 = setup.store("a")
    with setup.cache.use("a", sha256) as path:
        path.write_bytes(bytes(1000))
    setup.cache.add(setup.tmp_path / "file", sha256, move=False).release()
    with setup.cache.use("a", sha256) as path:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def test_a_new_server_removes_what_was_not_finished(setup: Setup) -> None:
    (setup.root / f".{'a' * 64}.0123abcd.tmp").write_bytes(b"half")
    for number in range(4):
        place = setup.root / (f"{number}" * 64)
        place.write_bytes(bytes(1000))
        os.utime(place, (number, number))
    assert setup.opened().size_bytes == 2000
    assert setup.names() == {"2" * 64, "3" * 64}
