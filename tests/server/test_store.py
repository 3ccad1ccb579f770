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
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.files import StoreError
from treadle.server.storage.model_version import HASH_FILE, MODEL_FILE, StoredModel

from .samples import has_recorded_hash, job_row, put_model, tiny_model


@pytest.fixture(scope="module")
def trained() -> Model:
    return tiny_model()


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


def put(data_dir: DataDir, name: str, model: Model) -> StoredModel:
    draft = data_dir.models.new_draft()
    model.save(draft / MODEL_FILE)
    return data_dir.models.claim(name, draft)


def code_of(caught: pytest.ExceptionInfo[StatusError]) -> grpc.StatusCode:
    return caught.value.code


def test_versions_count_up_and_the_newest_is_found(
    tmp_path: Path, data_dir: DataDir, trained: Model
) -> None:
    for number in (1, 2, 3):
        assert put(data_dir, "m", trained).version == number
    assert data_dir.models.versions("m") == [1, 2, 3]
    assert data_dir.models.find("m").version == 3
    assert data_dir.models.find("m", 2).path == tmp_path / "models" / "m" / "2" / MODEL_FILE
    assert not list((tmp_path / "tmp").iterdir())


def test_a_description_holds_what_the_file_says(data_dir: DataDir, trained: Model) -> None:
    stored = put(data_dir, "m", trained)
    description = data_dir.models.describe(stored)
    data = stored.path.read_bytes()
    assert description.sha256 == hashlib.sha256(data).hexdigest()
    assert stored.size_bytes == len(data)
    assert description.vocabulary_size == 3
    assert description.network == trained.network
    assert description.parameter_count == trained.parameter_count
    assert data_dir.models.describe(stored) is description


def test_the_hash_file_is_what_sha256sum_reads(data_dir: DataDir, trained: Model) -> None:
    stored = put(data_dir, "m", trained)
    command = ["sha256sum", "--check", "--strict", HASH_FILE]
    subprocess.run(command, cwd=stored.path.parent, check=True, capture_output=True)


def test_what_is_not_there_is_not_found(data_dir: DataDir, trained: Model) -> None:
    put(data_dir, "m", trained)
    for name, version in (("n", 0), ("n", 1), ("m", 2)):
        with pytest.raises(StatusError) as caught:
            data_dir.models.find(name, version)
        assert code_of(caught) is grpc.StatusCode.NOT_FOUND
        with pytest.raises(StatusError) as caught:
            data_dir.models.delete(name, version or None)
        assert code_of(caught) is grpc.StatusCode.NOT_FOUND


def test_a_deleted_versions_number_does_not_come_again(data_dir: DataDir, trained: Model) -> None:
    for _ in range(3):
        put(data_dir, "m", trained)
    assert data_dir.models.delete("m", 3) == [3]
    assert data_dir.models.versions("m") == [1, 2]
    assert data_dir.models.find("m").version == 2
    assert put(data_dir, "m", trained).version == 4
    assert data_dir.models.delete("m", 1) == [1]
    assert put(data_dir, "m", trained).version == 5
    assert data_dir.models.delete("m", None) == [2, 4, 5]
    assert data_dir.models.versions("m") == []
    assert put(data_dir, "m", trained).version == 1


def test_deleting_one_by_one_leaves_nothing(
    tmp_path: Path, data_dir: DataDir, trained: Model
) -> None:
    for _ in range(3):
        put(data_dir, "m", trained)
    for version in (3, 1, 2):
        data_dir.models.delete("m", version)
    assert not list((tmp_path / "models").iterdir())
    assert not list((tmp_path / "tmp").iterdir())


def test_models_come_by_name(data_dir: DataDir, trained: Model) -> None:
    names = ["a", "b", "b.c", "c-9", "d"]
    for name in reversed(names):
        put(data_dir, name, trained)
    put(data_dir, "b", trained)
    models = [*data_dir.models.newest()]
    seen = [(model.name, model.version) for model in models]
    assert seen == [("a", 1), ("b", 2), ("b.c", 1), ("c-9", 1), ("d", 1)]
    for place, name in enumerate(names):
        assert [*data_dir.models.newest(name)] == models[place + 1 :]


def test_junk_is_left_alone(tmp_path: Path, data_dir: DataDir, trained: Model) -> None:
    good = put(data_dir, "good", trained)
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
    damaged = data_dir.models.find("damaged")
    assert [*data_dir.models.newest()] == [damaged, good]
    assert data_dir.models.find("good") == good
    assert put(data_dir, "good", trained).version == 9
    with pytest.raises(StatusError) as caught:
        data_dir.models.describe(data_dir.models.find("damaged"))
    assert code_of(caught) is grpc.StatusCode.DATA_LOSS
    data_dir.models.check_free("empty")
    with pytest.raises(StatusError) as caught:
        data_dir.models.check_free("file")
    assert code_of(caught) is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_cut_off_file_is_data_loss(data_dir: DataDir, trained: Model, cut: int) -> None:
    stored = put(data_dir, "m", trained)
    stored.path.write_bytes(stored.path.read_bytes()[:cut])
    with pytest.raises(StatusError) as caught:
        data_dir.models.describe(data_dir.models.find("m"))
    assert code_of(caught) is grpc.StatusCode.DATA_LOSS
    assert [*data_dir.models.newest()] == [data_dir.models.find("m")]


def test_a_model_put_there_by_hand_is_found_and_hashed(
    tmp_path: Path, data_dir: DataDir, trained: Model
) -> None:
    home = tmp_path / "models" / "mine" / "1"
    home.mkdir(parents=True)
    trained.save(home / MODEL_FILE)
    description = data_dir.models.describe(data_dir.models.find("mine"))
    assert (home / HASH_FILE).read_text().split()[0] == description.sha256


def test_a_damaged_draft_is_not_claimed(tmp_path: Path, data_dir: DataDir) -> None:
    draft = data_dir.models.new_draft()
    (draft / MODEL_FILE).write_bytes(b"nothing")
    with pytest.raises(LoadError):
        data_dir.models.claim("m", draft)
    assert data_dir.models.versions("m") == []
    assert not list((tmp_path / "models").iterdir())


def test_claims_at_once_get_numbers_of_their_own(data_dir: DataDir, trained: Model) -> None:
    threads = [threading.Thread(target=put, args=(data_dir, "m", trained)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert data_dir.models.versions("m") == list(range(1, 9))


def test_what_a_crash_left_is_removed_and_models_stay(tmp_path: Path, trained: Model) -> None:
    data_dir = DataDir(tmp_path)
    stored = put(data_dir, "m", trained)
    data_dir.corpora.writer().write(b"half a corpus")
    trained.save(data_dir.models.new_draft() / MODEL_FILE)
    data_dir.close()
    again = DataDir(tmp_path)
    assert not list((tmp_path / "tmp").iterdir())
    assert again.models.find("m") == stored
    again.close()


def test_a_directory_has_one_server(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    code = (
        "import pathlib; from treadle.server.storage.data_dir import DataDir; "
        "DataDir(pathlib.Path({!r}))"
    )
    command = [sys.executable, "-c", code.format(str(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "in use by another server" in done.stderr
    data_dir.close()
    DataDir(tmp_path).close()


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        DataDir(tmp_path / "file" / "data")


def test_copies_of_a_data_directory_work(tmp_path: Path, trained: Model) -> None:
    data_dir = DataDir(tmp_path / "a")
    put(data_dir, "m", trained)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = DataDir(tmp_path / "b")
    assert [model.name for model in copy.models.newest()] == ["m"]
    data_dir.close()
    copy.close()


def test_a_new_data_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    for name, mode in (("new", 0o700), ("shared", 0o755)):
        DataDir(tmp_path / name).close()
        assert (tmp_path / name).stat().st_mode & 0o777 == mode


def test_a_model_is_there_before_it_is_hashed(
    data_dir: DataDir, trained: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []
    hashed = hashlib.file_digest

    def watched(*arguments: Any) -> Any:
        found.extend(data_dir.models.versions("m"))
        return hashed(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    put(data_dir, "m", trained)
    assert found == [1]


def test_a_version_is_found_by_its_alias(data_dir: DataDir) -> None:
    for _ in range(3):
        put_model(data_dir, "m")
    assert data_dir.models.set_alias("m", "prod", 1).version == 1
    assert data_dir.models.set_alias("m", "beta").version == 3
    assert data_dir.models.find("m@prod") == data_dir.models.find("m", 1)
    assert data_dir.models.find("m@latest").version == 3
    data_dir.models.set_alias("m", "prod", 2)
    assert data_dir.models.find("m@prod").version == 2
    data_dir.models.set_alias("m", "alpha", 3)
    assert data_dir.models.aliases.of_version("m", 3) == (["alpha", "beta"], 2)
    assert data_dir.models.aliases.of_version("m", 1) == ([], 0)
    data_dir.models.delete_alias("m", "alpha")
    assert data_dir.models.aliases.of_version("m", 3) == (["beta"], 1)


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
    data_dir: DataDir, name: str, version: int, code: str, words: str
) -> None:
    put_model(data_dir, "m")
    with pytest.raises(StatusError, match=words) as caught:
        data_dir.models.find(name, version)
    assert code_of(caught) is grpc.StatusCode[code]


@pytest.mark.parametrize("alias", ["latest", "12", "", "a b", "-a", "a" * 101, "../x", "a@b"])
def test_some_names_cannot_be_aliases(data_dir: DataDir, alias: str) -> None:
    put_model(data_dir, "m")
    with pytest.raises(StatusError) as caught:
        data_dir.models.set_alias("m", alias)
    assert code_of(caught) is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(StatusError) as caught:
        data_dir.models.delete_alias("m", alias)
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND
    with pytest.raises(StatusError) as caught:
        data_dir.models.set_alias("m", "a", 2)
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND


def test_aliases_go_with_their_versions(data_dir: DataDir) -> None:
    for number in (1, 2, 3):
        put_model(data_dir, "m")
        data_dir.models.set_alias("m", f"v{number}", number)
    data_dir.models.delete("m", 2, force=True)
    assert data_dir.database.aliases("m") == {"v1": 1, "v3": 3}
    data_dir.models.delete("m", None, force=True)
    assert data_dir.database.aliases("m") == {}


def test_a_version_that_an_alias_names_is_not_deleted(data_dir: DataDir) -> None:
    for _ in range(3):
        put_model(data_dir, "m")
    data_dir.models.set_alias("m", "prod", 2)
    data_dir.models.set_alias("m", "old", 1)
    for version, named in (
        (2, "alias prod points to version 2 of model 'm': move .* the alias first, or set force"),
        (None, "aliases old points to version 1, prod points to version 2 of model 'm': move"),
    ):
        with pytest.raises(StatusError, match=named) as caught:
            data_dir.models.delete("m", version)
        assert code_of(caught) is grpc.StatusCode.FAILED_PRECONDITION
        assert data_dir.models.versions("m") == [1, 2, 3]
    assert data_dir.models.delete("m", 3) == [3]
    data_dir.models.set_alias("m", "prod", 1)
    assert data_dir.models.delete("m", 2) == [2]
    data_dir.models.delete_alias("m", "prod")
    data_dir.models.delete_alias("m", "old")
    assert data_dir.models.delete("m", None) == [1]


def test_aliasing_and_deleting_at_once_leaves_no_alias_of_nothing(data_dir: DataDir) -> None:
    for _ in range(20):
        version = put_model(data_dir, "m").version
        with ThreadPoolExecutor(2) as threads:
            alias = threads.submit(data_dir.models.set_alias, "m", "prod", version)
            deletion = threads.submit(data_dir.models.delete, "m", version)
            errors = [alias.exception(), deletion.exception()]
        assert [error is None for error in errors].count(True) == 1, errors
        if errors[0] is None:
            assert data_dir.models.find("m@prod").version == version
            data_dir.models.delete_alias("m", "prod")
            data_dir.models.delete("m", version)
        else:
            assert data_dir.database.aliases("m") == {}


def test_an_alias_never_leads_to_a_later_model_of_the_same_number(
    data_dir: DataDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_model(data_dir, "m")
    data_dir.models.set_alias("m", "prod")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(data_dir.database, "forget_aliases", full)
        assert data_dir.models.delete("m", None, force=True) == [
            1
        ]  # a full disk does not prevent deletions, which free space
    assert "aliases of deleted versions of m remain" in caplog.text
    assert data_dir.database.aliases("m") == {"prod": 1}
    with pytest.raises(StatusError) as caught:
        data_dir.models.find("m@prod")
    assert code_of(caught) is grpc.StatusCode.NOT_FOUND
    assert put_model(data_dir, "m", seed=1).version == 1
    with pytest.raises(StatusError, match="no alias 'prod'"):
        data_dir.models.find("m@prod")


def test_a_claim_is_repeated_at_no_harm(data_dir: DataDir, tmp_path: Path) -> None:
    version = data_dir.models.next_version("m")
    assert version == 1
    for _ in range(3):  # a new draft of the same content each time
        draft = data_dir.models.new_draft()
        tiny_model().save(draft / MODEL_FILE)
        assert data_dir.models.claim("m", draft, version).version == 1
    assert data_dir.models.claim("m", draft, version).version == 1  # the draft is gone
    assert data_dir.models.versions("m") == [1]
    assert not list((tmp_path / "tmp").iterdir())
    draft = data_dir.models.new_draft()
    tiny_model(1).save(draft / MODEL_FILE)
    with pytest.raises(StatusError, match="version 1 of model 'm' is stored already") as caught:
        data_dir.models.claim("m", draft, version)
    assert code_of(caught) is grpc.StatusCode.ABORTED
    assert data_dir.models.claim("m", draft).version == 2


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
            data_dir = DataDir(root)
            file = data_dir.jobs.directory("j") / "final.safetensors"
            tiny_model().save(file)
            with monkeypatch.context() as patch, suppress(Killed):
                patch.setattr(os, call, Dying(getattr(os, call), after))
                data_dir.models.claim_file("m", file, 1)
                after = -1
            kills += after >= 0
            data_dir.close()
            data_dir = DataDir(root)
            assert data_dir.models.next_version("m") in (1, 2)
            stored = data_dir.models.claim_file("m", file, 1)
            assert data_dir.models.versions("m") == [1]
            assert stored.path.read_bytes() == file.read_bytes()
            assert has_recorded_hash(stored)
            data_dir.models.discard(file.parent)
            assert (
                data_dir.models.claim_file("m", file, 1) == stored
            )  # the file is gone, the version there
            data_dir.close()
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


def test_a_file_that_is_nowhere_is_not_claimed(data_dir: DataDir, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        data_dir.models.claim_file("m", tmp_path / "nothing.safetensors", 1)
    (tmp_path / "bad").write_bytes(b"no model")
    with pytest.raises(LoadError):
        data_dir.models.claim_file("m", tmp_path / "bad", 1)
    assert data_dir.models.versions("m") == []
    assert not list((tmp_path / "tmp").iterdir())


def test_numbers_that_unfinished_jobs_wrote_down_are_not_given_again(data_dir: DataDir) -> None:
    put_model(data_dir, "m")
    data_dir.database.add_job(job_row("a", state="running", claim=2))
    assert data_dir.models.next_version("m") == 3
    assert put_model(data_dir, "m").version == 3
    data_dir.database.update_job("a", state="failed")
    data_dir.database.add_job(job_row("b", state="running", claim=9, model="n"))
    assert data_dir.models.next_version("m") == 4


def test_a_full_disk_claims_nothing(
    tmp_path: Path, data_dir: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(data_dir, "m")
    file = data_dir.jobs.directory("j") / "final.safetensors"
    tiny_model().save(file)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for call in ("link", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, Raising(full))
            with pytest.raises(OSError, match="No space left"):
                data_dir.models.claim_file("m", file, 2)
        assert data_dir.models.versions("m") == [1]
        assert not list((tmp_path / "tmp").iterdir())
    assert data_dir.models.claim_file("m", file, 2).version == 2


def test_what_a_file_became_is_seen(data_dir: DataDir) -> None:
    stored = put_model(data_dir, "m")
    assert has_recorded_hash(stored)
    data = bytearray(stored.path.read_bytes())
    data[-3] ^= 1  # a weight: the file still reads
    stored.path.write_bytes(data)
    data_dir.models.describe(data_dir.models.find("m"))
    assert not has_recorded_hash(stored)
    (stored.path.parent / HASH_FILE).unlink()
    data_dir.models.describe(replace(stored, created_s=0.0))
    assert has_recorded_hash(stored)  # there was nothing to compare with, until now


def test_jobs_have_directories_of_their_own(tmp_path: Path, data_dir: DataDir) -> None:
    place = data_dir.jobs.directory("j-1")
    assert place == tmp_path / "jobs" / "j-1"
    (place / "state.safetensors").write_bytes(b"x")
    assert data_dir.jobs.directory("j-1") == place
    data_dir.close()
    again = DataDir(tmp_path)  # a start keeps them
    assert (place / "state.safetensors").exists()
    again.jobs.remove("j-1")
    again.jobs.remove("j-1")
    assert not place.exists()
    for wrong in ("", ".", "..", "../x", "a/b", "a" * 101):
        with pytest.raises(ValueError, match="cannot be the id of a job"):
            again.jobs.directory(wrong)
    again.close()


def test_a_database_that_cannot_be_used_is_said_and_unlocks(tmp_path: Path) -> None:
    (tmp_path / "treadle.db").write_bytes(b"no database" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="treadle-server --fsck"):
            DataDir(tmp_path)
    (tmp_path / "treadle.db").unlink()
    DataDir(tmp_path).close()
