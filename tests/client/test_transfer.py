"""Models are fetched, sent and copied, across broken connections, and files are whole or absent."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.client import Client
from treadle.client.errors import InputError, InternalError, NotFoundError, UnavailableError
from treadle.client.transfer.model_upload import vocabulary_parts
from treadle.client.transfer.vocabulary_file import read_vocabulary
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService

DATA = bytes(range(256)) * 41
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def filled(service: FakeService) -> FakeService:
    """A service with a model."""
    service.model_files["m"] = DATA
    return service


def offsets(service: FakeService) -> list[int]:
    return [each.offset for each in service.requests if isinstance(each, v1.ExportModelRequest)]


# ------------------------------------------------------------------------- download


def test_a_file_arrives_under_its_name_once_it_is_whole(
    client: Client, filled: FakeService, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    seen: list[tuple[int, int, bool]] = []

    def note(done: int, total: int) -> None:
        seen.append((done, total, path.exists()))

    model = client.export_model("m", path, version=5, on_progress=note)
    assert (model.version, model.sha256) == (5, SHA256)
    assert path.read_bytes() == DATA
    assert [*tmp_path.iterdir()] == [path]
    assert [done for done, _, _ in seen][:: len(seen) - 1] == [0, len(DATA)]
    assert {(total, exists) for _, total, exists in seen} == {(len(DATA), False)}


def test_a_file_that_exists_stays(client: Client, filled: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists: set overwrite to replace it"):
        client.export_model("m", path)
    assert path.read_bytes() == b"mine"
    assert not filled.requests
    client.export_model("m", str(path), overwrite=True)
    assert path.read_bytes() == DATA


def test_places_where_nothing_can_be_written_are_named(
    client: Client, filled: FakeService, tmp_path: Path
) -> None:
    for path in (tmp_path, tmp_path / "none" / "m", tmp_path / "a\0b"):
        with pytest.raises((InputError, ValueError), match=r"write|directory|null"):
            client.export_model("m", path, overwrite=True)


def test_links_and_devices_stay_what_they_are(
    client: Client, filled: FakeService, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "m")
    client.export_model("m", tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "m").read_bytes() == DATA
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    client.export_model("m", pipe)
    reader.join()
    assert read == [DATA]
    assert pipe.is_fifo()


def test_a_broken_download_continues_where_it_was(
    client: Client, filled: FakeService, tmp_path: Path
) -> None:
    filled.cuts = [3000, 6000]
    breaks: list[Exception] = []
    client.export_model("m", tmp_path / "m", on_break=breaks.append)
    assert (tmp_path / "m").read_bytes() == DATA
    assert offsets(filled) == [0, 3000, 6000]
    assert [each.sha256 for each in filled.requests] == ["", SHA256, SHA256]
    assert len(breaks) == 2


def test_a_download_that_the_server_ends_too_early_continues(
    client: Client, filled: FakeService, tmp_path: Path
) -> None:
    """A server that shuts down may end a stream without a status."""
    filled.ends = [0, 4]
    breaks: list[str] = []
    client.export_model("m", tmp_path / "m", on_break=lambda error: breaks.append(str(error)))
    assert (tmp_path / "m").read_bytes() == DATA
    assert offsets(filled) == [0, 3000]  # the first call has noted nothing
    assert breaks == [
        "the server ended the stream before it sent anything",
        "the file of version 2 of model 'm' ended after 3,000 of 10,496 bytes",
    ]
    filled.ends = [4]
    with pytest.raises(InternalError, match="ended after 3,000 of 10,496 bytes"):
        client.export_model("m", tmp_path / "other", retry_s=0)


def test_a_later_download_continues_what_is_there(
    client: Client, filled: FakeService, tmp_path: Path
) -> None:
    filled.cuts = [3000]
    path = tmp_path / "m"
    with pytest.raises(UnavailableError):
        client.export_model("m", path, retry_s=0)
    assert [each.name for each in tmp_path.iterdir()] == ["m.part"]
    client.export_model("m", path)
    assert path.read_bytes() == DATA
    assert offsets(filled) == [0, 3000]


@pytest.mark.parametrize("part", [b"of another one", bytes(len(DATA)), bytes(2 * len(DATA))])
def test_a_part_of_another_file_is_not_kept(
    client: Client, filled: FakeService, tmp_path: Path, part: bytes
) -> None:
    (tmp_path / "m.part").write_bytes(part)
    client.export_model("m", tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == DATA


def test_a_damaged_file_is_not_kept(client: Client, filled: FakeService, tmp_path: Path) -> None:
    filled.spoils = True
    with pytest.raises(InternalError, match="another SHA-256") as caught:
        client.export_model("m", tmp_path / "m")
    assert caught.value.code == "DATA_LOSS"
    assert not [*tmp_path.iterdir()]
    with pytest.raises(InternalError):
        client.export_model("m", io.BytesIO())


def test_an_unknown_model_leaves_nothing(
    client: Client, filled: FakeService, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError):
        client.export_model("none", tmp_path / "m")
    assert not [*tmp_path.iterdir()]


def test_an_open_file_takes_the_bytes(client: Client, filled: FakeService) -> None:
    filled.cuts = [3000]
    file = io.BytesIO()
    assert client.export_model("m@stable", file).sha256 == SHA256
    assert file.getvalue() == DATA


def test_a_file_that_takes_little_at_once_gets_all(client: Client, filled: FakeService) -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any, /) -> int:
            return super().write(bytes(data)[:7])

    file = Slow()
    client.export_model("m", file)
    assert file.getvalue() == DATA


# --------------------------------------------------------------------------- upload


def test_a_file_is_sent_with_its_hash(client: Client, service: FakeService, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(DATA)
    seen: list[tuple[int, int]] = []
    reply = client.import_model(
        path, model="new", alias="stable", on_progress=lambda *both: seen.append(both)
    )
    assert (reply.model.name, reply.model.version, list(reply.model.aliases)) == (
        "new",
        3,
        ["stable"],
    )
    assert service.imported == DATA
    assert service.imports == [
        v1.ImportModelSpec(
            model="new",
            alias="stable",
            sha256=SHA256,
            size_bytes=len(DATA),
            reuse_identical=True,
        )
    ]
    assert seen[0] == (0, len(DATA))


def test_a_broken_upload_is_sent_again(
    client: Client, service: FakeService, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    path.write_bytes(bytes(1 << 20))
    service.cuts = [1, 1]
    breaks: list[Exception] = []
    client.import_model(path, model="new", on_break=breaks.append)
    assert service.imported == bytes(1 << 20)
    assert len(breaks) == 1
    service.cuts = [1]
    with pytest.raises(UnavailableError):
        client.import_model(path, model="new", retry_s=0)


def test_a_file_that_might_be_stored_twice_is_not_sent_again(
    client: Client, service: FakeService, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    path.write_bytes(DATA)
    service.cuts = [len(DATA) + 1]  # after the end
    with pytest.raises(UnavailableError):
        client.import_model(path, model="new", reuse_identical=False)
    assert not service.imports


def test_files_that_cannot_be_sent(client: Client, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, words in (("none", "cannot read"), ("empty", "is empty, and not a model")):
        with pytest.raises(InputError, match=words):
            client.import_model(tmp_path / name, model="m")
    assert not service.requests


def test_a_file_that_shrinks_meanwhile_ends_the_call(
    client: Client, service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    path.write_bytes(DATA)

    def chunks(file: Any) -> Iterator[bytes]:
        yield DATA[:10]
        raise InputError("cannot read the file")

    def once(file: Any) -> Iterator[bytes]:
        monkeypatch.setattr("treadle.client.transfer.model_files.ModelFile.chunks", chunks)
        yield DATA

    monkeypatch.setattr("treadle.client.transfer.model_files.ModelFile.chunks", once)
    with pytest.raises(InputError, match="cannot read the file"):
        client.import_model(path, model="m")
    assert not service.imports


def test_a_state_dict_is_sent_with_its_vocabulary(
    client: Client, service: FakeService, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    path.write_bytes(DATA)
    words = [f"word-{number}" for number in range(25_000)]
    client.import_state_dict(
        path, model="new", vocabulary=words, tokenizer="words", lower_case=True, layout="lines"
    )
    assert service.vocabulary == words
    assert service.imports[0].state_dict == v1.StateDictSpec(
        tokenizer=v1.TokenizerSpec(kind=v1.TOKENIZER_KIND_WORDS, lower_case=True),
        layout=v1.CORPUS_LAYOUT_LINES,
    )
    with pytest.raises(InputError, match="there is no option 'kind'"):
        client.import_state_dict(path, model="new", kind="words")  # type: ignore[call-arg]
    with pytest.raises(InputError, match="token 1 of the vocabulary"):
        client.import_state_dict(path, model="new", vocabulary=["a", "\ud800"])


def test_parts_of_a_vocabulary_fit_into_messages() -> None:
    parts = vocabulary_parts(["é" * 300_000] * 4)
    assert [len(part.tokens) for part in parts] == [1] * 4
    assert not vocabulary_parts([])


# ----------------------------------------------------------------------------- copy


def test_a_model_is_copied_from_server_to_server(client: Client, filled: FakeService) -> None:
    away = FakeServer()
    away.service.cuts = [1]
    filled.cuts = [3000]
    try:
        with Client(away.address) as other:
            reply = client.copy_model("m@stable", other, name="copied", alias="a")
            assert (reply.model.name, away.service.imported) == ("copied", DATA)
            (spec,) = away.service.imports
            assert (spec.sha256, spec.size_bytes, spec.alias) == (SHA256, len(DATA), "a")
            assert client.copy_model("m", other).model.name == "m"
            with pytest.raises(NotFoundError):
                client.copy_model("none", other)
    finally:
        away.stop()


# ----------------------------------------------------------------------- vocabulary


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("v.txt", "a\nb\n", ["a", "b"]),
        ("v.txt", "a\n \n\\n\n\\t\n\\\\\nb", ["a", " ", "\n", "\t", "\\", "b"]),
        ("v.txt", "", []),
        ("v.json", '["a", "\\n", ""]', ["a", "\n", ""]),
        ("V.JSON", '{"b": 1, "a": 0}', ["a", "b"]),
    ],
)
def test_a_vocabulary_file(tmp_path: Path, name: str, text: str, tokens: list[str]) -> None:
    (tmp_path / name).write_text(text)
    assert read_vocabulary(tmp_path / name) == tokens


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("v.txt", b"a\n\xff", "is not UTF-8 text at byte 2"),
        ("v.json", b"[", "is not JSON"),
        ("v.json", b"[1]", "a list of tokens"),
        ("v.json", b'{"a": 1}', "must be 0 to 0, each once"),
        ("v.json", b'{"a": 0, "b": "x"}', "each once"),
        ("v.json", json.dumps("a").encode(), "a list of tokens"),
    ],
)
def test_what_is_no_vocabulary(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words):
        read_vocabulary(tmp_path / name)
