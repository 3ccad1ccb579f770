from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.model import Model, train
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    ReportConfig,
    TrainConfig,
)
from treadle.model.errors import CheckpointError
from treadle.server.errors import StatusError
from treadle.server.store import HASH_FILE, MODEL_FILE, Store, StoredModel, StoreError


@pytest.fixture(scope="module")
def trained() -> Model:
    config = TrainConfig(
        network=NetworkConfig(hidden_size=4, embedding_size=2),
        data=DataConfig(batch_size=1, window=4),
        report=ReportConfig(sample_tokens=0),
        limits=LimitsConfig(max_steps=1),
    )
    return train(b"abcabcabcabc", config)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


def put(store: Store, name: str, model: Model) -> StoredModel:
    draft = store.new_draft()
    model.save(draft / MODEL_FILE)
    return store.claim(name, draft)


def code_of(caught: pytest.ExceptionInfo[StatusError]) -> grpc.StatusCode:
    return caught.value.code


def test_versions_count_up_and_the_newest_is_found(
    tmp_path: Path, store: Store, trained: Model
) -> None:
    for number in (1, 2, 3):
        assert put(store, "m", trained).version == number
    assert store.versions("m") == [1, 2, 3]
    assert store.find("m").version == 3
    assert store.find("m", 2).path == tmp_path / "models" / "m" / "2" / MODEL_FILE
    assert not list((tmp_path / "tmp").iterdir())


def test_a_description_holds_what_the_file_says(store: Store, trained: Model) -> None:
    stored = put(store, "m", trained)
    description = store.describe(stored)
    data = stored.path.read_bytes()
    assert description.sha256 == hashlib.sha256(data).hexdigest()
    assert stored.size_bytes == len(data)
    assert description.vocabulary_size == 3
    assert description.network == trained.network
    assert description.parameter_count == trained.parameter_count
    assert store.describe(stored) is description


def test_the_hash_file_is_what_sha256sum_reads(store: Store, trained: Model) -> None:
    stored = put(store, "m", trained)
    command = ["sha256sum", "--check", "--strict", HASH_FILE]
    subprocess.run(command, cwd=stored.path.parent, check=True, capture_output=True)


def test_what_is_not_there_is_not_found(store: Store, trained: Model) -> None:
    put(store, "m", trained)
    for name, version in (("n", 0), ("n", 1), ("m", 2)):
        with pytest.raises(StatusError) as caught:
            store.find(name, version)
        assert code_of(caught) is grpc.StatusCode.NOT_FOUND
        with pytest.raises(StatusError) as caught:
            store.delete(name, version)
        assert code_of(caught) is grpc.StatusCode.NOT_FOUND


def test_a_deleted_versions_number_does_not_come_again(store: Store, trained: Model) -> None:
    for _ in range(3):
        put(store, "m", trained)
    assert store.delete("m", 3) == [3]
    assert store.versions("m") == [1, 2]
    assert store.find("m").version == 2
    assert put(store, "m", trained).version == 4
    assert store.delete("m", 1) == [1]
    assert put(store, "m", trained).version == 5
    assert store.delete("m") == [2, 4, 5]
    assert store.versions("m") == []
    assert put(store, "m", trained).version == 1


def test_deleting_one_by_one_leaves_nothing(tmp_path: Path, store: Store, trained: Model) -> None:
    for _ in range(3):
        put(store, "m", trained)
    for version in (3, 1, 2):
        store.delete("m", version)
    assert not list((tmp_path / "models").iterdir())
    assert not list((tmp_path / "tmp").iterdir())


def test_pages_go_by_name(store: Store, trained: Model) -> None:
    names = ["a", "b", "b.c", "c-9", "d"]
    for name in reversed(names):
        put(store, name, trained)
    put(store, "b", trained)
    seen, after = [], ""
    for _ in range(3):
        page, after = store.page(2, after)
        seen += [(model.name, model.version) for model in page]
    assert after == ""
    assert seen == [("a", 1), ("b", 2), ("b.c", 1), ("c-9", 1), ("d", 1)]
    assert store.page(5) == (store.page(100)[0], "")


def test_junk_is_left_alone(tmp_path: Path, store: Store, trained: Model) -> None:
    good = put(store, "good", trained)
    models = tmp_path / "models"
    (models / "file").write_text("no directory")
    (models / "bad name").mkdir()
    (models / "empty").mkdir()
    (models / "damaged" / "1").mkdir(parents=True)
    (models / "damaged" / "1" / MODEL_FILE).write_bytes(b"\xff" * 64)
    (models / "foreign" / "1").mkdir(parents=True)
    for name in ("01", "0", "-3", "x", "9" * 30, "٣"):
        (models / "good" / name).mkdir()
    (models / "good" / "7").write_text("a file in place of a directory")
    (models / "good" / "8" / MODEL_FILE).mkdir(parents=True)
    (models / "loop").symlink_to(models / "loop")
    assert store.page(100) == ([good], "")
    assert store.find("good") == good
    assert put(store, "good", trained).version == 9
    with pytest.raises(StatusError) as caught:
        store.describe(store.find("damaged"))
    assert code_of(caught) is grpc.StatusCode.DATA_LOSS
    store.check_free("empty")
    with pytest.raises(StatusError) as caught:
        store.check_free("file")
    assert code_of(caught) is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_cut_off_file_is_data_loss(store: Store, trained: Model, cut: int) -> None:
    stored = put(store, "m", trained)
    stored.path.write_bytes(stored.path.read_bytes()[:cut])
    with pytest.raises(StatusError) as caught:
        store.describe(store.find("m"))
    assert code_of(caught) is grpc.StatusCode.DATA_LOSS
    assert store.page(10) == ([], "")


def test_a_model_put_there_by_hand_is_found_and_hashed(
    tmp_path: Path, store: Store, trained: Model
) -> None:
    home = tmp_path / "models" / "mine" / "1"
    home.mkdir(parents=True)
    trained.save(home / MODEL_FILE)
    description = store.describe(store.find("mine"))
    assert (home / HASH_FILE).read_text().split()[0] == description.sha256


def test_a_damaged_draft_is_not_claimed(tmp_path: Path, store: Store) -> None:
    draft = store.new_draft()
    (draft / MODEL_FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        store.claim("m", draft)
    assert store.versions("m") == []
    assert not list((tmp_path / "models").iterdir())


def test_claims_at_once_get_numbers_of_their_own(store: Store, trained: Model) -> None:
    threads = [threading.Thread(target=put, args=(store, "m", trained)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.versions("m") == list(range(1, 9))


def test_what_a_crash_left_is_removed_and_models_stay(tmp_path: Path, trained: Model) -> None:
    store = Store(tmp_path)
    stored = put(store, "m", trained)
    store.new_file().write_bytes(b"half a corpus")
    trained.save(store.new_draft() / MODEL_FILE)
    store.close()
    again = Store(tmp_path)
    assert not list((tmp_path / "tmp").iterdir())
    assert again.find("m") == stored
    again.close()


def test_a_directory_has_one_server(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = "import sys, pathlib; from treadle.server.store import Store; Store(pathlib.Path({!r}))"
    command = [sys.executable, "-c", code.format(str(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "in use by another server" in done.stderr
    store.close()
    Store(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "file" / "data")


def test_copies_of_a_data_directory_work(tmp_path: Path, trained: Model) -> None:
    store = Store(tmp_path / "a")
    put(store, "m", trained)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = Store(tmp_path / "b")
    assert [model.name for model in copy.page(10)[0]] == ["m"]
    store.close()
    copy.close()


def test_a_new_data_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    for name, mode in (("new", 0o700), ("shared", 0o755)):
        Store(tmp_path / name).close()
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_model_is_there_before_it_is_hashed(
    store: Store, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    hashed = hashlib.file_digest

    def watched(*arguments: Any) -> Any:
        found.extend(store.versions("m"))
        return hashed(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    put(store, "m", trained)
    assert found == [1]
