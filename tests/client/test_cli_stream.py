"""`treadle score-stream`, run as a program whose input comes line by line."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService
from .shell import PATIENCE_S, command, complaint, environment, objects, out, run


@contextmanager
def streaming(server: FakeServer, *words: str) -> Iterator[Any]:
    """Runs score-stream on a pipe that stays open."""
    with subprocess.Popen(
        command(server.address, "score-stream", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        yield process


def tell(process: Any, text: bytes) -> None:
    process.stdin.write(text)
    process.stdin.flush()


def sent(service: FakeService) -> list[tuple[str, bool]]:
    return [(piece.text, piece.end) for piece in service.pieces]


class TestRows:
    def test_every_line_is_answered_before_the_next_comes(self, server: FakeServer) -> None:
        with streaming(server, "m") as process:
            for line in (b"abc", b"de"):
                tell(process, line + b"\n")
                assert process.stdout.readline().split() == [b"%.3f" % (len(line) + 1), line]
            process.stdin.close()
            assert process.stdout.read() == b""
            assert process.stderr.read() == b""
            assert process.wait(PATIENCE_S) == 0

    def test_running_text(self, server: FakeServer, service: FakeService) -> None:
        rows = out(server.address, "score-stream", "m", data="one\r\n\nzwölf\ttwo".encode())
        assert rows.splitlines() == ["     4.000  one", "     1.000", r"     9.000  zwölf\ttwo"]
        # The last line has no end, and gets none: the stream scores what the file does.
        assert sent(service) == [("one\n", False), ("\n", False), ("zwölf\ttwo", False)]

    def test_items(self, server: FakeServer, service: FakeService, tmp_path: Path) -> None:
        service.layout = v1.CORPUS_LAYOUT_LINES
        path = tmp_path / "log"
        path.write_bytes(b"one\n\n  \ntwo \xff")
        rows = out(server.address, "score-stream", "m@prod", str(path)).splitlines()
        assert rows == ["     3.000  one", "     5.000  two \ufffd"]
        assert sent(service) == [("one", True), ("two \ufffd", True)]

    def test_events(self, server: FakeServer, service: FakeService) -> None:
        service.layout = v1.CORPUS_LAYOUT_LINES
        words = ["score-stream", "m", "--per", "event", "--json"]
        lines = objects(out(server.address, *words, data=b"5 22  11\n9\n"))
        assert [(line["line"], line["text"], line["nats"]) for line in lines[:-1]] == [
            (1, "5", 2),
            (1, "22", 4),
            (1, "11", 2),
            (2, "9", 1),
        ]
        assert sent(service) == [("5 ", False), ("22  ", False), ("11", True), ("9", True)]

    def test_chunks_never_cut_a_character(self, server: FakeServer, service: FakeService) -> None:
        with streaming(server, "m", "--per", "chunk") as process:
            tell(process, b"a\xc3")
            assert process.stdout.readline() == b"     1.000  a\n"
            tell(process, b"\xb6b")
            assert process.stdout.readline() == "     2.000  öb\n".encode()
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0
        assert sent(service) == [("a", False), ("öb", False)]

    def test_a_long_line_is_one_row(self, server: FakeServer, service: FakeService) -> None:
        service.layout = v1.CORPUS_LAYOUT_LINES
        (row,) = out(server.address, "score-stream", "m", data=b"x" * 150_000).splitlines()
        assert row.split()[0] == "150000.000"
        assert [(len(text), end) for text, end in sent(service)] == [
            (65536, False),
            (65536, False),
            (18928, True),
        ]

    def test_json_lines(self, server: FakeServer, service: FakeService) -> None:
        service.layout = v1.CORPUS_LAYOUT_LINES
        data = b'{"a": {"e": [5, "x", 1.5]}}\n\n{"a": {"e": "y"}}\n{"b": 1}\n'
        words = ["score-stream", "m", "--format", "jsonl", "--column", "a.e"]
        done = run(server.address, *words, data=data)
        assert "line 4 has no field 'a.e'" in complaint(done, 2)
        assert sent(service)[:2] == [("5 x 1.5", True), ("y", True)]
        done = run(server.address, *words, data=b"[")
        assert "line 1 is no JSON" in complaint(done, 2)


class TestAlarms:
    def test_a_threshold(self, server: FakeServer) -> None:
        rows = out(server.address, "score-stream", "m", "--threshold", "3", data=b"abc\nab\nabcd\n")
        assert [row.split()[1] for row in rows.splitlines()] == ["abc", "abcd"]

    def test_ranks_above_g(self, server: FakeServer, service: FakeService) -> None:
        service.layout = v1.CORPUS_LAYOUT_LINES
        words = ["score-stream", "m", "--top-g", "9"]
        rows = out(server.address, *words, data=b"ab\nao\n").splitlines()
        assert rows == ["     2.000       2    ab", "     2.000      15 !  ao"]
        (flagged,) = out(server.address, *words, "--only-flagged", data=b"ab\nao\n").splitlines()
        assert flagged == rows[1]
        lines = objects(out(server.address, *words, "--json", data=b"ab\nao\n"))
        assert [line["flagged"] for line in lines[:-1]] == [False, True]
        assert [line["worst_rank"] for line in lines[:-1]] == [2, 15]
        assert "tokens" not in lines[0]
        assert lines[-1] == {"total": lines[-1]["total"], "item_count": 2}
        assert lines[-1]["total"]["token_count"] == 4

    def test_tokens(self, server: FakeServer) -> None:
        rows = out(server.address, "score-stream", "m", "--tokens", data=b"a\n").splitlines()
        assert [row.split() for row in rows[1:]] == [
            ["token", "nats", "probability"],
            ["a", "-1.000", "36.8%"],
            ["\\n", "-1.000", "36.8%"],
        ]


class TestEnds:
    def test_the_state_is_carried(
        self, server: FakeServer, service: FakeService, tmp_path: Path
    ) -> None:
        state = tmp_path / "state"
        words = ["score-stream", "m", "--save-state", str(state)]
        out(server.address, *words, data=b"ab\n")
        assert state.read_bytes() == b"ab\n"
        out(server.address, *words, "--state", str(state), data=b"c\n")
        assert state.read_bytes() == b"ab\nc\n"

    @pytest.mark.parametrize("learns", [False, True])
    def test_ctrl_c_keeps_what_there_is(
        self, server: FakeServer, service: FakeService, tmp_path: Path, learns: bool
    ) -> None:
        state = tmp_path / "state"
        words = ["--learn", "--publish"] if learns else ["--save-state", str(state)]
        with streaming(server, "m", *words) as process:
            tell(process, b"abc\nhalf a line")
            assert process.stdout.readline().split()[1] == b"abc"
            process.send_signal(signal.SIGINT)
            said = process.stderr.read().decode().splitlines()
            assert process.wait(PATIENCE_S) == 130
        assert said[-1] == "treadle: interrupted"
        if learns:
            assert said[0] == "treadle: published m version 2"
            kinds = [step.WhichOneof("message") for step in service.steps]
            assert kinds == ["learn", "publish"]
        else:
            assert state.read_bytes() == b"abc\n"

    def test_a_reader_that_leaves_ends_the_stream(
        self, server: FakeServer, service: FakeService
    ) -> None:
        with streaming(server, "m", "--learn", "--publish") as process:
            tell(process, b"abc\n")
            assert process.stdout.readline()
            process.stdout.close()
            tell(process, b"de\n")
            assert process.stderr.read() == b"treadle: published m version 2\n"
            assert process.wait(PATIENCE_S) == 141

    def test_a_refusal_does_not_wait_for_input(
        self, server: FakeServer, service: FakeService
    ) -> None:
        with streaming(server, "m") as process:
            tell(process, b"abc\n")
            assert process.stdout.readline()
            server.stop()
            said = process.stderr.read().decode()
            assert said.startswith("treadle: ")
            assert len(said.splitlines()) == 1
            assert process.wait(PATIENCE_S) in (1, 3)


class TestLearning:
    def test_options_become_the_spec(self, server: FakeServer, service: FakeService) -> None:
        words = (
            "m --version 3 --learn --optimizer adam --learning-rate 0.01 --clip-norm 0 --window 8 "
            "--top-g 9 --top 2 --unknown skip"
        )
        out(server.address, "score-stream", *words.split(), data=b"a\n")
        assert service.requests[-1] == v1.LearnStreamSpec(
            model="m",
            version=3,
            optimizer=v1.OPTIMIZER_ADAM,
            learning_rate=0.01,
            clip_norm=0,
            window=8,
            ranks=True,
            top_log_probabilities=2,
            unknown_policy=v1.UNKNOWN_POLICY_SKIP,
        )

    def test_versions_are_published_on_the_way_and_at_the_end(
        self, server: FakeServer, service: FakeService
    ) -> None:
        words = ["m", "--learn", "--publish-every", "2", "--publish-as", "new", "--alias", "live"]
        done = run(server.address, "score-stream", *words, data=b"a\nb\nc\nd\ne\n")
        assert done.returncode == 0
        assert done.stderr.decode().splitlines() == [
            f"treadle: published new version {version}" for version in (2, 3, 4)
        ]
        kinds = [step.WhichOneof("message") for step in service.steps]
        assert kinds == ["learn"] * 2 + ["publish"] + ["learn"] * 2 + [
            "publish",
            "learn",
            "publish",
        ]
        assert service.steps[-1].publish == v1.Publish(model="new", alias="live")
        service.steps.clear()
        run(server.address, "score-stream", "m", "--learn", "--publish-every", "2", data=b"a\nb\n")
        assert [step.WhichOneof("message") for step in service.steps][-2:] == ["learn", "publish"]
        assert len(service.steps) == 3
