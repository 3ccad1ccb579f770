"""The command line, run as a program against a server that answers by rote."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from treadle.client.cli import models, train
from treadle.client.cli.main import main
from treadle.v1 import sequence_pb2 as v1

from .fake import STUCK, FakeServer, FakeService, status
from .shell import PATIENCE_S, command, complaint, environment, objects, out, run

NOBODY = "127.0.0.1:1"


class TestUsage:
    @pytest.mark.parametrize(
        "words",
        [
            [],
            ["train"],
            ["generate"],
            ["chat"],
            ["score"],
            ["score-stream"],
            ["embed"],
            ["models"],
            ["models", "list"],
            ["models", "show"],
            ["models", "delete"],
            ["info"],
            ["health"],
        ],
    )
    def test_every_command_explains_itself(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*words, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: {' '.join(['treadle', *words])}")

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--version"]) == 0
        assert capsys.readouterr().out.startswith("treadle 0.")

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], "required: command"),
            (["knit"], "invalid choice: 'knit'"),
            (["train", "x"], "required: --model"),
            (["train", "x", "--model", "m", "--hidden-size", "big"], "invalid int value: 'big'"),
            (["train", "x", "--model", "m", "--cell", "tree"], "invalid choice: 'tree'"),
            (["train", "x", "--model", "m", "--train-for", "soon"], "not a duration such as"),
            (["generate", "m", "--greedy", "--temperature", "1"], "not allowed with"),
            (["generate", "m", "--temp", "1"], "unrecognized arguments: --temp 1"),
            (["generate", "m", "--bias", "e"], "'e' is not a bias such as"),
            (["generate", "m", "--ban", "id:e"], "'id:e' is not a token"),
            (["generate", "m", "--state", "no/such"], "cannot read no/such: No such file"),
            (["generate", "m", "-n", "2", "--save-state", "f"], "--save-state keeps the state of"),
            (
                ["score", "m", "f", "--per-line", "--save-state", "f"],
                "--save-state keeps the state",
            ),
            (["score-stream", "m", "--publish"], "--publish needs --learn: give that as well"),
            (["score-stream", "m", "--learn", "--context", "x"], "--context does not go with"),
            (["score-stream", "m", "--only-flagged"], "--only-flagged needs --top-g"),
            (["embed", "m"], "give either texts or --per-line FILE"),
            (["embed", "m", "t", "--per-line", "f"], "give either texts or --per-line FILE"),
            (["score", "m"], "give either a FILE"),
            (["generate", "m", "--unique"], "--unique needs more than one text: give -n N"),
            (
                ["generate", "m", "-n", "2", "--max-tries", "3"],
                "every text counts: add --unique, add --novel, or leave --max-tries out",
            ),
            (["score", "m", "file", "--text", "t"], "give either a FILE"),
        ],
    )
    def test_wrong_usage_is_one_sentence(self, words: list[str], expected: str) -> None:
        assert expected in complaint(run(NOBODY, *words), 2)

    def test_the_server_is_named_before_or_after_the_command_or_in_the_environment(
        self, server: FakeServer
    ) -> None:
        here = ["--server", server.address]
        for words in (["info", *here], [*here, "info"]):
            done = run(NOBODY, *words)
            assert done.stdout.startswith(b"version")
        plain = command("", "info")
        del plain[3:5]
        env = environment(TREADLE_SERVER=server.address)
        assert subprocess.run(plain, env=env, stdout=subprocess.PIPE, check=True).stdout


class TestTrouble:
    @pytest.mark.parametrize(
        "words",
        [
            ["train", "-", "--model", "m"],
            ["generate", "m"],
            ["chat", "m"],
            ["score", "m", "--text", "t"],
            ["score-stream", "m"],
            ["embed", "m", "t"],
            ["models"],
            ["models", "delete", "m", "--all"],
            ["info"],
            ["health"],
            ["health", "--wait", "200ms"],
        ],
    )
    def test_nobody_there(self, words: list[str]) -> None:
        assert NOBODY in complaint(run(NOBODY, *words, data=b"hello"), 3)

    def test_the_servers_sentence_is_shown(self, server: FakeServer) -> None:
        server.service.failure = status(code_pb2.NOT_FOUND, "there is no model 'm'\x1b[1m")
        done = run(server.address, "generate", "m")
        assert complaint(done, 1) == "treadle: there is no model 'm'\ufffd[1m"
        assert done.stdout == b""

    def test_the_time_of_the_next_try_is_printed(self, server: FakeServer) -> None:
        retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=5))
        server.service.failure = status(code_pb2.RESOURCE_EXHAUSTED, "the queue is full", retry)
        done = run(server.address, "train", "-", "--model", "m", data=b"hello")
        assert complaint(done, 1) == "treadle: the queue is full (try again in 5 s)"
        for seconds, said in ((469.3, " (try again in 470 s)"), (11.5, "")):
            retry = error_details_pb2.RetryInfo(retry_delay=Duration())
            retry.retry_delay.FromMilliseconds(int(1000 * seconds))
            sentence = "your quota is used up: the next call may begin in 12 s"
            server.service.failure = status(code_pb2.RESOURCE_EXHAUSTED, sentence, retry)
            done = run(server.address, "generate", "m")
            assert complaint(done, 1) == f"treadle: {sentence}{said}"

    def test_a_timeout(self, server: FakeServer) -> None:
        done = run(server.address, "--timeout", "200ms", "generate", STUCK)
        assert "took longer than the timeout" in complaint(done, 1)
        done = run(server.address, "train", "-", "--model", STUCK, "--timeout", "0.2")
        assert "took longer than the timeout" in complaint(done, 1)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["train", "no/such", "--model", "m"], "cannot read no/such: No such file"),
            (["train", ".", "--model", "m"], "cannot read .: Is a directory"),
            (["score", "m", "no/such"], "cannot read no/such: No such file"),
            (["score", "m", "--per-line", "no/such"], "cannot read no/such: No such file"),
            (["generate", "m", "--prompt-file", "."], "cannot read .: Is a directory"),
            (
                ["generate", "m", "--prompt-file", "-"],
                "standard input is not UTF-8: byte 0xFF at offset 2",
            ),
            (["score", "m", "-"], "standard input is not UTF-8: byte 0xFF at offset 2"),
            (["score", "m", "-", "--per-line"], "standard input, line 1: it is not UTF-8"),
            (
                ["generate", "m", "--seed", "-1"],
                "seed cannot be -1: it must be a whole number from 0 to 18,446,744,073,709,551,615",
            ),
            (["generate", "m", "--prompt", "a\udcff"], "prompt is not text"),
        ],
    )
    def test_unusable_input(self, server: FakeServer, words: list[str], expected: str) -> None:
        assert expected in complaint(run(server.address, *words, data=b"ab\xff"), 2)

    def test_a_bug_is_one_sentence_too(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError("oh")

        monkeypatch.setattr("treadle.client.cli.info.run_info", broken)
        assert main(["info"]) == 1
        assert capsys.readouterr().err.startswith("treadle: this is a bug: ZeroDivisionError: oh")
        monkeypatch.setenv("TREADLE_DEBUG", "1")
        with pytest.raises(ZeroDivisionError):
            main(["info"])

    def test_a_reader_that_leaves_early_is_no_trouble(self, server: FakeServer) -> None:
        with subprocess.Popen(
            command(server.address, "generate", "endless"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == b"ellomore and more and more\n"
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(PATIENCE_S) == 141
        assert server.service.over.wait(PATIENCE_S)

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["generate", STUCK], "interrupted"),
            (
                ["train", __file__, "--model", STUCK],
                "interrupted; the job continues at the server: "
                "`treadle watch a1-job` shows it again",
            ),
            (["train", "-", "--model", "m"], "interrupted"),
        ],
        ids=["generate", "train", "upload"],
    )
    def test_ctrl_c_cancels_the_call(
        self, server: FakeServer, words: list[str], sentence: str
    ) -> None:
        with subprocess.Popen(
            command(server.address, *words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert server.service.begun.wait(PATIENCE_S)
            if STUCK in words:
                assert process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            assert process.stderr.read().decode() == f"treadle: {sentence}\n"
            assert process.wait(PATIENCE_S) == 130
        assert server.service.over.wait(PATIENCE_S)
        assert server.service.trained is (words[0] == "train" and STUCK in words)

    def test_a_refusal_does_not_wait_for_slow_input(self, server: FakeServer) -> None:
        server.service.failure = status(code_pb2.INVALID_ARGUMENT, "no such cell")
        with subprocess.Popen(
            command(server.address, "train", "-", "--model", "m"),
            stdin=subprocess.PIPE,  # nobody writes there, nor closes it
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stderr is not None
            assert process.stderr.read() == b"treadle: no such cell\n"
            assert process.wait(PATIENCE_S) == 1


class TestEnd:
    PROGRAM = """
import sys, threading, time
from treadle.client.__main__ import main
threading.Thread(target=time.sleep, args=[10 * {patience}]).start()
sys.argv = ["treadle", *{words}]
main()
"""

    @pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["no-command"], 2)])
    def test_the_program_waits_for_no_thread(self, words: list[str], code: int) -> None:
        program = self.PROGRAM.format(patience=PATIENCE_S, words=words)
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            env=environment(),
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == code
        assert done.stdout if code == 0 else done.stderr


class TestTrain:
    def test_events_are_json_lines_where_nobody_watches(self, server: FakeServer) -> None:
        events = objects(out(server.address, "train", "-", "--model", "hello", data=b"hello"))
        assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5]
        assert {event["job"] for event in events} == {"a1-job"}
        assert events[0]["state"] == {"state": "queued", "reason": ""}
        assert events[1]["started"]["train_tokens"] == 5
        assert events[1]["started"]["notices"] == ["the batch was shrunk to 1"]
        assert events[2]["progress"]["train_loss"] == 1.25
        assert "valid_loss" not in events[2]["progress"]
        assert events[3]["progress"]["valid_loss"] == 0.75
        assert events[4]["completed"]["name"] == "hello"
        assert events[4]["completed"]["network"]["cell"] == "lstm"
        assert events[4]["completed"]["create_time"] == "2023-11-14T22:13:20Z"

    def test_quiet_tells_only_the_model(self, server: FakeServer) -> None:
        text = out(server.address, "train", "-", "--model", "m", "--quiet", data=b"hello")
        assert [list(event) for event in objects(text)] == [["sequence", "completed", "job"]]

    def test_bytes_arrive_as_they_are(
        self, server: FakeServer, service: FakeService, tmp_path: Path
    ) -> None:
        data = bytes(range(256)) * 5000 + b"\r\n\r\n"
        out(server.address, "train", "-", "--model", "m", data=data)
        assert service.corpus == data
        service.corpus = b""
        (tmp_path / "corpus").write_bytes(data)
        out(server.address, "train", str(tmp_path / "corpus"), "--model", "m")
        assert service.corpus == data

    @pytest.mark.parametrize(("piped", "waits"), [(True, 1), (False, 0)])
    def test_the_end_of_a_pipe_waits_for_a_ctrl_c(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool, waits: int
    ) -> None:
        slept: list[float] = []
        monkeypatch.setattr("time.sleep", slept.append)
        if piped:
            reading, writing = os.pipe()
        else:
            path = tmp_path / "corpus"
            reading = os.open(path, os.O_CREAT | os.O_RDONLY)
            writing = os.open(path, os.O_WRONLY)
        os.write(writing, b"hello")
        os.close(writing)
        with open(reading, "rb", buffering=0) as file:
            source = train.CorpusInput(file)
            assert (source.read(3), source.read(9)) == (b"hel", b"lo")
            assert slept == []
            assert source.read(9) == b""
        assert len(slept) == waits

    def test_an_empty_corpus_is_for_the_server_to_refuse(
        self, server: FakeServer, service: FakeService
    ) -> None:
        out(server.address, "train", "-", "--model", "m")
        assert service.corpus == b""
        assert service.trained

    def test_options_become_the_spec(self, server: FakeServer, service: FakeService) -> None:
        words = (
            "--tokenizer words --max-vocabulary-size 100 --unknown skip --layout lines "
            "--validation-fraction 0 --cell gru --hidden-size 32 --layers 2 --embedding-size 0 "
            "--dropout 0.5 --batch-size 4 --window 8 --optimizer sgd --learning-rate 0.5 "
            "--schedule constant --warmup-steps 0 --beta1 0.8 --beta2 0.9 --weight-decay 0.1 "
            "--clip-norm 0 --clip-value 5 --precision bf16 --seed 9 "
            "--max-steps 10 --max-epochs 0.5 --train-for 3m "
            "--progress-interval 250ms --validation-interval 5 --sample-tokens 0"
        )
        out(server.address, "train", "-", "--model", "m", *words.split(), data=b"x")
        assert service.requests == [
            v1.TrainSpec(
                model="m",
                tokenizer=v1.TokenizerSpec(
                    kind=v1.TOKENIZER_KIND_WORDS,
                    max_vocabulary_size=100,
                    unknown_policy=v1.UNKNOWN_POLICY_SKIP,
                ),
                data=v1.DataSpec(
                    layout=v1.CORPUS_LAYOUT_LINES, validation_fraction=0, batch_size=4, window=8
                ),
                network=v1.NetworkSpec(
                    cell=v1.CELL_GRU, hidden_size=32, layers=2, embedding_size=0, dropout=0.5
                ),
                optimizer=v1.OptimizerSpec(
                    optimizer=v1.OPTIMIZER_SGD,
                    learning_rate=0.5,
                    schedule=v1.SCHEDULE_CONSTANT,
                    warmup_steps=0,
                    beta1=0.8,
                    beta2=0.9,
                    weight_decay=0.1,
                    clip_norm=0,
                    clip_value=5,
                    precision=v1.PRECISION_BF16,
                ),
                limits=v1.LimitsSpec(max_steps=10, max_epochs=0.5, max_time_s=180),
                report=v1.ReportSpec(
                    progress_interval_s=0.25, validation_interval_steps=5, sample_tokens=0
                ),
                seed=9,
            )
        ]


class TestGenerate:
    def test_the_text_and_one_newline(self, server: FakeServer, service: FakeService) -> None:
        words = ["generate", "hello", "--prompt", "h", "--greedy", "--max-new-tokens", "4"]
        assert out(server.address, *words) == "ello\n"
        assert out(server.address, *words, "--no-newline") == "ello"
        assert service.requests[0] == v1.GenerateRequest(
            model="hello", prompt="h", temperature=0, max_new_tokens=4
        )

    def test_options_become_the_request(self, server: FakeServer, service: FakeService) -> None:
        words = (
            "m --version 3 --temperature 0.5 --top-k 5 --top-p 0.9 --min-p 0.1 --seed 0 "
            "--unknown skip --stop a --stop bc"
        )
        out(server.address, "generate", *words.split())
        assert service.requests == [
            v1.GenerateRequest(
                model="m",
                version=3,
                temperature=0.5,
                top_k=5,
                top_p=0.9,
                min_p=0.1,
                seed=0,
                stop_sequences=["a", "bc"],
                unknown_policy=v1.UNKNOWN_POLICY_SKIP,
            )
        ]

    def test_the_prompt_from_a_file(
        self, server: FakeServer, service: FakeService, tmp_path: Path
    ) -> None:
        path = tmp_path / "prompt"
        path.write_bytes("Grüße\r\n".encode())
        out(server.address, "generate", "m", "--prompt-file", str(path))
        out(server.address, "generate", "m", "--prompt-file", "-", data=path.read_bytes())
        assert [request.prompt for request in service.requests] == ["Grüße\r\n"] * 2

    def test_json_is_what_the_server_sent(self, server: FakeServer) -> None:
        lines = objects(out(server.address, "generate", "m", "--json", "--log-probabilities"))
        assert [line["text"] for line in lines] == ["el", "", "lo", ""]
        assert lines[0]["tokens"][0] == {
            "id": 1,
            "text": "e",
            "log_probability": -0.5,
            "rank": 0,
        }
        assert lines[-1]["result"]["stop_reason"] == "max_new_tokens"
        assert lines[-1]["result"]["seed"] == 2**63

    def test_log_probabilities_leave_the_text_alone(self, server: FakeServer) -> None:
        done = run(server.address, "generate", "m", "--log-probabilities")
        assert done.stdout == b"ello\n"
        head, *rows, summary = done.stderr.decode().splitlines()
        assert head.split() == ["token", "nats", "probability"]
        assert [row.split() for row in rows] == [[c, "-0.500", "60.7%"] for c in "ello"]
        assert summary.startswith("4 tokens, -2.000 nats, ended by max new tokens; seed 922")

    def test_piped_text_is_utf_8_in_every_locale(self, server: FakeServer) -> None:
        text = "Grüße 世界"
        done = run(
            server.address, "score", "m", "--text", text, LC_ALL="POSIX", PYTHONIOENCODING="latin-1"
        )
        assert text in done.stdout.decode()


class TestScore:
    def test_a_table(self, server: FakeServer) -> None:
        head, first, second, total = out(
            server.address, "score", "m", "--text", "ab\tc", "abc", "--context", "c"
        ).splitlines()
        assert head.split() == ["text", "tokens", "nats", "mean", "perplexity", "bits/char"]
        assert first.split() == ["1", "4", "-4.000", "1.000", "2.7183", "1.443", r"ab\tc"]
        assert second.split() == ["2", "3", "-3.000", "1.000", "2.7183", "1.443", "abc"]
        assert total.split() == ["all", "7", "-7.000", "1.000", "2.7183", "1.443"]

    def test_lines(self, server: FakeServer, service: FakeService, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_bytes(b"one\r\n\ntwo\nthree")
        rows = out(server.address, "score", "m", str(path), "--per-line").splitlines()
        assert [row.split()[0] for row in rows] == ["text", "1", "3", "4", "all"]
        lines = objects(
            out(server.address, "score", "m", "-", "--per-line", "--json", data=path.read_bytes())
        )
        assert [(line["line"], line["text"]) for line in lines] == [
            (1, "one"),
            (3, "two"),
            (4, "three"),
        ]
        assert lines[0]["mean_nats"] == 1
        assert list(service.requests[0].texts) == ["one", "two", "three"]

    @pytest.mark.parametrize(
        "words", [["score", "m", "-", "--per-line"], ["embed", "m", "--per-line", "-"]]
    )
    def test_lines_before_a_refused_one_are_printed(
        self, server: FakeServer, words: list[str]
    ) -> None:
        more = ["--json"] if words[0] == "score" else []
        done = run(server.address, *words, *more, data=b"one\n\ntwo\n?\nthree\n")
        assert complaint(done, 1) == "treadle: line 4: '?' is unknown: give --unknown skip"
        assert [(line["line"], line["text"]) for line in objects(done.stdout.decode())] == [
            (1, "one"),
            (3, "two"),
        ]

    def test_a_first_line_that_is_refused(self, server: FakeServer, service: FakeService) -> None:
        done = run(server.address, "score", "m", "-", "--per-line", data=b"?\none\n")
        assert "line 1: '?' is unknown" in complaint(done, 1)
        assert done.stdout == b""
        assert len(service.requests) == 1
        done = run(server.address, "score", "m", "--text", "one", "?")
        assert complaint(done, 1) == "treadle: '?' is unknown: give --unknown skip"

    def test_a_file_is_one_text(self, server: FakeServer, service: FakeService) -> None:
        lines = objects(out(server.address, "score", "m", "-", "--json", data=b"one\ntwo\n"))
        assert [line["token_count"] for line in lines] == [8]
        assert "text" not in lines[0]
        assert list(service.requests[0].texts) == ["one\ntwo\n"]

    def test_unknown_tokens_leave_no_bits_a_character(self, server: FakeServer) -> None:
        for words in (["--text", "ab##", "abcd"], ["--text", "ab##", "abcd", "--json"]):
            done = run(server.address, "score", "hello", *words)
            assert done.returncode == 0
            assert done.stderr.decode().startswith(
                "treadle: 25 % of the tokens are unknown (2 of 8): bits per character are unknown"
            )
        table = run(server.address, "score", "hello", "--text", "ab##", "abcd").stdout.decode()
        _, unknown, known, total = table.splitlines()
        assert [row.split()[5] for row in (unknown, known, total)] == ["-", "1.443", "-"]

    def test_an_empty_text_has_dashes(self, server: FakeServer) -> None:
        _, row = out(server.address, "score", "m", "-").splitlines()
        assert row.split() == ["1", "0", "0.000", "-", "-", "-"]

    def test_tokens(self, server: FakeServer) -> None:
        lines = out(server.address, "score", "m", "--text", "a\nb", "--tokens").splitlines()
        assert [line.split() for line in lines[2:]] == [
            ["token", "nats", "probability"],
            ["a", "-", "-"],
            ["\\n", "-1.000", "36.8%"],
            ["b", "-1.000", "36.8%"],
        ]

    def test_no_lines_make_no_rows(self, server: FakeServer) -> None:
        assert len(out(server.address, "score", "m", "-", "--per-line").splitlines()) == 1


class TestModels:
    def test_list(self, server: FakeServer, service: FakeService) -> None:
        service.pages = 2
        listed = out(server.address, "models")
        assert out(server.address, "models", "list") == listed
        head, *rows = listed.splitlines()
        assert head.split()[:3] == ["name", "version", "network"]
        assert [row.split()[0] for row in rows] == ["model-1", "model-2"]
        assert "lstm 2x128" in rows[0]
        assert rows[0].endswith("50 kB  2023-11-14 22:13:20 UTC")
        names = [line["name"] for line in objects(out(server.address, "models", "--json"))]
        assert names == ["model-1", "model-2"]

    def test_no_models(self, server: FakeServer, service: FakeService) -> None:
        service.pages = 0
        assert out(server.address, "models") == "no models yet\n"
        assert out(server.address, "models", "list", "--json") == ""

    def test_show(self, server: FakeServer, service: FakeService) -> None:
        text = out(server.address, "models", "show", "m", "--version", "2")
        assert "validation loss  0.7500 nats\n" in text
        assert "versions         1, 2\n" in text
        assert models._ending("max_time_s reached after 9 steps") == "its time limit after 9 steps"
        assert models._ending("the server's limit") == "the server's limit"
        assert "network          lstm 2x128, embedding 64, dropout 0.2\n" in text
        network = v1.NetworkSpec(
            cell=v1.CELL_GRU, layers=1, hidden_size=8, embedding_size=8, output_dropout=0.5
        )
        network.tied_weights = True
        network.softmax = v1.SOFTMAX_FACTORED
        network.softmax_clusters.extend((32, 64))
        described = "output dropout 0.5, tied weights, factored softmax, 2 clusters"
        assert models._network(network) == f"gru 1x8, embedding 8, {described}"
        assert service.requests == [v1.GetModelRequest(model="m", version=2)]
        shown: Any = objects(out(server.address, "models", "show", "m", "--json"))[0]
        assert shown["model"]["training"]["ended_by"] == "max_steps"
        assert shown["versions"] == [1, 2]

    def test_delete(self, server: FakeServer) -> None:
        words = ["models", "delete", "m"]
        assert out(server.address, *words, "--all") == "deleted m versions 1, 2\n"
        words += ["--version", "2"]
        assert out(server.address, *words) == "deleted m version 2\n"
        assert objects(out(server.address, *words, "--json")) == [{"versions": [2]}]

    def test_delete_sends_the_version_and_force(
        self, server: FakeServer, service: FakeService
    ) -> None:
        out(server.address, "models", "delete", "m", "--all", "--force")
        out(server.address, "models", "delete", "m", "--version", "3")
        assert service.requests == [
            v1.DeleteModelRequest(model="m", all_versions=True, force=True),
            v1.DeleteModelRequest(model="m", version=3),
        ]

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], "one of the arguments --version --all is required"),
            (["--version", "0"], "'0' is not a version: versions count from 1"),
            (["--version", ""], "'' is not a version"),
            (["--version", "-1"], "version"),
            (["--version=-1"], "'-1' is not a version"),
            (["--version", "1.0"], "'1.0' is not a version"),
            (["--version", "2", "--all"], "--all: not allowed with argument --version"),
        ],
    )
    def test_a_deletion_that_does_not_say_what_it_means_is_refused(
        self, server: FakeServer, service: FakeService, words: list[str], expected: str
    ) -> None:
        done = run(server.address, "models", "delete", "m", *words)
        assert expected in complaint(done, 2)
        assert service.requests == []

    @pytest.mark.parametrize(
        "words",
        [["models", "show", "m"], ["models", "alias", "m", "a"], ["generate", "m"], ["chat", "m"]],
    )
    def test_no_command_takes_version_0_for_a_version_that_is_not_given(
        self, server: FakeServer, service: FakeService, words: list[str]
    ) -> None:
        assert "'0' is not a version" in complaint(run(server.address, *words, "--version", "0"), 2)
        assert service.requests == []


class TestServer:
    def test_info(self, server: FakeServer) -> None:
        text = out(server.address, "info")
        assert "corpus         up to 2.15 GB\n" in text
        assert "sessions       3 of 512\n" in text
        assert "streams        2 of 6\n" in text
        assert "learners       1 of 4\n" in text
        assert "training       none on this server, 0 of 0 waiting\n" in text
        assert "memory         7 MB of 2 GB\n" in text
        assert "models loaded  2, 5 MB\n" in text
        assert objects(out(server.address, "info", "--json"))[0]["threads"] == 2
        assert "caller" not in text

    def test_info_of_the_caller(self, server: FakeServer, service: FakeService) -> None:
        service.caller = v1.CallerInfo(
            name="ann",
            role=v1.CALLER_ROLE_TRAINER,
            read_models=["team-a-*", "shared"],
            write_models=["team-a-*"],
            quotas=v1.CallerQuotas(
                calls=8, tokens_per_minute=60_000, jobs_running=1, model_bytes=2_000_000_000
            ),
            use=v1.CallerUse(
                calls=1, sessions=2, tokens_left=51_200, jobs_queued=3, model_bytes=5_000_000
            ),
            valid_until_s=1_800_000_000,
        )
        lines = [re.sub(r"  +", ": ", each) for each in out(server.address, "info").splitlines()]
        assert "sessions: up to 512" in lines
        assert "training: none on this server, 0 waiting" in lines
        start = lines.index("caller: ann")
        assert lines[start:] == [
            "caller: ann",
            "role: trainer",
            "valid until: 2027-01-15 08:00:00 UTC",
            "may read: team-a-*, shared",
            "may write: team-a-*",
            "own calls: 1 of 8",
            "own sessions: 2, no limit",
            "own tokens: 51,200 left, 60,000 per minute",
            "own jobs: running 0 of 1; waiting 3, no limit",
            "own models: 5 MB of 2 GB",
            "own corpora: 0 B, no limit",
        ]
        described = objects(out(server.address, "info", "--json"))[0]["caller"]
        assert (described["name"], described["role"]) == ("ann", "trainer")
        service.caller.use.tokens_left = -468
        assert "none left, 60,000 per minute" in out(server.address, "info")
        service.caller = v1.CallerInfo(name="root", role=v1.CALLER_ROLE_ADMIN)
        assert "sessions       3 of 512\n" in out(server.address, "info")
        service.caller = v1.CallerInfo(name="eve", role=v1.CALLER_ROLE_READER)
        text = out(server.address, "info")
        assert "own tokens    no limit\n" in text
        assert "may write     none\n" in text

    def test_health(self, server: FakeServer) -> None:
        assert out(server.address, "health") == "serving\n"
        assert out(server.address, "health", "--wait", "5s") == "serving\n"
        assert out(server.address, "health", "--wait", "0") == "serving\n"
        server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert "up but not serving" in complaint(run(server.address, "health"), 1)
        done = run(server.address, "health", "--wait", "0.2")
        assert "within 0.2 s" in complaint(done, 3)


def test_a_closed_standard_output_is_no_reason_to_fail(server: FakeServer) -> None:
    words = " ".join(shlex.quote(word) for word in command(server.address, "info"))
    done = subprocess.run(["sh", "-c", f"{words} >&-"], capture_output=True, env=environment())
    assert (done.returncode, done.stderr) == (0, b"")
