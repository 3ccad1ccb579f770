"""Every store of blobs does the same: a folder, and an object store."""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from services.azure import AzureServer
from services.s3 import S3Server

from treadle.server.config import MalformedSettingError, ServerConfig
from treadle.server.failures import BlobsUnavailableError, DamagedBlobError, NoSpaceError
from treadle.server.sharing import Sharing
from treadle.server.storage.blobs import blob_store
from treadle.server.storage.blobs.blob_store import BlobStore
from treadle.server.storage.blobs.directory import MARKER, BlobDirectory
from treadle.server.storage.blobs.opening import open_blobs, url_fault
from treadle.server.storage.files import StoreError


class Opened:
    """A store, and where its blobs are as files, if anywhere."""

    def __init__(self, store: BlobStore, file: Callable[[str], Path] | None) -> None:
        self.store = store
        self.file = file


@pytest.fixture(params=["directory", "s3", pytest.param("azure", marks=pytest.mark.azure)])
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Opened:
    if request.param == "directory":
        root = tmp_path / "blobs"
        return Opened(open_blobs(root.as_uri()), lambda key: root / key)
    server: S3Server | AzureServer = request.getfixturevalue(f"{request.param}_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    prefix = secrets.token_hex(4)
    store = open_blobs(server.url(prefix))
    if isinstance(server, AzureServer):
        return Opened(store, None)
    return Opened(store, lambda key: server.file(prefix, key))


@pytest.fixture
def store(opened: Opened) -> BlobStore:
    return opened.store


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 3_000_000, (9 << 20) + 1])
def test_a_file_comes_back_as_it_was_stored(store: BlobStore, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    sha256 = write(tmp_path / "file", data)
    store.put("models/a/1/file", tmp_path / "file")
    found = store.head("models/a/1/file")
    assert found is not None
    assert (found.key, found.size) == ("models/a/1/file", size)
    counted: list[int] = []
    store.fetch("models/a/1/file", tmp_path / "copy", sha256, counted.append)
    assert (tmp_path / "copy").read_bytes() == data
    assert sum(counted) == size


def test_a_blob_is_replaced(store: BlobStore, tmp_path: Path) -> None:
    write(tmp_path / "file", b"old")
    store.put("a/b", tmp_path / "file")
    sha256 = write(tmp_path / "file", b"new!")
    store.put("a/b", tmp_path / "file")
    store.fetch("a/b", tmp_path / "copy", sha256)
    assert (tmp_path / "copy").read_bytes() == b"new!"


def test_a_key_is_created_once(store: BlobStore) -> None:
    assert store.create("a/claim", b"mine")
    assert not store.create("a/claim", b"yours")
    assert store.read("a/claim") == b"mine"
    store.delete(["a/claim"])
    assert store.create("a/claim", b"yours")


def test_one_of_several_creates_a_key(store: BlobStore) -> None:
    if not store.exclusive:
        pytest.skip("this object store ignores If-None-Match")
    for turn in range(10):
        won: list[int] = []

        def create(number: int, key: str = f"race/{turn}", won: list[int] = won) -> None:
            if store.create(key, b"%d" % number):
                won.append(number)

        threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [b"%d" % number for number in won] == [store.read(f"race/{turn}")]


def test_blobs_are_listed_by_folder(store: BlobStore) -> None:
    for key in ("a/1/x", "a/1/y", "a/10/x", "ab/1", "b"):
        store.create(key, key.encode())
    assert sorted(blob.key for blob in store.list("a/1/")) == ["a/1/x", "a/1/y"]
    assert {blob.key: blob.size for blob in store.list("a/")} == dict.fromkeys(
        ("a/1/x", "a/1/y"), 5
    ) | {"a/10/x": 6}
    assert sorted(blob.key for blob in store.list("")) == ["a/1/x", "a/1/y", "a/10/x", "ab/1", "b"]
    assert [*store.list("none/")] == []


def test_deleting_what_is_not_there_is_no_error(store: BlobStore) -> None:
    for key in ("a/1", "a/2"):
        store.create(key, b"")
    store.delete(["a/0", "a/1", "a/2", "a/3"])
    assert [*store.list("")] == []
    assert store.head("a/1") is None


def test_content_is_copied_to_another_key(store: BlobStore, tmp_path: Path) -> None:
    sha256 = write(tmp_path / "file", os.urandom(100_000))
    store.put("a/old", tmp_path / "file")
    store.copy("a/old", "b/new")
    store.delete(["a/old"])
    store.fetch("b/new", tmp_path / "copy", sha256)
    with pytest.raises(FileNotFoundError):
        store.copy("a/old", "b/newer")


def test_a_missing_blob_is_a_missing_file(store: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("a/b")
    with pytest.raises(FileNotFoundError):
        store.fetch("a/b", tmp_path / "copy", "0" * 64)
    assert [*tmp_path.glob("*copy*")] == []


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_damaged_blob_leaves_no_file(opened: Opened, tmp_path: Path, damage: str) -> None:
    data = os.urandom(50_000)
    sha256 = write(tmp_path / "file", data)
    opened.store.put("a/b", tmp_path / "file")
    changed = data[:-1] + bytes([data[-1] ^ 1])
    if damage == "cut" or opened.file is None:  # as where a broken program has uploaded it
        write(tmp_path / "file", data[:-7] if damage == "cut" else changed)
        opened.store.put("a/b", tmp_path / "file")
    else:
        opened.file("a/b").write_bytes(changed)
    with pytest.raises(DamagedBlobError, match=r"a/b.*is damaged"):
        opened.store.fetch("a/b", tmp_path / "copy", sha256)
    assert [*tmp_path.glob("*copy*")] == []


def test_a_full_disk_ends_a_fetch(store: BlobStore, tmp_path: Path) -> None:
    sha256 = write(tmp_path / "file", b"12345")
    store.put("a/b", tmp_path / "file")

    def require(size: int) -> None:
        raise NoSpaceError(size, 0, 1)

    with pytest.raises(NoSpaceError):
        store.fetch("a/b", tmp_path / "copy", sha256, require)
    assert [*tmp_path.glob("*copy*")] == []


def test_a_large_blob_is_not_read_into_memory(store: BlobStore, tmp_path: Path) -> None:
    write(tmp_path / "file", bytes(100_000))
    store.put("a/b", tmp_path / "file")
    with pytest.raises(DamagedBlobError, match="too large"):
        store.read("a/b")


def test_an_object_store_that_stops_is_unavailable_and_comes_back(
    own_s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.server.storage.blobs import object_store

    monkeypatch.setattr(object_store, "_RETRIES", 1)
    for name, value in own_s3_server.environment.items():
        monkeypatch.setenv(name, value)
    store = open_blobs(own_s3_server.url("p"))
    write(tmp_path / "file", b"1")
    store.put("a", tmp_path / "file")
    own_s3_server.stop()
    for call in (
        lambda: store.read("a"),
        lambda: store.put("b", tmp_path / "file"),
        lambda: store.create("c", b""),
        lambda: store.head("a"),
        lambda: store.delete(["a"]),
        lambda: [*store.list("")],
        lambda: store.fetch("a", tmp_path / "copy", "0" * 64),
    ):
        with pytest.raises(BlobsUnavailableError, match=r"s3://treadle/p cannot be reached"):
            call()
    with pytest.raises(StoreError, match="--blobs-url cannot be used"):
        open_blobs(own_s3_server.url("p"))
    own_s3_server.start()
    assert store.read("a") == b"1"


def test_an_object_store_that_hangs_is_unavailable_in_bounded_time(
    own_s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treadle.server.storage.blobs import object_store

    monkeypatch.setattr(object_store, "_RETRIES", 0)
    monkeypatch.setattr(object_store, "_CALL_S", 0.4)
    monkeypatch.setattr(object_store, "_SILENT_S", 0.4)
    for name, value in own_s3_server.environment.items():
        monkeypatch.setenv(name, value)
    store = open_blobs(own_s3_server.url("p"))
    sha256 = write(tmp_path / "file", os.urandom(9 << 20))
    store.put("a", tmp_path / "file")
    own_s3_server.freeze()
    try:
        for call in (
            lambda: store.read("a"),
            lambda: store.put("b", tmp_path / "file"),
            lambda: store.fetch("a", tmp_path / "copy", sha256),
        ):
            with pytest.raises(BlobsUnavailableError, match=r"s3://treadle/p cannot be reached"):
                call()
    finally:
        own_s3_server.thaw()
    store.fetch("a", tmp_path / "copy", sha256)


def test_wrong_credentials_and_missing_buckets_are_named_at_the_start(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=r"s3://absent/p cannot be used: there is no such bucket"):
        open_blobs("s3://absent/p")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    with pytest.raises(StoreError, match=r"refuse this server: .*; give credentials in") as caught:
        open_blobs(s3_server.url("p"))
    assert "hidden-secret" not in str(caught.value)
    assert "xml" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [("s3://a/p", "AWS_ENDPOINT_URL"), ("az://a/p", "AZURE_STORAGE_ENDPOINT")],
)
@pytest.mark.parametrize(
    "value", ["127.0.0.1:9000", "localhost", "http://", "http://a b", "https://a:99999", "ftp://a"]
)
def test_an_endpoint_that_is_no_url_is_named(
    url: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore would panic."""
    pytest.importorskip("obstore")
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=f"the variable {name} is no URL: write http://HOST:PORT"):
        open_blobs(url)


def test_a_lost_mount_is_not_an_empty_store(tmp_path: Path) -> None:
    store = BlobDirectory(tmp_path / "blobs")
    store.create("a/b", b"1")
    (tmp_path / "blobs" / MARKER).unlink()
    for call in (
        lambda: store.read("a/c"),
        lambda: store.head("a/c"),
        lambda: [*store.list("")],
        lambda: store.create("a/d", b""),
    ):
        with pytest.raises(BlobsUnavailableError, match="is not mounted"):
            call()


def test_a_blob_that_comes_too_slowly_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobDirectory(tmp_path / "blobs")
    store.create("a", b"1")
    monkeypatch.setattr(blob_store, "_SLOW_S", 0.0)
    monkeypatch.setattr(blob_store, "_SLOW_BYTES_PER_S", 1 << 60)
    with pytest.raises(BlobsUnavailableError, match="come too slowly: 1 bytes"):
        store.fetch("a", tmp_path / "file", hashlib.sha256(b"1").hexdigest())
    assert not (tmp_path / "file").exists()


def test_a_folder_leaves_no_empty_folders_and_no_marks(tmp_path: Path) -> None:
    store = BlobDirectory(tmp_path / "blobs")
    store.create("a/b/c", b"1")
    store.delete(["a/b/c"])
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [MARKER]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("s3://bucket", ""),
        ("s3://bucket/a/b", ""),
        ("az://container/p", ""),
        ("gs://bucket/p", ""),
        ("file:///srv/blobs", ""),
        ("bucket/prefix", "must be s3://"),
        ("http://bucket/prefix", "must be s3://"),
        ("s3:///prefix", "names no bucket"),
        ("s3://key:secret@bucket/p", "must hold no user and no password"),
        ("s3://key:sec/ret@bucket/p", "must hold no user and no password"),
        ("s3://key:secret/p", "must hold no user and no password"),
        ("s3://[secret/p", "is no URL"),
        ("file:///srv/a@b", ""),
        ("s3://bucket/p?a=secret", "must end with the path"),
        ("file://host/path", "must name a folder"),
        ("file:///", "must name a folder"),
    ],
)
def test_what_is_wrong_with_a_url(url: str, fault: str) -> None:
    assert url_fault(url).startswith(fault)
    assert bool(url_fault(url)) is bool(fault)
    assert "secret" not in url_fault(url)


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/p", "s3://bucket/p?sig=secret"])
def test_no_key_of_a_url_is_repeated(url: str) -> None:
    with pytest.raises(MalformedSettingError, match=r"^--blobs-url must ") as caught:
        Sharing(ServerConfig(database_url="postgresql://127.0.0.1:1/x", blobs_url=url))
    assert "secret" not in str(caught.value)
