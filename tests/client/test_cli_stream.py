"""`treadle score-stream`, run as a program whose input comes line by line."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from treadle.client.cli import score_stream
from treadle.client.cli.display.notices import print_notice
from treadle.v1 import sequence_pb2 as v1

from .fake import FORBIDDEN, FakeServer, FakeService
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


def steps(service: FakeService) -> list[str | None]:
    """What was asked for, but for the check of the names at the beginning."""
    asked = [step for step in service.steps if not step.publish.validate_only]
    return [step.WhichOneof("message") for step in asked]


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
        assert rows.splitlines() == ["     5.000  one", "     1.000", r"     9.000  zwölf\ttwo"]
        # Lines keep their ends, and the last one has none: the stream scores what the file does.
        assert sent(service) == [("one\r\n", False), ("\n", False), ("zwölf\ttwo", False)]

    def test_items(self, server: FakeServer, service: FakeService, tmp_path: Path) -> None:
        service.layout = v1.CORPUS_LAYOUT_LINES
        path = tmp_path / "log"
        path.write_bytes(b"\xef\xbb\xbfone\r\n\n  \ntwo \xff")
        words = ["score-stream", "m@prod", str(path), "--unknown", "unknown"]
        rows = out(server.address, *words).splitlines()
        assert rows == ["     3.000  one", "     2.000", "     5.000  two \ufffd"]
        assert sent(service) == [("one", True), ("  ", True), ("two \ufffd", True)]

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
        assert done.stdout.decode().splitlines() == [
            "     7.000  5 x 1.5",
            "     1.000  y",
            """     error  it has no field 'a.e'; it has 'b': {"b": 1}""",
        ]
        assert "1 line could not be read and was skipped; the first: line 4: it has" in complaint(
            done, 0
        )
        assert sent(service) == [("5 x 1.5", True), ("y", True), ("", False)]


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
        assert lines[-1] == {"total": lines[-1]["total"], "item_count": 2, "error_count": 0}
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
    @pytest.mark.parametrize(
        ("number", "word"),
        [
            (signal.SIGINT, "interrupted"),
            (signal.SIGTERM, "terminated"),
            (signal.SIGHUP, "hung up"),
        ],
    )
    def test_a_signal_keeps_what_there_is(
        self,
        server: FakeServer,
        service: FakeService,
        tmp_path: Path,
        learns: bool,
        number: signal.Signals,
        word: str,
    ) -> None:
        state = tmp_path / "state"
        words = ["--learn", "--publish"] if learns else ["--save-state", str(state)]
        with streaming(server, "m", *words) as process:
            tell(process, b"abc\nhalf a line")
            assert process.stdout.readline().split()[1] == b"abc"
            process.send_signal(number)
            said = process.stderr.read().decode().splitlines()
            assert process.wait(PATIENCE_S) == 128 + number
        assert said[-1] == f"treadle: {word}"
        if learns:
            assert said[0] == "treadle: published m version 2"
            assert steps(service) == ["learn", "publish"]
        else:
            assert [each.name for each in tmp_path.iterdir()] == ["state"]
            assert state.read_bytes() == b"abc\n"

    def test_a_signal_says_why_the_command_still_runs(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        said = threading.Event()

        class Input:
            def stop(self) -> None:
                pass

        def tell(text: str) -> None:
            print_notice(text)
            said.set()

        monkeypatch.setattr(score_stream, "NOTICE_DELAY_S", 0)
        monkeypatch.setattr(score_stream, "print_notice", tell)
        with score_stream._ended_by_signals(cast(Any, Input())) as signals:
            signal.raise_signal(signal.SIGTERM)
            assert said.wait(PATIENCE_S)
        assert signals == [signal.SIGTERM]
        assert "what was read is still scored (a second signal ends" in capfd.readouterr().err

    def test_a_signal_that_is_ignored_stays_so(
        self, server: FakeServer, service: FakeService
    ) -> None:
        nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
        with subprocess.Popen(
            [*nohup, *command(server.address, "score-stream", "m")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        ) as process:
            for line in (b"abc", b"de"):
                tell(process, line + b"\n")
                assert process.stdout is not None
                assert process.stdout.readline().split()[1] == line
                process.send_signal(signal.SIGHUP)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0

    def test_a_time_limit_ends_the_stream_and_not_the_call(
        self, server: FakeServer, service: FakeService
    ) -> None:
        with streaming(server, "m", "--learn", "--publish", "--timeout", "2s") as process:
            tell(process, b"abc\n")
            assert process.stdout.readline()
            said = process.stderr.read().decode().splitlines()
            assert process.wait(PATIENCE_S) == 1
        assert said[0] == "treadle: published m version 2"
        assert "longer than --timeout allows" in said[1]

    def test_a_reader_that_leaves_is_noticed_while_nothing_comes(
        self, server: FakeServer, service: FakeService
    ) -> None:
        with streaming(server, "m", "--learn", "--publish") as process:
            tell(process, b"abc\n")
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b"treadle: published m version 2\n"
            assert process.wait(PATIENCE_S) == 141

    def test_an_output_that_is_full_loses_nothing(
        self, server: FakeServer, service: FakeService
    ) -> None:
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                command(server.address, "score-stream", "m", "--learn", "--publish"),
                input=b"abc\n",
                stdout=full,
                stderr=subprocess.PIPE,
                env=environment(),
                timeout=PATIENCE_S,
                check=False,
            )
        assert done.returncode == 1
        said = done.stderr.decode().splitlines()
        assert said[0] == "treadle: published m version 2"
        assert said[1] == "treadle: cannot write the output: No space left on device"

    def test_names_to_publish_under_are_checked_before_anything_is_learned(
        self, server: FakeServer, service: FakeService
    ) -> None:
        words = ["m", "--learn", "--publish", "--publish-as", FORBIDDEN]
        done = run(server.address, "score-stream", *words, data=b"abc\n")
        assert complaint(done, 1) == "treadle: --publish-as must be another"
        assert done.stdout == b""

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

    @pytest.mark.parametrize("every", [1, 2])
    def test_a_server_that_goes_takes_what_was_not_published(
        self, server: FakeServer, every: int
    ) -> None:
        with streaming(server, "m", "--learn", "--publish-every", str(every)) as process:
            tell(process, b"abc\n")
            assert process.stdout.readline()
            if every == 1:
                assert process.stderr.readline() == b"treadle: published m version 2\n"
            server.stop()
            said = process.stderr.read().decode()
            assert said.startswith("treadle: ")
            assert ("learned and not yet published is lost" in said) == (every == 2)
            assert process.wait(PATIENCE_S) in (1, 3)


BAD = b'{"text": "ab"}\n{"te\n{"text": "cde"}\n{"text": null}\n{"text": "?"}\n{"text": "f"}\n'
"""Three good lines, and between them one that is not JSON, one without text, one unknown."""

NOT_JSON = "it is not JSON: Unterminated string at character 2"


class TestErrors:
    def test_lines_that_cannot_be_read_are_marked_and_counted(
        self, server: FakeServer, service: FakeService
    ) -> None:
        service.layout = v1.CORPUS_LAYOUT_LINES
        words = ["score-stream", "m", "--format", "jsonl"]
        done = run(server.address, *words, data=BAD)
        said = complaint(done, 0)
        assert (
            said
            == f"treadle: 3 lines could not be read and were skipped; the first: line 2: {NOT_JSON}"
        )
        assert done.stdout.decode().splitlines() == [
            "     2.000  ab",
            f"     error  {NOT_JSON}: " + '{"te',
            "     3.000  cde",
            """     error  it holds null in the field 'text': {"text": null}""",
            "     error  there is no '?': ?",
            "     1.000  f",
        ]
        assert service.requests[-1].on_error == v1.ON_ERROR_SKIP
        lines = objects(run(server.address, *words, "--json", data=BAD).stdout.decode())
        assert [line.get("nats") for line in lines[:-1]] == [2, None, 3, None, None, 1]
        assert lines[1] == {"line": 2, "text": '{"te', "error": NOT_JSON}
        assert lines[4] == {"line": 5, "text": "?", "error": "there is no '?'"}
        assert (lines[-1]["error_count"], lines[-1]["item_count"]) == (3, 3)

    def test_a_row_that_is_marked_comes_at_once(
        self, server: FakeServer, service: FakeService
    ) -> None:
        with streaming(server, "m", "--format", "jsonl") as process:
            tell(process, b"{\n")
            assert process.stdout.readline().startswith(b"     error  it is not JSON")
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0

    @pytest.mark.parametrize("learns", [False, True])
    @pytest.mark.parametrize("bad", [b'{"te', b'{"text": "?"}'])
    def test_a_file_stops_at_the_first_one_and_keeps_what_there_is(
        self, server: FakeServer, service: FakeService, tmp_path: Path, learns: bool, bad: bytes
    ) -> None:
        path = tmp_path / "items"
        state = tmp_path / "state"
        path.write_bytes(b'{"text": "ab"}\n' + bad + b'\n{"text": "cde"}\n')
        words = ["--learn", "--publish"] if learns else ["--save-state", str(state)]
        done = run(server.address, "score-stream", "m", str(path), "--format", "jsonl", *words)
        assert done.returncode == 2
        first, second = done.stdout.decode().splitlines()
        assert first == "     3.000  ab"
        assert second.startswith("     error  ")
        said = done.stderr.decode().splitlines()
        assert said[-1].startswith("treadle: line 2: ")
        assert said[-1].endswith("(--on-error skip marks such lines and continues)")
        assert service.requests[-1].on_error == v1.ON_ERROR_STOP
        if learns:
            assert said[0] == "treadle: published m version 2"
        else:
            assert state.read_bytes().startswith(b"ab\n")

    def test_bytes_that_are_not_text_are_a_line_that_cannot_be_read(
        self, server: FakeServer, service: FakeService
    ) -> None:
        data = b"good\nw\xfcst text\nfine\n"
        done = run(server.address, "score-stream", "m", data=data)
        assert "(it looks like Latin-1): byte 0xFC at offset 1 of the line" in complaint(done, 0)
        assert "give --encoding latin-1" in complaint(done, 0)
        assert [row.split()[0] for row in done.stdout.splitlines()] == [
            b"5.000",
            b"error",
            b"5.000",
        ]
        rows = out(server.address, "score-stream", "m", "--encoding", "latin-1", data=data)
        assert rows.splitlines()[1] == "    10.000  wüst text"
        rows = out(server.address, "score-stream", "m", "--unknown", "skip", data=data)
        assert rows.splitlines()[1] == "     9.000  wst text"

    def test_a_nested_line_and_a_byte_order_mark(
        self, server: FakeServer, service: FakeService
    ) -> None:
        nested = b'\xef\xbb\xbf{"text": "ab"}\n{"text": ' + b"[" * 400 + b"]" * 400 + b"}\n"
        done = run(server.address, "score-stream", "m", "--format", "jsonl", data=nested)
        assert "line 2: it is nested too deeply" in complaint(done, 0)
        assert done.stdout.splitlines()[0] == b"     3.000  ab"

    def test_another_encoding_by_its_mark_ends_the_stream(self, server: FakeServer) -> None:
        done = run(server.address, "score-stream", "m", data="ab\n".encode("utf-16"))
        said = complaint(done, 2)
        assert "standard input is not UTF-8 (it begins with the byte order mark of UTF-16)" in said
        assert said.endswith("give --encoding utf-16")
        done = run(server.address, "score-stream", "m", "--encoding", "base64", data=b"ab\n")
        assert "--encoding 'base64' is not a text encoding" in complaint(done, 2)

    def test_a_long_line_is_one_unit(self, server: FakeServer, service: FakeService) -> None:
        out(server.address, "score-stream", "m", data=b"x" * 150_000)
        assert [piece.more for piece in service.pieces] == [True, True, False]


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
            on_error=v1.ON_ERROR_SKIP,
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
        assert steps(service) == ["learn"] * 2 + ["publish"] + ["learn"] * 2 + [
            "publish",
            "learn",
            "publish",
        ]
        assert service.steps[-1].publish == v1.Publish(model="new", alias="live")
        assert service.steps[0].publish.validate_only
        service.steps.clear()
        run(server.address, "score-stream", "m", "--learn", "--publish-every", "2", data=b"a\nb\n")
        assert steps(service) == ["learn", "learn", "publish"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--learn", "--publish", "--alias", ""], "--alias is empty: give a name"),
        (["--learn", "--publish", "--publish-as", ""], "--publish-as is empty: give a name"),
        (["--learn", "--publish-every", "0"], "--publish-every cannot be 0: it counts rows from 1"),
        (["--publish-every", "0"], "--publish-every needs --learn: give that as well"),
        (["--learning-rate", "0"], "--learning-rate needs --learn: give that as well"),
        (["--learn", "--context", ""], "--context does not go with --learn"),
        (
            ["--learn", "--int8"],
            "--inference-precision does not go with --learn, which computes in float32",
        ),
        (["--threshold", "nan"], "--threshold must be a number of nats, not nan"),
        (["--top-g", "-1"], "--top-g cannot be -1"),
        (["--column", "text"], "--column needs --format jsonl"),
    ],
)
def test_zero_and_nothing_are_not_taken_for_not_set(words: list[str], sentence: str) -> None:
    done = run("127.0.0.1:1", "score-stream", "m", *words, data=b"abc\n")
    assert sentence in complaint(done, 2)
    assert done.stdout == b""
