"""Models, corpora and job files: of one server, and of several over a folder or an object store."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from services.s3 import S3Server

from treadle.model import Model
from treadle.model.network.parameters import Parameters
from treadle.server import sharing
from treadle.server.errors import StatusError
from treadle.server.failures import (
    BlobsUnavailableError,
    DamagedBlobError,
    DatabaseUnavailableError,
    LostLeaseError,
)
from treadle.server.inference.admission import Admission
from treadle.server.inference.model_cache import ModelCache
from treadle.server.resources.memory_budget import MemoryBudget
from treadle.server.resources.upload_pace import UploadLimits
from treadle.server.storage.blobs.directory import MARKER, BlobDirectory
from treadle.server.storage.blobs.opening import open_blobs
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.database import Database
from treadle.server.storage.database.change_feed import ANYTHING
from treadle.server.storage.files import StoreError
from treadle.server.storage.job_files import BEST_FILE, INIT_FILE, LAST_FILE, STATE_FILE
from treadle.server.storage.model_limits import ModelLimits
from treadle.server.storage.model_version import MODEL_FILE, StoredModel
from treadle.server.storage.retention import RetentionPeriods, apply_retention
from treadle.server.storage.shared.job_checkpoint import read_checkpoint
from treadle.server.storage.shared.shared_models import SharedModelStore
from treadle.server.storage.shared.shared_storage import SharedStorage
from treadle.server.storage.upload_files import UploadFiles
from treadle.server.transfer.export_handler import ExportHandler
from treadle.v1 import sequence_pb2 as pb

from .samples import job_row, tiny_model

NONE_EXPIRE = RetentionPeriods(0, 0)


class Setup:
    """Servers that share a database and blobs, or one that has everything of its own."""

    def __init__(self, tmp_path: Path, url: str) -> None:
        self.tmp_path = tmp_path
        self.url = url
        self._opened: list[DataDir] = []

    def open(self, name: str = "a", orphan_s: float = 3600.0, **limits: int) -> DataDir:
        """Another server; with a file of SQLite in the place of a database server."""
        shared = None
        if self.url:
            shared = SharedStorage(
                Database(self.tmp_path / "shared.db"),
                open_blobs(self.url),
                cache_bytes=1 << 20,
                replica=name,
                orphan_s=orphan_s,
            )
        data_dir = DataDir(self.tmp_path / name, 0, ModelLimits(**limits), shared)
        self._opened.append(data_dir)
        return data_dir

    def close(self) -> None:
        for data_dir in self._opened:
            data_dir.close()


@pytest.fixture(params=["own", "directory", "s3"])
def setup(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Setup]:
    """Every kind of storage."""
    url = {"own": "", "directory": (tmp_path / "blobs").as_uri()}.get(request.param)
    if url is None:
        server: S3Server = request.getfixturevalue("s3_server")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = server.url(secrets.token_hex(4))
    setup = Setup(tmp_path, url)
    yield setup
    setup.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Setup]:
    """Several servers over a folder."""
    setup = Setup(tmp_path, (tmp_path / "blobs").as_uri())
    yield setup
    setup.close()


@pytest.fixture(scope="module")
def trained() -> Model:
    return tiny_model()


def put(data_dir: DataDir, name: str, model: Model, version: int = 0) -> StoredModel:
    draft = data_dir.models.new_draft()
    model.save(draft / MODEL_FILE)
    return data_dir.models.claim(name, draft, version)


def other(model: Model) -> Model:
    """The same model with other weights."""
    parameters = Parameters(model.parameters.shape)
    parameters.flat[:] = model.parameters.flat + 1
    return Model(model.network, model.tokenizer, parameters)


def content(data_dir: DataDir, model: StoredModel) -> bytes:
    with data_dir.models.local_file(model) as path:
        return path.read_bytes()


def blobs(setup: Setup) -> list[str]:
    return sorted(blob.key for blob in open_blobs(setup.url).list(""))


def refused(code: grpc.StatusCode, caught: pytest.ExceptionInfo[StatusError]) -> bool:
    return caught.value.code is code


def test_versions_count_up_and_are_found_by_number_and_alias(setup: Setup, trained: Model) -> None:
    store = setup.open().models
    data_dir = setup._opened[0]
    for number in (1, 2, 3):
        assert put(data_dir, "m", trained).version == number
    assert store.versions("m") == [1, 2, 3]
    assert store.find("m").version == 3
    assert store.find("m", 2).version == 2
    assert store.set_alias("m", "live", 2).version == 2
    assert store.find("m@live").version == 2
    assert store.find("m@latest").version == 3
    assert store.aliases.of_version("m", 2) == (["live"], 1)
    for name, version in (("m", 4), ("n", 0), ("n", 1), ("m@none", 0)):
        with pytest.raises(StatusError) as caught:
            store.find(name, version)
        assert refused(grpc.StatusCode.NOT_FOUND, caught)
    trained.save(setup.tmp_path / "file")
    assert content(data_dir, store.find("m")) == (setup.tmp_path / "file").read_bytes()


def test_a_description_holds_what_the_file_says(setup: Setup, trained: Model) -> None:
    data_dir = setup.open()
    stored = put(data_dir, "m", trained)
    for store in (data_dir.models, setup.open("b").models if setup.url else data_dir.models):
        description = store.describe(store.find("m"))
        assert description.sha256 == hashlib.sha256(content(data_dir, stored)).hexdigest()
        assert description.network == trained.network
        assert description.tokenizer == trained.tokenizer.config
        assert description.training == trained.training
        assert description.parameter_count == trained.parameter_count
        assert not description.novelty_index


def test_models_are_listed_by_name(setup: Setup, trained: Model) -> None:
    data_dir = setup.open()
    for name in ("b", "a", "c", "b"):
        put(data_dir, name, trained)
    found = [(model.name, model.version) for model in data_dir.models.newest()]
    assert found == [("a", 1), ("b", 2), ("c", 1)]
    assert [model.name for model in data_dir.models.newest("a", lambda name: name != "b")] == ["c"]


def test_a_claim_may_be_repeated(setup: Setup, trained: Model) -> None:
    data_dir = setup.open()
    trained.save(setup.tmp_path / "final")
    for _ in range(2):
        stored = data_dir.models.claim_file("m", setup.tmp_path / "final", 4, "ann")
        assert stored.version == 4
    (setup.tmp_path / "final").unlink()
    assert data_dir.models.claim_file("m", setup.tmp_path / "final", 4).version == 4
    with pytest.raises(FileNotFoundError):
        data_dir.models.claim_file("m", setup.tmp_path / "final", 5)
    with pytest.raises(StatusError) as caught:
        put(data_dir, "m", other(trained), 4)
    assert refused(grpc.StatusCode.ABORTED, caught)
    assert data_dir.models.versions("m") == [4]
    assert data_dir.models.bytes_of("ann") == stored.size_bytes
    assert put(data_dir, "m", other(trained)).version == 5


def test_the_number_of_a_deleted_version_is_not_given_again(setup: Setup, trained: Model) -> None:
    data_dir = setup.open()
    for _ in range(3):
        put(data_dir, "m", trained)
    data_dir.models.set_alias("m", "live", 2)
    with pytest.raises(StatusError, match="live points to version 2") as caught:
        data_dir.models.delete("m", 2)
    assert refused(grpc.StatusCode.FAILED_PRECONDITION, caught)
    assert data_dir.models.delete("m", 3) == [3]
    assert data_dir.models.find("m").version == 2
    assert not data_dir.models.is_stored("m", 3)
    assert put(data_dir, "m", trained).version == 4
    assert data_dir.models.delete("m", 2, force=True) == [2]
    assert data_dir.models.aliases.of_model("m") == {}
    assert data_dir.models.delete("m", None) == [1, 4]
    with pytest.raises(StatusError) as caught:
        data_dir.models.delete("m", None)
    assert refused(grpc.StatusCode.NOT_FOUND, caught)
    assert [*data_dir.models.newest()] == []


def test_limits_hold(setup: Setup, trained: Model) -> None:
    data_dir = setup.open(models=2, versions=2, aliases=1)
    for name in ("a", "a", "b"):
        data_dir.models.check_new(name)
        put(data_dir, name, trained)
    for name in ("a", "c"):
        with pytest.raises(StatusError) as caught:
            data_dir.models.check_new(name)
        assert refused(grpc.StatusCode.FAILED_PRECONDITION, caught)
    data_dir.models.set_alias("a", "x")
    with pytest.raises(StatusError):
        data_dir.models.set_alias("a", "y")


def test_an_identical_file_is_found(setup: Setup, trained: Model) -> None:
    data_dir = setup.open()
    put(data_dir, "m", other(trained))
    sha256 = data_dir.models.describe(put(data_dir, "m", trained)).sha256
    put(data_dir, "m", other(trained))
    found = data_dir.models.find_identical("m", sha256)
    assert found is not None
    assert found.version == 2
    assert data_dir.models.find_identical("m", "0" * 64) is None


def upload(data_dir: DataDir, data: bytes, *, keep: bool = True) -> str:
    stored = UploadFiles(data_dir.corpora)
    writer = stored.writer()
    writer.write(data)
    sha256, _ = writer.finish()
    stored.store()
    if keep:
        stored.keep()
    stored.close()
    return sha256


def test_a_corpus_is_stored_once_and_read(setup: Setup) -> None:
    data_dir = setup.open()
    data = os.urandom(1000)
    sha256 = upload(data_dir, data)
    assert upload(data_dir, data) == sha256
    assert dict(data_dir.corpora.stored()) == {sha256: 1000}
    assert data_dir.corpora.touch(sha256) == 1000
    assert data_dir.corpora.touch("0" * 64) is None
    assert not data_dir.corpora.has("../treadle.db")
    with os.fdopen(data_dir.corpora.open(sha256), "rb") as file:
        data_dir.corpora.remove(sha256)
        assert file.read() == data
    assert not data_dir.corpora.has(sha256)
    assert [*data_dir.corpora.stored()] == []
    with pytest.raises(FileNotFoundError):
        data_dir.corpora.open(sha256)


def test_an_unused_corpus_expires(setup: Setup) -> None:
    data_dir = setup.open()
    old = upload(data_dir, b"old")
    data_dir.database.touch_corpus(old, 3, time.time() - 1000)
    new = upload(data_dir, b"new")
    report = apply_retention(data_dir, RetentionPeriods(0, 500))
    assert report.corpora == (old,)
    assert dict(data_dir.corpora.stored()) == {new: 3}


@pytest.mark.parametrize("is_late", [False, True])
def test_no_corpus_expires_that_another_server_begins_to_use(
    shared: Setup, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    first = shared.open("a")
    second = shared.open("b")
    sha256 = upload(first, b"text")
    first.database.touch_corpus(sha256, 4, 1.0)
    touched: list[int | None] = []
    if is_late:  # the other server has found it, and is about to note that
        head = second.corpora._blobs.head  # type: ignore[attr-defined]

        def found(key: str) -> object:
            blob = head(key)
            first.corpora.expire(sha256, 2.0)
            return blob

        monkeypatch.setattr(second.corpora._blobs, "head", found)  # type: ignore[attr-defined]
        touched.append(second.corpora.touch(sha256))
    else:  # this one has seen that it was not used for long
        corpora = first.database.corpora
        forget = first.database.forget_corpus

        def forgotten(*arguments: Any) -> Any:
            touched.append(second.corpora.touch(sha256))
            return forget(*arguments)

        assert [used_s for _, _, used_s in corpora()] == [1.0]
        monkeypatch.setattr(first.database, "forget_corpus", forgotten)
        first.corpora.expire(sha256, 2.0)
    assert touched == [4]
    assert second.corpora.has(sha256)


def test_another_server_sees_what_one_has_stored(shared: Setup, trained: Model) -> None:
    first = shared.open("a")
    second = shared.open("b")
    with pytest.raises(StatusError):
        second.models.find("m")
    put(first, "m", trained)
    assert content(second, second.models.find("m")) == content(first, first.models.find("m"))
    first.models.set_alias("m", "live")
    assert second.models.find("m@live").version == 1
    put(second, "m", other(trained))
    assert first.models.find("m", 2).version == 2
    first.models.delete("m", 1, force=True)
    _within_a_second(lambda: second.models.versions("m") == [2])
    _within_a_second(lambda: second.models.aliases.of_version("m", 1) == ([], 0))


def _within_a_second(is_true: object) -> None:
    assert callable(is_true)
    end = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_servers_that_store_at_once_get_different_versions(shared: Setup, trained: Model) -> None:
    servers = [shared.open(name) for name in "ab"]
    models = [trained, other(trained), other(other(trained)), other(other(other(trained)))]
    got: list[int] = []

    def store(server: DataDir, model: Model) -> None:
        got.append(put(server, "m", model).version)

    threads = [
        threading.Thread(target=store, args=(servers[number % 2], model))
        for number, model in enumerate(models)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(got)) == 4
    assert sorted(got) == servers[0].models.versions("m")
    saved = set()
    for model in models:
        model.save(shared.tmp_path / "file")
        saved.add((shared.tmp_path / "file").read_bytes())
    assert {content(servers[1], servers[1].models.find("m", number)) for number in got} == saved


def test_without_exclusive_creation_the_database_decides(
    shared: Setup, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with an object store that ignores If-None-Match."""
    monkeypatch.setattr(BlobDirectory, "create", lambda self, key, data: True)
    first = shared.open("a")
    second = shared.open("b")
    monkeypatch.setattr(second.database, "version", lambda model, version: None)
    put(first, "m", trained, 7)
    with pytest.raises(StatusError) as caught:
        put(second, "m", other(trained), 7)
    assert refused(grpc.StatusCode.ABORTED, caught)
    trained.save(shared.tmp_path / "file")
    assert content(second, second.models.find("m", 7)) == (shared.tmp_path / "file").read_bytes()


def test_a_lost_lease_stores_no_version(shared: Setup, trained: Model) -> None:
    data_dir = shared.open()
    data_dir.database.add_job(job_row("j", model="m"))
    row = data_dir.database.acquire_job("a", "j", 0.0)
    assert row is not None
    time.sleep(0.01)
    assert data_dir.database.acquire_job("b", "j", 60.0) is not None
    trained.save(shared.tmp_path / "final")
    with pytest.raises(LostLeaseError):
        data_dir.models.claim_file("m", shared.tmp_path / "final", 1, job="j", fence=row.fence)
    assert data_dir.models.versions("m") == []


def test_models_that_are_known_outlast_the_database(
    shared: Setup,
    trained: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data_dir = shared.open()
    put(data_dir, "m", trained)
    data_dir.models.set_alias("m", "live")
    data_dir.models.find("m@live")

    def fail(*arguments: object) -> None:
        raise DatabaseUnavailableError("no")

    monkeypatch.setattr(data_dir.database, "versions", fail)
    assert isinstance(data_dir.models, SharedModelStore)
    for _ in range(2):
        data_dir.models.memory.forget()
        assert data_dir.models.find("m").version == 1
    assert caplog.text.count("the database cannot be reached") == 1
    assert data_dir.models.find("m@live", 0).version == 1
    assert content(data_dir, data_dir.models.find("m", 1))
    with pytest.raises(DatabaseUnavailableError):
        data_dir.models.find("n")


def test_what_is_in_the_cache_outlasts_the_store(shared: Setup, trained: Model) -> None:
    data_dir = shared.open()
    put(data_dir, "m", trained)
    second = shared.open("b")
    (shared.tmp_path / "blobs" / MARKER).unlink()
    assert content(data_dir, data_dir.models.find("m"))
    shutil.rmtree(shared.tmp_path / "blobs")
    with pytest.raises(BlobsUnavailableError):
        content(second, second.models.find("m"))


def test_a_missing_or_damaged_file_is_data_loss(shared: Setup, trained: Model) -> None:
    data_dir = shared.open()
    put(data_dir, "m", trained)
    second = shared.open("b")
    [key] = [key for key in blobs(shared) if key.endswith(".safetensors")]
    path = shared.tmp_path / "blobs" / key
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedBlobError):
        content(second, second.models.find("m"))
    path.unlink()
    with pytest.raises(DamagedBlobError):
        content(second, second.models.find("m"))


def test_the_files_of_a_job_move_to_another_server(setup: Setup, trained: Model) -> None:
    if not setup.url:
        pytest.skip("the files of one server stay where they are")
    first = setup.open("a")
    second = setup.open("b")
    corpus = upload(first, b"text")
    base = put(first, "base", trained)
    checkpoint = first.jobs.begin("j", base, first.space)
    row = job_row("j", checkpoint=checkpoint, files=f'[{{"sha256": "{corpus}", "size": 4}}]')
    first.database.add_job(row)
    held = first.database.acquire_job("a", "j", 60.0)
    assert held is not None
    first.jobs.fetch(held)
    directory = first.jobs.directory("j")
    assert (directory / INIT_FILE).read_bytes() == content(first, base)
    assert first.corpora.path(corpus).read_bytes() == b"text"
    for number in (1, 2):
        for name in (STATE_FILE, LAST_FILE):
            (directory / "new").write_bytes(b"%s %d" % (name.encode(), number))
            os.replace(directory / "new", directory / name)
        if number == 1:
            (directory / BEST_FILE).write_bytes(b"best")
        after = first.jobs.publish("j", held.fence, checkpoint)
        first.database.update_job("j", fence=held.fence, checkpoint=after)
        first.jobs.forget(checkpoint, after)
        checkpoint = after
    named = sorted(blob.key for blob in read_checkpoint(checkpoint).values())
    assert [key for key in blobs(setup) if key.startswith("jobs/")] == named
    assert len(named) == 4
    assert [key for key in blobs(setup) if key.startswith("jobs/j/0-")]  # not stored once more
    weights = second.jobs.weights("j", BEST_FILE)
    with second.jobs.local_file(weights) as path:
        assert path.read_bytes() == b"best"
    assert first.jobs.weights("j", BEST_FILE).path == directory / BEST_FILE
    first.jobs.leave("j")
    assert not (first.jobs.root / "j").exists()

    first.database.release("j", held.fence)
    taken = second.database.acquire_job("b", "j", 60.0)
    assert taken is not None
    (second.jobs.directory("j") / STATE_FILE).write_bytes(b"of an earlier lease")
    (second.jobs.directory("j") / f"{STATE_FILE}.previous").write_bytes(b"older")
    second.jobs.fetch(taken)
    found = {path.name: path.read_bytes() for path in second.jobs.directory("j").iterdir()}
    assert found == {
        STATE_FILE: f"{STATE_FILE} 2".encode(),
        LAST_FILE: f"{LAST_FILE} 2".encode(),
        BEST_FILE: b"best",
        INIT_FILE: content(first, base),
    }
    # Nothing has changed, so nothing is stored.
    assert second.jobs.publish("j", taken.fence, checkpoint) == checkpoint
    assert second.jobs.own_bytes(taken) == sum(map(len, found.values()))
    second.database.delete_job("j")
    second.jobs.remove("j")
    assert not [key for key in blobs(setup) if key.startswith("jobs/")]


def test_weights_are_looked_up_again_that_a_job_has_just_replaced(
    shared: Setup, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shared.open("a")
    second = shared.open("b")
    first.database.add_job(job_row("j"))
    held = first.database.acquire_job("a", "j", 60.0)
    assert held is not None
    fence = held.fence
    first.jobs.fetch(held)
    directory = first.jobs.directory("j")
    checkpoint = ""

    def publish(model: Model) -> str:
        model.save(directory / "new")
        os.replace(directory / "new", directory / LAST_FILE)
        after = first.jobs.publish("j", fence, checkpoint)
        first.database.update_job("j", fence=fence, checkpoint=after)
        first.jobs.forget(checkpoint, after)
        return after

    checkpoint = publish(trained)
    stale = second.jobs.weights("j", LAST_FILE)
    checkpoint = publish(other(trained))
    newer = Model.load(directory / LAST_FILE)
    current = second.jobs.weights
    found = [stale]  # as it was before the job published again
    monkeypatch.setattr(
        second.jobs, "weights", lambda job, name: found.pop() if found else current(job, name)
    )

    async def generate() -> None:
        models = ModelCache(second, 1 << 30, MemoryBudget(1 << 30))
        model = (await models.get_job("j", best=False)).model
        assert model.parameters.flat.tobytes() == newer.parameters.flat.tobytes()
        found.extend([stale] * 9)
        with pytest.raises(StatusError) as caught:
            await models.get_job("j", best=False)
        assert "was just deleted" in caught.value.message

    asyncio.run(generate())


def test_no_alias_leads_to_a_version_that_another_server_deletes(
    shared: Setup, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shared.open("a")
    second = shared.open("b")
    put(first, "m", trained)
    put(first, "m", other(trained))
    monkeypatch.setattr(  # the last moment before the alias is set
        second.models.aliases, "check_new", lambda *_: first.models.delete("m", 1)
    )
    with pytest.raises(StatusError) as caught:
        second.models.set_alias("m", "live", 1)
    assert refused(grpc.StatusCode.NOT_FOUND, caught)
    assert first.database.aliases("m") == {}
    first.models.set_alias("m", "live", 2)
    first.database.delete_versions("m", [2])
    assert first.database.aliases("m") == {}


def test_a_version_stays_that_another_server_has_just_given_an_alias(
    shared: Setup, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shared.open("a")
    second = shared.open("b")
    put(first, "m", trained)
    check = first.models._check_unnamed

    def late(name: str, gone: list[int]) -> None:
        check(name, gone)
        second.models.set_alias("m", "live", 1)

    monkeypatch.setattr(first.models, "_check_unnamed", late)
    with pytest.raises(StatusError, match="alias live points to version 1"):
        first.models.delete("m", 1)
    assert second.models.find("m@live").version == 1
    first.models.delete("m", 1, force=True)
    assert first.database.aliases("m") == {}


def test_a_damaged_corpus_is_repaired_by_another_upload(shared: Setup) -> None:
    first = shared.open("a")
    second = shared.open("b")
    sha256 = upload(first, b"text")
    (shared.tmp_path / "blobs" / "corpora" / sha256).write_bytes(b"tent")
    with pytest.raises(DamagedBlobError):
        second.corpora.open(sha256)
    assert second.corpora.touch(sha256) is None  # so that a client sends it
    assert upload(second, b"text") == sha256
    assert second.corpora.touch(sha256) == 4
    with os.fdopen(shared.open("c").corpora.open(sha256), "rb") as file:
        assert file.read() == b"text"


def test_deleted_models_are_looked_for_one_at_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = {"a": [1, 2], "b": [1], "c": [1]}
    asked: list[str] = []
    dropped: list[tuple[str, list[int]]] = []
    entered = threading.Semaphore(0)
    free = threading.Event()
    error: list[Exception] = [DatabaseUnavailableError("away")]

    def versions(name: str) -> list[int]:
        asked.append(name)
        entered.release()
        assert free.wait(60)
        if error:
            raise error[0]
        return [1]

    def forget(name: str, versions: list[int]) -> None:
        if versions:
            dropped.append((name, versions))

    store = SimpleNamespace(versions=versions, memory=SimpleNamespace(forget=lambda _: None))
    models = SimpleNamespace(loaded=lambda: loaded, forget=forget)
    keeper = SimpleNamespace(look=lambda: None)
    jobs = SimpleNamespace(replica=SimpleNamespace(wake=lambda *_: None, keeper=keeper))
    notes = sharing._Notes(cast("Any", store), cast("Any", models), cast("Any", jobs))

    async def run() -> None:
        for number in range(4):
            free.clear()
            for _ in range(3):
                notes.take(ANYTHING)
            assert await asyncio.to_thread(entered.acquire, timeout=30)
            await asyncio.sleep(0.05)
            assert len(asked) == number + 1
            free.set()
            async with asyncio.timeout(30):
                while (task := notes._dropping) is not None and not task.done():
                    await asyncio.sleep(0.01)
            if number == 2:
                error.clear()

    asyncio.run(run())
    assert dropped == [("a", [2])]
    assert sorted(asked[3:]) == ["a", "b", "c"]
    assert [record.message for record in caplog.records] == [
        "deleted models stay in memory for now: away"
    ]


def test_models_of_the_cache_are_loaded_while_the_store_hangs(
    shared: Setup, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shared.open("a")
    put(first, "here", trained)
    elsewhere = trained
    for number in range(3):
        elsewhere = other(elsewhere)
        put(first, f"elsewhere-{number}", elsewhere)
    second = shared.open("b")
    expected = content(second, second.models.find("here"))
    free = threading.Event()
    hanging = threading.Semaphore(0)
    stream = BlobDirectory.stream

    def hang(self: BlobDirectory, key: str) -> Iterator[bytes | memoryview]:
        hanging.release()
        assert free.wait(60)
        return stream(self, key)

    monkeypatch.setattr(BlobDirectory, "stream", hang)
    models = ModelCache(second, 1 << 30, MemoryBudget(1 << 30))
    exports = ExportHandler(
        second.models,
        lambda stored: pb.Model(size_bytes=stored.size_bytes),
        UploadLimits(1, idle_s=60, min_rate=1),
        Admission(9, "exports"),
        1 << 20,
    )

    async def export(name: str) -> bytes:
        replies = [reply async for reply in exports.send(pb.ExportModelRequest(model=name))]
        return b"".join(reply.chunk for reply in replies)

    async def run() -> None:
        names = [f"elsewhere-{number}" for number in range(3)]
        loads = [asyncio.create_task(models.get(name)) for name in names]
        exported = []
        try:
            for _ in loads:
                assert await asyncio.to_thread(hanging.acquire, timeout=30)
            exported = [asyncio.create_task(export(name)) for name in names]
            await asyncio.sleep(0.1)  # each waits for its file
            async with asyncio.timeout(20):
                assert (await models.get("here")).version == 1
                assert await export("here") == expected
        finally:
            free.set()
            loaded = await asyncio.gather(*loads)
            files = await asyncio.gather(*exported)
        assert [one.version for one in loaded] == [1, 1, 1]
        assert all(files)

    asyncio.run(run())


def test_a_job_without_weights_has_none_anywhere(shared: Setup) -> None:
    data_dir = shared.open()
    data_dir.database.add_job(job_row("j"))
    for job in ("j", "unknown"):
        with pytest.raises(FileNotFoundError):
            data_dir.jobs.weights(job, LAST_FILE)


def test_publishing_waits_for_the_store_and_loses_nothing(shared: Setup) -> None:
    data_dir = shared.open()
    data_dir.database.add_job(job_row("j"))
    row = data_dir.database.acquire_job("a", "j", 60.0)
    assert row is not None
    data_dir.jobs.fetch(row)
    (data_dir.jobs.directory("j") / STATE_FILE).write_bytes(b"1")
    marker = shared.tmp_path / "blobs" / MARKER
    marker.unlink()
    with pytest.raises(BlobsUnavailableError):
        data_dir.jobs.publish("j", row.fence, "")
    marker.touch()
    assert [*read_checkpoint(data_dir.jobs.publish("j", row.fence, ""))] == [STATE_FILE]
    assert [*(data_dir.jobs.root.parent / "tmp").iterdir()] == []


def test_a_job_that_has_left_publishes_nothing(shared: Setup) -> None:
    """Its row would name no checkpoint any more."""
    data_dir = shared.open()
    data_dir.database.add_job(job_row("j"))
    row = data_dir.database.acquire_job("a", "j", 60.0)
    assert row is not None
    data_dir.jobs.fetch(row)
    (data_dir.jobs.directory("j") / STATE_FILE).write_bytes(b"1")
    before = data_dir.jobs.publish("j", row.fence, "")
    data_dir.jobs.leave("j")
    with pytest.raises(FileNotFoundError):
        data_dir.jobs.publish("j", row.fence, before)
    assert [*data_dir.jobs.root.iterdir()] == []


def test_the_sweep_deletes_what_belongs_to_nothing_and_nothing_else(
    shared: Setup, trained: Model
) -> None:
    data_dir = shared.open(orphan_s=-1000.0)  # everything is old
    store = open_blobs(shared.url)
    put(data_dir, "m", trained)
    put(data_dir, "m", trained)
    put(data_dir, "gone", trained)
    upload(data_dir, b"corpus")
    data_dir.database.add_job(job_row("j"))
    row = data_dir.database.acquire_job("a", "j", 60.0)
    assert row is not None
    data_dir.jobs.fetch(row)
    (data_dir.jobs.directory("j") / STATE_FILE).write_bytes(b"1")
    after = data_dir.jobs.publish("j", row.fence, "")
    data_dir.database.update_job("j", fence=row.fence, checkpoint=after)
    kept = blobs(shared)
    # What servers leave that are killed: before a row, after a deleted row, and next to a row.
    data_dir.database.delete_versions("gone", [1])
    orphans = [key for key in kept if key.startswith("models/gone/")]
    left = ["models/m/1/other.safetensors", "models/m/3/model.sha256", "models/n/1/x.safetensors"]
    left += ["corpora/" + "1" * 64, "jobs/j/1-abc/state.safetensors", "jobs/none/1-abc/x"]
    left += ["probes/1"]
    for key in left:
        store.create(key, b"")
    report = apply_retention(data_dir, NONE_EXPIRE)
    assert report.blobs == len(left) + len(orphans)
    assert blobs(shared) == [key for key in kept if key not in orphans]
    assert apply_retention(data_dir, NONE_EXPIRE).blobs == 0
    # The numbers of what was swept are taken, since somebody may have claimed them.
    assert put(data_dir, "m", trained).version == 4
    assert put(data_dir, "n", trained).version == 2


def test_the_sweep_leaves_what_is_young(shared: Setup) -> None:
    data_dir = shared.open()
    store = open_blobs(shared.url)
    for key in ("models/n/1/x.safetensors", "corpora/" + "1" * 64, "jobs/none/1-a/x", "probes/1"):
        store.create(key, b"")
    before = blobs(shared)
    assert apply_retention(data_dir, NONE_EXPIRE).blobs == 0
    assert blobs(shared) == before


def test_one_server_at_a_time_applies_the_retention(shared: Setup) -> None:
    first = shared.open("a")
    second = shared.open("b")
    first.database.add_job(job_row("old", state="succeeded", ended_s=time.time() - 1000))
    assert first.database.take_duty("retention", "a", 60.0)
    assert apply_retention(second, RetentionPeriods(500, 0)).jobs == ()
    assert apply_retention(first, RetentionPeriods(500, 0)).jobs == ("old",)


def test_a_workspace_is_emptied_and_no_data_of_a_single_server(tmp_path: Path) -> None:
    DataDir(tmp_path / "a").close()
    setup = Setup(tmp_path, (tmp_path / "blobs").as_uri())
    with pytest.raises(StoreError, match="holds the data of a server without --database-url"):
        setup.open("a")
    setup.open("b").close()
    (tmp_path / "b" / "jobs" / "j").mkdir()
    (tmp_path / "b" / "tmp" / "x").write_bytes(b"")
    opened = setup.open("b")
    assert [*opened.jobs.root.iterdir()] == []
    assert [*(tmp_path / "b" / "tmp").iterdir()] == []
    assert not (tmp_path / "b" / "models").exists()
    opened.close()


def test_a_workspace_is_no_data_directory_of_a_single_server(tmp_path: Path) -> None:
    """Where --database-url was forgotten, a server without models would begin there."""
    Setup(tmp_path, (tmp_path / "blobs").as_uri()).open("a").close()
    with pytest.raises(StoreError, match="a is the workspace of a server with --database-url: "):
        DataDir(tmp_path / "a")
    (tmp_path / "b" / "cache").mkdir(parents=True)
    (tmp_path / "b" / "treadle.db").touch()
    DataDir(tmp_path / "b").close()


def test_other_blobs_than_those_of_the_database_are_refused(tmp_path: Path, trained: Model) -> None:
    right = Setup(tmp_path, (tmp_path / "blobs").as_uri())
    wrong = Setup(tmp_path, (tmp_path / "blob").as_uri())
    wrong.open("a").close()  # while there are no models nothing is lost
    opened = right.open("b")
    put(opened, "m", trained)
    with pytest.raises(StoreError, match="has none of the models that the database has"):
        wrong.open("a")
    right.open("c").close()
    right.close()


def test_a_removed_corpus_is_stored_again_for_the_job_that_brought_it(shared: Setup) -> None:
    first = shared.open("a")
    second = shared.open("b")
    stored = UploadFiles(first.corpora)
    writer = stored.writer()
    writer.write(b"text")
    sha256, _ = writer.finish()
    stored.store()
    second.corpora.remove(sha256)  # such as a file with the same bytes that its owner deletes
    stored.keep()
    stored.close()
    assert second.corpora.has(sha256)
    assert second.corpora.touch(sha256) == 4
