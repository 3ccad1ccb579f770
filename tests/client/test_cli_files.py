"""Files that commands read and write: encodings, odd names, outputs that are checked first."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from vectors import json_items, name_of, text_inputs

from treadle.client import Client, CorpusFile, InputError
from treadle.client.cli.display.output_file import check_output, write_output
from treadle.client.cli.input.stream_input import StreamInput, Unit, units
from treadle.client.files.decoding import TextSource
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService
from .shell import PATIENCE_S, command, complaint, environment, objects, out, run

NAMES = b"\xef\xbb\xbfemma\r\nolivia\n\nava"
ODD_NAME = os.fsdecode(b"caf\xe9\x1b.txt")


@pytest.fixture
def names(tmp_path: Path) -> str:
    path = tmp_path / "names.txt"
    path.write_bytes(NAMES)
    return str(path)


class TestReading:
    def test_a_byte_order_mark_is_no_part_of_the_text(
        self, server: FakeServer, service: FakeService, names: str
    ) -> None:
        address = server.address
        for file, data in ((names, b""), ("-", NAMES)):
            lines = objects(out(address, "score", "m", file, "--per-line", "--json", data=data))
            assert [(line["line"], line["text"]) for line in lines] == [
                (1, "emma"),
                (2, "olivia"),
                (4, "ava"),
            ]
            lines = objects(out(address, "embed", "m", "--per-line", file, data=data))
            assert [line["text"] for line in lines] == ["emma", "olivia", "ava"]
            out(address, "score", "m", file, data=data)
            assert list(service.requests[-1].texts) == ["emma\r\nolivia\n\nava"]
            out(address, "generate", "m", "--prompt-file", file, data=data)
            assert service.requests[-1].prompt == "emma\r\nolivia\n\nava"

    @pytest.mark.parametrize(
        "words",
        [
            ["score", "m", "FILE"],
            ["score", "m", "FILE", "--per-line"],
            ["embed", "m", "--per-line", "FILE"],
            ["generate", "m", "--prompt-file", "FILE"],
        ],
    )
    def test_an_encoding_is_chosen_where_text_is_read(
        self, server: FakeServer, service: FakeService, tmp_path: Path, words: list[str]
    ) -> None:
        path = tmp_path / "text"
        path.write_bytes(b"w\xfcst e")
        words = [str(path) if word == "FILE" else word for word in words]
        said = complaint(run(server.address, *words), 2)
        where = "byte 0xFC at offset 1 of the line" if "line" in said else "byte 0xFC at offset 1"
        assert f"{path}" in said
        assert f"is not UTF-8 (it looks like Latin-1): {where}; give --encoding latin-1" in said
        for more, text in (
            (["--encoding", "latin-1"], "wüst e"),
            (["--unknown", "skip"], "wst e"),
            (["--unknown", "unknown"], "w\ufffdst e"),
        ):
            out(server.address, *words, *more)
            request = service.requests[-1]
            assert (request.prompt if words[0] == "generate" else request.texts[0]) == text

    def test_lines_before_one_that_cannot_be_read_are_scored(self, server: FakeServer) -> None:
        done = run(server.address, "score", "m", "-", "--per-line", data=b"ab\ncd\n\xff\nef\n")
        assert "standard input, line 3: it is not UTF-8" in complaint(done, 2)
        assert [row.split()[-1] for row in done.stdout.splitlines()[1:]] == [b"ab", b"cd"]

    def test_a_state_is_saved_where_nobody_reads_the_text(
        self, server: FakeServer, tmp_path: Path
    ) -> None:
        state = tmp_path / "state"
        words = ["generate", "m", "--prompt", "h", "--save-state", str(state)]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                command(server.address, *words),
                stdout=full,
                stderr=subprocess.PIPE,
                env=environment(),
                timeout=PATIENCE_S,
                check=False,
            )
        assert "No space left" in complaint(done, 1)
        assert state.read_bytes() == b"hello"


class TestStreamInput:
    """What score-stream takes from its input, by the vectors that training passes as well."""

    @pytest.mark.parametrize("case", text_inputs(), ids=name_of)
    def test_lines(self, case: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_bytes(case["bytes"])
        source = TextSource(str(path), case["encoding"])

        def found(items: bool) -> list[Unit]:
            return list(units(StreamInput(path.open("rb"), source), "line", items))

        if case.get("refused_at_every_policy", case.get("error") in ("utf16", "utf32")):
            with pytest.raises(InputError):
                found(True)
        elif "error" in case:
            assert any(unit.fault for unit in found(True))
        else:
            sent = [piece.text for unit in found(False) for piece in unit.pieces]
            assert "".join(sent) == case["text"]
            if "items" in case:
                assert [unit.text for unit in found(True)] == case["items"]

    @pytest.mark.parametrize("case", json_items(), ids=name_of)
    def test_lines_of_json(self, case: dict[str, Any], tmp_path: Path) -> None:
        if "\n" in case["line"]:
            pytest.skip("two lines")
        path = tmp_path / "items.jsonl"
        path.write_bytes(case["line"].encode() + b"\n")
        source = StreamInput(path.open("rb"), TextSource(str(path)))
        found = list(units(source, "line", True, case["column"]))
        item = case.get("item")
        if "error" in case:
            # A byte order mark at the beginning of the file is not part of the line.
            assert [bool(unit.fault) for unit in found] == [case["line"][:1] != "\ufeff"]
        elif not item:
            assert found == []
        else:
            assert [(unit.text, unit.fault) for unit in found] == [(item, "")]


class TestNames:
    def test_files_whose_names_are_not_utf_8_train_together(
        self, server: FakeServer, service: FakeService, tmp_path: Path
    ) -> None:
        odd = tmp_path / ODD_NAME
        plain = tmp_path / "plain.txt"
        odd.write_bytes(b"abc")
        plain.write_bytes(b"de")
        out(server.address, "train", str(odd), str(plain), "--model", "m", "--weight", f"{odd}=2")
        assert [Path(file.name).name for file in service.files] == [
            "caf\\xe9\x1b.txt",
            "plain.txt",
        ]
        assert service.files[0].weight == 2
        service.files.clear()
        with Client(server.address) as client:
            client.train([CorpusFile(odd), CorpusFile("x", name=ODD_NAME)], model="m").result()
        assert [file.name for file in service.files] == ["caf\\xe9\x1b.txt"] * 2

    def test_they_are_named_safely(
        self, server: FakeServer, service: FakeService, tmp_path: Path
    ) -> None:
        odd = str(tmp_path / ODD_NAME)
        missing = [
            ["train", odd, "--model", "m"],
            ["score", "m", odd],
            ["score-stream", "m", odd],
            ["generate", "m", "--prompt-file", odd],
            ["generate", "m", "--state", odd],
            ["generate", "m", "--save-state", os.path.join(odd, "state")],
            ["chat", "m", "--state", odd],
        ]
        for words in missing:
            assert "caf\\xe9\ufffd.txt" in complaint(run(server.address, *words), 2)
        Path(odd).write_bytes(b"ab\n")
        (line,) = objects(out(server.address, "score", "m", odd, "--json"))
        assert line["file"].endswith("caf\\xe9\x1b.txt")
        state = os.path.join(str(tmp_path), os.fsdecode(b"st\xe9te"))
        out(server.address, "score-stream", "m", odd, "--save-state", state)
        assert Path(state).read_bytes() == b"ab\n"
        done = run(server.address, "chat", "m", data=f"a\n/save {tmp_path}/kept\n".encode())
        assert done.returncode == 0
        job = service.accept(v1.TrainSpec(model="m"))
        picture = os.path.join(str(tmp_path), os.fsdecode(b"c\xe9.svg"))
        assert out(server.address, "curve", job, "--out", picture).endswith("c\\xe9.svg\n")
        assert Path(picture).read_bytes().startswith(b"<svg")


class TestOutputs:
    @pytest.mark.parametrize("place", ["folder", "missing/state", "locked/state", "", "x" * 300])
    def test_an_output_is_checked_before_anything_is_made(
        self, server: FakeServer, service: FakeService, tmp_path: Path, place: str
    ) -> None:
        if place.startswith("locked") and os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (tmp_path / "folder").mkdir()
        (tmp_path / "locked").mkdir(mode=0o500)
        path = str(tmp_path / place) if place else ""
        for words in (
            ["generate", "m"],
            ["score", "m", "--text", "ab"],
            ["score-stream", "m"],
            ["curve", service.accept(v1.TrainSpec(model="m"))],
        ):
            flag = "--save-state"
            name = path
            if words[0] == "curve":
                flag = "--out"
                name = path + ".svg"
                if place in ("folder", ""):
                    continue  # a name of its own, once it ends in .svg
            service.requests.clear()
            said = complaint(run(server.address, *words, flag, name, data=b"ab\n"), 2)
            assert said.startswith("treadle: cannot write")
            asked = {type(request).__name__ for request in service.requests}
            assert asked <= {"GetModelRequest"}
        assert sorted(each.name for each in tmp_path.iterdir()) == ["folder", "locked"]
        assert not list((tmp_path / "folder").iterdir())

    def test_a_file_is_written_whole_with_its_permissions(self, tmp_path: Path) -> None:
        path = tmp_path / "state"
        write_output(str(path), b"one")
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        path.chmod(0o640)
        link = tmp_path / "link"
        link.symlink_to(path)
        write_output(str(link), b"two")
        assert link.is_symlink()
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o640)
        assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "state"]

    def test_devices_and_pipes_are_written_to_and_not_replaced(self, tmp_path: Path) -> None:
        write_output("/dev/null", b"gone")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        found: list[bytes] = []
        reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
        reader.start()
        check_output(str(pipe))
        write_output(str(pipe), b"state")
        reader.join()
        assert found == [b"state"]

    def test_a_signal_ends_the_wait_for_who_reads_a_pipe(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        found: list[bytes] = []
        # A reader comes at last, so that a wait that no signal ends does end, and fails the test.
        reader = threading.Timer(20, lambda: found.append(pipe.read_bytes()))
        over = threading.Event()

        def end(*_: object) -> None:
            if not over.is_set():
                over.set()
                raise TimeoutError

        def send() -> None:
            while not over.wait(0.2):
                os.kill(os.getpid(), signal.SIGTERM)

        before = signal.signal(signal.SIGTERM, end)
        sender = threading.Thread(target=send)
        reader.start()
        sender.start()
        try:
            with pytest.raises((InputError, TimeoutError)):
                write_output(str(pipe), b"state")
        finally:
            over.set()
            sender.join()
            reader.cancel()
            reader.join()
            signal.signal(signal.SIGTERM, before)
        assert not found

    def test_a_failure_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "state"
        path.write_bytes(b"old")

        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fails)
            with pytest.raises(InputError, match="No space left"):
                write_output(str(path), b"new")
        assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]
        with pytest.raises(InputError, match="null"):
            write_output("a\0b", b"")

    def test_a_signal_waits_until_the_file_is_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "state"
        came = []
        before = signal.signal(signal.SIGTERM, lambda *_: came.append(path.read_bytes()))
        replace = os.replace

        def interrupted(*names: str) -> None:
            signal.raise_signal(signal.SIGTERM)
            replace(*names)

        try:
            monkeypatch.setattr(os, "replace", interrupted)
            write_output(str(path), b"whole")
        finally:
            signal.signal(signal.SIGTERM, before)
        assert came == [b"whole"]
