"""Lists of models and jobs: from memory, and never larger than a message."""

from __future__ import annotations

import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.server.messages.page import Page
from treadle.server.rpc.model_descriptions import ModelDescriptions
from treadle.server.storage import model_version
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.model_version import MODEL_FILE
from treadle.server.storage.version_index import VersionIndex
from treadle.v1 import sequence_pb2 as pb

from .samples import put_model

MESSAGE_BYTES = 1 << 16


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[DataDir]:
    data_dir = DataDir(tmp_path)
    yield data_dir
    data_dir.close()


@pytest.fixture
def descriptions(data_dir: DataDir) -> ModelDescriptions:
    return ModelDescriptions(data_dir.models, MESSAGE_BYTES)


def count_calls(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str) -> Callable[[], int]:
    """Counts the calls of a function; returns what says how many there were since last asked."""
    calls = [0]
    wrapped = getattr(holder, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return wrapped(*arguments, **named)

    def so_far() -> int:
        count, calls[0] = calls[0], 0
        return count

    monkeypatch.setattr(holder, name, counted)
    return so_far


def settled(data_dir: DataDir, tmp_path: Path, *names: str) -> None:
    """Makes the directories of models as old as they are after a while."""
    long_ago = time.time() - 3600
    for name in names:
        os.utime(tmp_path / "models" / name, (long_ago, long_ago))


def test_a_list_reads_what_it_knows_from_no_disk(
    tmp_path: Path,
    data_dir: DataDir,
    descriptions: ModelDescriptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["a", "b", "c"]
    for name in names:
        put_model(data_dir, name)
    data_dir.models.set_alias("b", "prod")
    settled(data_dir, tmp_path, *names)
    first = descriptions.page(10, "")
    assert [model.name for model in first[0]] == names
    assert [list(model.aliases) for model in first[0]] == [[], ["prod"], []]
    headers = count_calls(monkeypatch, model_version, "read_header")
    folders = count_calls(monkeypatch, model_version, "numbers")
    asked = count_calls(monkeypatch, data_dir.database, "aliases_of")
    monkeypatch.setattr(data_dir.models, "_described", OrderedDict())
    assert descriptions.page(10, "") == first
    assert (headers(), folders(), asked()) == (0, 0, 0)
    data_dir.models.set_alias("c", "prod")
    assert [list(model.aliases) for model in descriptions.page(10, "")[0]] == [
        [],
        ["prod"],
        ["prod"],
    ]
    assert (headers(), folders(), asked()) == (0, 0, 1)
    put_model(data_dir, "b")
    data_dir.models.delete_alias("c", "prod")
    listed = descriptions.page(10, "")[0]
    assert [(model.name, model.version, list(model.aliases)) for model in listed] == [
        ("a", 1, []),
        ("b", 2, []),
        ("c", 1, []),
    ]
    data_dir.models.delete("a", None)
    assert [model.name for model in descriptions.page(10, "")[0]] == ["b", "c"]


def test_versions_put_there_and_taken_away_by_hand_are_noticed(
    tmp_path: Path, data_dir: DataDir
) -> None:
    put_model(data_dir, "m")
    settled(data_dir, tmp_path, "m")
    home = tmp_path / "models" / "m"
    assert data_dir.models.versions("m") == [1]
    (home / "2").mkdir()
    settled(data_dir, tmp_path, "m")
    assert data_dir.models.versions("m") == [1]
    (home / "2" / MODEL_FILE).write_bytes((home / "1" / MODEL_FILE).read_bytes())
    assert data_dir.models.versions("m") == [1, 2]  # the model's own directory does not show it
    settled(data_dir, tmp_path, "m")
    assert data_dir.models.find("m").version == 2
    (home / "2" / MODEL_FILE).unlink()
    assert data_dir.models.find("m").version == 1


def test_a_directory_that_has_just_changed_is_read_again(tmp_path: Path) -> None:
    index = VersionIndex(tmp_path)
    assert index.numbers("m") == ()
    for version in (1, 2):  # both within one tick of a coarse clock
        (tmp_path / "m" / str(version)).mkdir(parents=True)
        (tmp_path / "m" / str(version) / MODEL_FILE).touch()
        now = time.time()
        os.utime(tmp_path / "m", (now, int(now)))
        assert index.numbers("m") == tuple(range(1, version + 1))


def test_a_page_ends_where_a_message_does(
    data_dir: DataDir, descriptions: ModelDescriptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"m{number}" for number in range(8)]
    for name in names:
        put_model(data_dir, name)
    description = descriptions._description

    def long(stored: Any) -> pb.Model:
        model = description(stored)
        model.training.ended_by = "x" * 20_000
        return model

    monkeypatch.setattr(descriptions, "_description", long)
    seen = list[str]()
    after = ""
    sizes = []
    while True:
        models, after = descriptions.page(1000, after)
        seen += [model.name for model in models]
        reply = pb.ListModelsResponse(models=models, next_page_token="t" * 1000)
        sizes.append(reply.ByteSize())
        if not after:
            break
    assert seen == names
    assert len(sizes) == 3
    assert max(sizes) <= MESSAGE_BYTES


def test_a_page_takes_its_first_item_whatever_its_size() -> None:
    page: Page[pb.Job] = Page(5, 4096)
    assert page.take(pb.Job(reason="x" * 5000))
    assert not page.take(pb.Job())
    page = Page(2, 4096)
    assert [page.take(pb.Job()) for _ in range(3)] == [True, True, False]
    assert list(itertools.chain(page.items)) == [pb.Job(), pb.Job()]
