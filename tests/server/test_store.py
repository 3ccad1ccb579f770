from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.model import Model
from treadle.model.errors import LoadError
from treadle.server.errors import StatusError
from treadle.server.storage.data_dir import Store
from treadle.server.storage.files import StoreError
from treadle.server.storage.model_version import HASH_FILE, MODEL_FILE, StoredModel

from .samples import has_recorded_hash, job_row, put_model, tiny_model


@pytest.fixture(scope="module")
def trained() -> Model:
    return tiny_model()


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
            store.delete(name, version or None)
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
    assert store.delete("m", None) == [2, 4, 5]
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
    damaged = store.find("damaged")
    assert store.page(100) == ([damaged, good], "")
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
    assert store.page(10) == ([store.find("m")], "")


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
    with pytest.raises(LoadError):
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
    store.corpora.writer().write(b"half a corpus")
    trained.save(store.new_draft() / MODEL_FILE)
    store.close()
    again = Store(tmp_path)
    assert not list((tmp_path / "tmp").iterdir())
    assert again.find("m") == stored
    again.close()


def test_a_directory_has_one_server(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = (
        "import pathlib; from treadle.server.storage.data_dir import Store; "
        "Store(pathlib.Path({!r}))"
    )
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


def test_a_version_is_found_by_its_alias(store: Store) -> None:
    for _ in range(3):
        put_model(store, "m")
    assert store.set_alias("m", "prod", 1).version == 1
    assert store.set_alias("m", "beta").version == 3
    assert store.find("m@prod") == store.find("m", 1)
    assert store.find("m@latest").version == 3
    store.set_alias("m", "prod", 2)
    assert store.find("m@prod").version == 2
    store.set_alias("m", "alpha", 3)
    assert store.aliases_of("m", 3) == (["alpha", "beta"], 2)
    assert store.aliases_of("m", 1) == ([], 0)
    store.delete_alias("m", "alpha")
    assert store.aliases_of("m", 3) == (["beta"], 1)


@pytest.mark.parametrize(
    ("name", "version", "code", "words"),
    [
        ("m@prod", 0, "NOT_FOUND", "no alias 'prod' of model 'm'"),
        ("n@prod", 0, "NOT_FOUND", "no model 'n'"),
        ("n@latest", 0, "NOT_FOUND", "no model 'n'"),
        ("../m@prod", 0, "NOT_FOUND", "no model"),
        ("../models/m@latest", 0, "NOT_FOUND", "no model"),
        ("m@a@b", 0, "NOT_FOUND", "no alias 'a@b'"),
        ("m@latest", 1, "INVALID_ARGUMENT", "leave out version 1"),
        ("m@", 0, "INVALID_ARGUMENT", "NAME or NAME@ALIAS"),
    ],
)
def test_wrong_aliases_are_said(
    store: Store, name: str, version: int, code: str, words: str
) -> None:
    put_model(store, "m")
    with pytest.raises(StatusError, match=words) as caught:
        store.find(name, version)
    assert code_of(caught) is grpc.StatusCode[code]


@pytest.mark.parametrize("alias", ["latest", "12", "", "a b", "-a", "a" * 101, "../x", "a@b"])
def test_some_names_cannot_be_aliases(store: Store, alias: str) -> None:
    put_model(store, "m")
    with pytest.raises(StatusError) as caught:
        store.set_alias("m", alias)
    assert code_of(caught) is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(StatusError) as caught:
        store.delete_alias("m", alias)
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND
    with pytest.raises(StatusError) as caught:
        store.set_alias("m", "a", 2)
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND


def test_aliases_go_with_their_versions(store: Store) -> None:
    for number in (1, 2, 3):
        put_model(store, "m")
        store.set_alias("m", f"v{number}", number)
    store.delete("m", 2, force=True)
    assert store.database.aliases("m") == {"v1": 1, "v3": 3}
    store.delete("m", None, force=True)
    assert store.database.aliases("m") == {}


def test_a_version_that_an_alias_names_is_not_deleted(store: Store) -> None:
    for _ in range(3):
        put_model(store, "m")
    store.set_alias("m", "prod", 2)
    store.set_alias("m", "old", 1)
    for version, named in (
        (2, r"alias prod \(version 2\)"),
        (None, "aliases old .* and|old .*prod"),
    ):
        with pytest.raises(StatusError, match=named) as caught:
            store.delete("m", version)
        assert code_of(caught) is grpc.StatusCode.FAILED_PRECONDITION
        assert store.versions("m") == [1, 2, 3]
    assert store.delete("m", 3) == [3]
    store.set_alias("m", "prod", 1)
    assert store.delete("m", 2) == [2]
    store.delete_alias("m", "prod")
    store.delete_alias("m", "old")
    assert store.delete("m", None) == [1]


def test_aliasing_and_deleting_at_once_leaves_no_alias_of_nothing(store: Store) -> None:
    for _ in range(20):
        version = put_model(store, "m").version
        with ThreadPoolExecutor(2) as threads:
            alias = threads.submit(store.set_alias, "m", "prod", version)
            deletion = threads.submit(store.delete, "m", version)
            errors = [alias.exception(), deletion.exception()]
        assert [error is None for error in errors].count(True) == 1, errors
        if errors[0] is None:
            assert store.find("m@prod").version == version
            store.delete_alias("m", "prod")
            store.delete("m", version)
        else:
            assert store.database.aliases("m") == {}


def test_an_alias_never_leads_to_a_later_model_of_the_same_number(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_model(store, "m")
    store.set_alias("m", "prod")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store.database, "forget_aliases", full)
        assert store.delete("m", None, force=True) == [
            1
        ]  # a full disk does not keep anybody from making room
    assert "aliases of deleted versions of m are left" in caplog.text
    assert store.database.aliases("m") == {"prod": 1}
    with pytest.raises(StatusError) as caught:
        store.find("m@prod")
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND
    assert put_model(store, "m", seed=1).version == 1
    with pytest.raises(StatusError, match="no alias 'prod'"):
        store.find("m@prod")


def test_a_claim_is_repeated_at_no_harm(store: Store, tmp_path: Path) -> None:
    version = store.next_version("m")
    assert version == 1
    for _ in range(3):  # a new draft of the same content each time
        draft = store.new_draft()
        tiny_model().save(draft / MODEL_FILE)
        assert store.claim("m", draft, version).version == 1
    assert store.claim("m", draft, version).version == 1  # the draft is gone
    assert store.versions("m") == [1]
    assert not list((tmp_path / "tmp").iterdir())
    draft = store.new_draft()
    tiny_model(1).save(draft / MODEL_FILE)
    with pytest.raises(StatusError, match="version 1 of model 'm' is stored already") as caught:
        store.claim("m", draft, version)
    assert code_of(caught) is grpc.StatusCode.ABORTED
    assert store.claim("m", draft).version == 2


class Killed(BaseException):
    """Stands for a kill at a certain call."""


@pytest.mark.parametrize("linked", [True, False])
def test_a_file_is_claimed_once_wherever_a_kill_comes(
    tmp_path: Path, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = ["mkdir", "link", "fsync", "rename", "open"]
    kills = 0
    if not linked:
        monkeypatch.setattr(os, "link", Raising(OSError(errno.EXDEV, "another disk")))
        calls.remove("link")
    for call in calls:
        for after in range(12):
            root = tmp_path / f"{call}{after}"
            store = Store(root)
            file = store.job_dir("j") / "final.safetensors"
            tiny_model().save(file)
            with monkeypatch.context() as patch, suppress(Killed):
                patch.setattr(os, call, Dying(getattr(os, call), after))
                store.claim_file("m", file, 1)
                after = -1
            kills += after >= 0
            store.close()
            store = Store(root)
            assert store.next_version("m") in (1, 2)
            stored = store.claim_file("m", file, 1)
            assert store.versions("m") == [1]
            assert stored.path.read_bytes() == file.read_bytes()
            assert has_recorded_hash(stored)
            store.discard(file.parent)
            assert store.claim_file("m", file, 1) == stored  # the file is gone, the version there
            store.close()
            if after < 0:
                break
    assert kills >= 8


class Raising:
    """A function that fails."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self._error


class Dying:
    """A function that kills at its n-th call, before or after it does its work."""

    def __init__(self, call: Any, after: int) -> None:
        self._call = call
        self._left = after

    def __call__(self, *arguments: Any, **names: Any) -> Any:
        self._left -= 1
        if self._left == -1:
            raise Killed
        done = self._call(*arguments, **names)
        if self._left == 0 and self._call.__name__ in ("rename", "link", "mkdir"):
            raise Killed
        return done


def test_a_file_that_is_nowhere_is_not_claimed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.claim_file("m", tmp_path / "nothing.safetensors", 1)
    (tmp_path / "bad").write_bytes(b"no model")
    with pytest.raises(LoadError):
        store.claim_file("m", tmp_path / "bad", 1)
    assert store.versions("m") == []
    assert not list((tmp_path / "tmp").iterdir())


def test_numbers_that_unfinished_jobs_wrote_down_are_not_given_again(store: Store) -> None:
    put_model(store, "m")
    store.database.add_job(job_row("a", state="running", claim=2))
    assert store.next_version("m") == 3
    assert put_model(store, "m").version == 3
    store.database.update_job("a", state="failed")
    store.database.add_job(job_row("b", state="running", claim=9, model="n"))
    assert store.next_version("m") == 4


def test_a_full_disk_claims_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(store, "m")
    file = store.job_dir("j") / "final.safetensors"
    tiny_model().save(file)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for call in ("link", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, Raising(full))
            with pytest.raises(OSError, match="No space left"):
                store.claim_file("m", file, 2)
        assert store.versions("m") == [1]
        assert not list((tmp_path / "tmp").iterdir())
    assert store.claim_file("m", file, 2).version == 2


def test_what_a_file_became_is_seen(store: Store) -> None:
    stored = put_model(store, "m")
    assert has_recorded_hash(stored)
    data = bytearray(stored.path.read_bytes())
    data[-3] ^= 1  # a weight: the file still reads
    stored.path.write_bytes(data)
    store.describe(store.find("m"))
    assert not has_recorded_hash(stored)
    (stored.path.parent / HASH_FILE).unlink()
    store.describe(replace(stored, created_s=0.0))
    assert has_recorded_hash(stored)  # there was nothing to compare with, until now


def test_jobs_have_directories_of_their_own(tmp_path: Path, store: Store) -> None:
    place = store.job_dir("j-1")
    assert place == tmp_path / "jobs" / "j-1"
    (place / "state.safetensors").write_bytes(b"x")
    assert store.job_dir("j-1") == place
    store.close()
    again = Store(tmp_path)  # a start keeps them
    assert (place / "state.safetensors").exists()
    again.discard(place)
    again.discard(place)
    assert not place.exists()
    for wrong in ("", ".", "..", "../x", "a/b", "a" * 101):
        with pytest.raises(ValueError, match="no job's id"):
            again.job_dir(wrong)
    again.close()


def test_a_database_that_cannot_be_used_is_said_and_unlocks(tmp_path: Path) -> None:
    (tmp_path / "treadle.db").write_bytes(b"no database" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="treadle-server --fsck"):
            Store(tmp_path)
    (tmp_path / "treadle.db").unlink()
    Store(tmp_path).close()
