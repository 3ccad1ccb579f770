"""The commands about jobs, run as a program against a server that answers by rote."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from treadle.client.cli.main import main
from treadle.v1 import sequence_pb2 as v1

from .fake import PAUSED, STUCK, FakeServer, FakeService, status
from .shell import PATIENCE_S, command, complaint, environment, objects, out, run

NOBODY = "127.0.0.1:1"


@pytest.fixture
def jobs(service: FakeService) -> list[str]:
    """The ids of three jobs, oldest first."""
    return [service.accept(v1.TrainSpec(model=name)) for name in ("m", STUCK, PAUSED)]


class TestUsage:
    @pytest.mark.parametrize(
        "words",
        [
            ["jobs"],
            ["jobs", "list"],
            ["jobs", "show"],
            ["jobs", "cancel"],
            ["jobs", "pause"],
            ["jobs", "resume"],
            ["jobs", "delete"],
            ["watch"],
            ["curve"],
            ["models", "alias"],
            ["models", "unalias"],
        ],
    )
    def test_every_command_explains_itself(
        self, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([*words, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: {' '.join(['treadle', *words])}")

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["generate"], "give either a MODEL or --job JOB"),
            (["generate", "m", "--job", "j"], "give either a MODEL or --job JOB"),
            (["generate", "m", "--best"], "--best chooses among the weights of a job"),
            (["generate", "m", "x"], "unrecognized arguments: x (see `treadle generate --help`)"),
            (["models", "show", "m", "--x"], "--x (see `treadle models show --help`)"),
            (["--x", "info"], "unrecognized arguments: --x (see `treadle info --help`)"),
            (["score", "m", "file", "--job", "j"], "give either a MODEL or --job JOB"),
            (["score", "--text", "t"], "give either a MODEL or --job JOB"),
            (["score", "--job", "j"], "give either a FILE"),
            (["watch"], "required: JOB"),
            (["jobs", "--state", "tired"], "invalid choice: 'tired'"),
            (["train", "a", "--model", "m", "--weight", "a"], "'a' is not FILE=W"),
            (["train", "a", "--model", "m", "--weight", "a=0"], "'a=0' is not FILE=W"),
            (["train", "a", "--model", "m", "--weight", "b=2"], "names 'b', which is not a FILE"),
            (["train", "-", "-", "--model", "m"], "standard input can be read only once"),
            (["train", "-", "--valid", "-", "--model", "m"], "standard input can be read only"),
            (["train", "a", "--model", "m", "--max-memory", "lots"], "'lots' is not a size"),
            (["train", "a.csv", "b", "--model", "m"], "give one format with --format"),
            (["train", "a.csv", "b.jsonl", "--model", "m"], "a.csv is csv and b.jsonl is jsonl"),
            (["train", "a.csv", "-", "--model", "m"], "standard input is of no known format"),
            (["train", "a.jsonl", "--valid", "b.txt", "--model", "m"], "b.txt is of no known"),
            (["train", "a.txt.gz", "--model", "m"], "a.txt.gz is compressed: unpack it first"),
            (["train", "a.xlsx", "--model", "m"], "a.xlsx is a table that is not text"),
            (
                ["train", "a", "--model", "m", "--column", "b"],
                "--column needs --format jsonl or csv",
            ),
            (
                ["train", "a", "--model", "m", "--missing", "skip"],
                "--missing needs --format jsonl or csv",
            ),
            (["curve", "j", "--out", "x.png"], "--out must end in .svg, not 'x.png'"),
            (["curve", "j", "--out", "x.svg", "--width", "9"], "--width cannot be 9"),
            (["curve", "j", "--height", "0"], "--height cannot be 0"),
        ],
    )
    def test_wrong_usage_is_one_sentence(self, words: list[str], expected: str) -> None:
        assert expected in complaint(run(NOBODY, *words), 2)


class TestTrain:
    def test_several_files_with_roles_and_weights(
        self, server: FakeServer, service: FakeService, tmp_path: Path
    ) -> None:
        names = ["one", "two", "three=3", "check", "exam"]
        one, two, three, check, exam = (str(tmp_path / name) for name in names)
        for name in names:
            (tmp_path / name).write_text(name)
        words = [one, two, three, "--valid", check, "--test", exam, "--model", "m"]
        out(server.address, "train", *words, "--weight", f"{two}=2", "--weight", f"{three}=0.5")
        assert service.files == [
            v1.CorpusFile(name=one, role=v1.CORPUS_ROLE_TRAIN),
            v1.CorpusFile(name=two, role=v1.CORPUS_ROLE_TRAIN, weight=2),
            v1.CorpusFile(name=three, role=v1.CORPUS_ROLE_TRAIN, weight=0.5),
            v1.CorpusFile(name=check, role=v1.CORPUS_ROLE_VALID),
            v1.CorpusFile(name=exam, role=v1.CORPUS_ROLE_TEST),
        ]
        assert service.corpus == "".join(names).encode()

    @pytest.mark.parametrize(
        ("name", "words", "expected"),
        [
            ("a.jsonl", "", v1.CORPUS_FORMAT_JSONL),
            ("a.b.NDJSON", "", v1.CORPUS_FORMAT_JSONL),
            ("a.csv", "--column name --missing skip", v1.CORPUS_FORMAT_CSV),
            ("a.tsv", "", v1.CORPUS_FORMAT_CSV),
            ("a.csv", "--format jsonl", v1.CORPUS_FORMAT_JSONL),
            ("a.csv", "--format plain", v1.CORPUS_FORMAT_PLAIN),
            ("a.csv.gz", "--format plain", v1.CORPUS_FORMAT_PLAIN),
            ("a.csv.gz", "--tokenizer bytes", v1.CORPUS_FORMAT_UNSPECIFIED),
            ("a.txt", "", v1.CORPUS_FORMAT_UNSPECIFIED),
            (".csv", "", v1.CORPUS_FORMAT_UNSPECIFIED),
            ("csv", "", v1.CORPUS_FORMAT_UNSPECIFIED),
        ],
    )
    def test_a_format_is_chosen_by_the_name_and_reported(
        self,
        server: FakeServer,
        service: FakeService,
        tmp_path: Path,
        name: str,
        words: str,
        expected: int,
    ) -> None:
        path = tmp_path / name
        path.write_text("hello")
        done = run(server.address, "train", str(path), "--model", "m", *words.split())
        assert done.returncode == 0
        assert service.requests[0].data.format == expected
        taken = "--format" not in words and expected
        word = v1.CorpusFormat.Name(expected).rpartition("_")[2].lower()  # type: ignore[arg-type]
        notice = f"treadle: {path} is read as {word}, by the name; --format plain"
        said = done.stderr.decode()
        assert said.startswith(notice) if taken else said == ""

    def test_several_files_of_one_format(
        self, server: FakeServer, service: FakeService, tmp_path: Path
    ) -> None:
        paths = [str(tmp_path / name) for name in ("a.csv", "b.tsv", "c.csv")]
        for path in paths:
            Path(path).write_text("text")
        words = [*paths[:2], "--valid", paths[2]]
        done = run(server.address, "train", *words, "--model", "m")
        assert service.requests[0].data.format == v1.CORPUS_FORMAT_CSV
        assert "the files are read as csv" in done.stderr.decode()

    def test_one_plain_file_has_no_head(self, server: FakeServer, service: FakeService) -> None:
        out(server.address, "train", "-", "--model", "m", data=b"hello")
        assert (service.files, service.corpus) == ([], b"hello")

    def test_one_file_that_cannot_be_read_stops_all(
        self, server: FakeServer, service: FakeService
    ) -> None:
        done = run(server.address, "train", __file__, "--valid", "no/such", "--model", "m")
        assert "cannot read no/such" in complaint(done, 2)
        assert service.requests == []

    def test_the_newer_options_become_the_spec(
        self, server: FakeServer, service: FakeService
    ) -> None:
        words = (
            "--auto --format csv --column name --encoding latin-1 --test-fraction 0.05 "
            "--min-frequency 2 --lower-case --output-dropout 0.3 --tied-weights "
            "--accumulation-steps 4 --schedule plateau --plateau-factor 0.25 "
            "--plateau-patience 3 --averaging 2 --final-rate 0.5 "
            "--max-tokens 1000000 --max-wall-time 2h "
            "--early-stopping-patience 5 --max-memory 1.5GB --keep last --init-from old@stable "
            "--init-from-version 3 --request-id once --tokenizer subwords"
        )
        out(server.address, "train", "-", "--model", "m", *words.split(), data=b"x")
        assert service.requests == [
            v1.TrainSpec(
                model="m",
                preset=v1.PRESET_AUTO,
                tokenizer=v1.TokenizerSpec(
                    kind=v1.TOKENIZER_KIND_SUBWORDS, min_frequency=2, lower_case=True
                ),
                data=v1.DataSpec(
                    format=v1.CORPUS_FORMAT_CSV,
                    column="name",
                    encoding="latin-1",
                    test_fraction=0.05,
                ),
                network=v1.NetworkSpec(output_dropout=0.3, tied_weights=True),
                optimizer=v1.OptimizerSpec(
                    accumulation_steps=4,
                    schedule=v1.SCHEDULE_PLATEAU,
                    plateau_factor=0.25,
                    plateau_patience=3,
                    averaging=2,
                    final_rate=0.5,
                ),
                limits=v1.LimitsSpec(
                    max_tokens=1_000_000,
                    max_wall_time_s=7200,
                    early_stopping_patience=5,
                    max_memory_bytes=1_500_000_000,
                ),
                keep=v1.KEEP_LAST,
                init_from="old@stable",
                init_from_version=3,
                request_id="once",
            )
        ]

    def test_detaching_prints_the_job(self, server: FakeServer, service: FakeService) -> None:
        words = ["train", "-", "--model", STUCK, "--detach"]
        assert out(server.address, *words, data=b"hello") == "a1-job\n"
        assert service.trained
        first = objects(out(server.address, *words, "--json", data=b"hello"))
        assert first == [
            {"sequence": 1, "state": {"state": "queued", "reason": ""}, "job": "a2-job"}
        ]

    def test_a_refusal_is_printed_when_detaching_too(self, server: FakeServer) -> None:
        server.service.failure = status(3, "no such cell")
        done = run(server.address, "train", "-", "--model", "m", "--detach", data=b"x")
        assert complaint(done, 1) == "treadle: no such cell"

    def test_a_broken_connection_is_mended(self, server: FakeServer, service: FakeService) -> None:
        service.breaks = [(n, 14, "Socket closed") for n in (1, 3)]
        events = objects(out(server.address, "train", "-", "--model", "m", data=b"hello"))
        assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5]

    def test_a_lost_connection_names_the_command_to_come_back(
        self, server: FakeServer, service: FakeService
    ) -> None:
        service.breaks = [(2, 14, "Socket closed")]
        words = ["train", "-", "--model", "m", "--reconnect", "0"]
        done = run(server.address, *words, data=b"hello")
        sentence = complaint(done, 3)
        assert "the connection broke" in sentence
        assert sentence.endswith(
            "once the server is back, watch the job with `treadle watch a1-job`"
        )

    def test_a_paused_job_says_why(self, server: FakeServer) -> None:
        done = run(server.address, "train", "-", "--model", PAUSED, data=b"hello")
        assert complaint(done, 1) == "treadle: job a1-job is paused: the disk is full"


class TestWatch:
    def test_events_as_of_training(self, server: FakeServer, jobs: list[str]) -> None:
        events = objects(out(server.address, "watch", jobs[0]))
        assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5]
        later = objects(out(server.address, "watch", jobs[0], "--after", "3"))
        assert later == events[3:]
        quiet = objects(out(server.address, "watch", jobs[0], "--quiet"))
        assert quiet == events[4:]

    def test_ctrl_c_leaves_the_job_alone(self, server: FakeServer, jobs: list[str]) -> None:
        with subprocess.Popen(
            command(server.address, "watch", jobs[1]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            said = process.stderr.read().decode()
            assert process.wait(PATIENCE_S) == 130
        assert f"`treadle watch {jobs[1]}` shows it again" in said
        assert jobs[1] in server.service.jobs

    @pytest.mark.parametrize("action", ["cancel", "delete"])
    @pytest.mark.parametrize("said", ["a", "a1", "a1-jo", ""])
    def test_a_job_does_not_end_by_a_letter(
        self, server: FakeServer, service: FakeService, action: str, said: str
    ) -> None:
        job = service.accept(v1.TrainSpec(model="m"))
        assert run(server.address, "jobs", action, said).returncode != 0
        assert service.jobs[job].state == v1.JOB_STATE_SUCCEEDED
        out(server.address, "jobs", action, job)
        service.accept(v1.TrainSpec(model="m"))
        out(server.address, "jobs", action, "latest")

    def test_a_job_by_the_beginning_of_its_id_or_the_newest(
        self, server: FakeServer, jobs: list[str]
    ) -> None:
        assert {event["job"] for event in objects(out(server.address, "watch", "a1"))} == {jobs[0]}
        assert out(server.address, "jobs", "show", "latest").split()[1] == jobs[2]
        sentence = complaint(run(server.address, "watch", "a"), 2)
        assert sentence.startswith("treadle: 3 jobs begin with 'a': a3-job, a2-job, a1-job; ")
        assert complaint(run(server.address, "watch", "b"), 1) == "treadle: there is no job 'b'"

    def test_no_job_at_all(self, server: FakeServer) -> None:
        sentence = complaint(run(server.address, "watch", "latest"), 2)
        assert sentence == "treadle: there is no latest job: the server keeps none"


class TestJobs:
    def test_the_list(self, server: FakeServer, jobs: list[str]) -> None:
        listed = out(server.address, "jobs")
        head, *rows = (line.split() for line in listed.splitlines())
        assert head == ["id", "model", "state", "step", "loss", "age"]
        assert [row[:3] for row in rows] == [
            [jobs[2], PAUSED, "paused"],
            [jobs[1], STUCK, "running"],
            [jobs[0], "m", "succeeded"],
        ]
        assert rows[2][3:6] == ["200/200", "0.750", "valid"]
        assert rows[2][-1] == "d"
        assert rows[0][3:5] == ["-", "-"]
        assert out(server.address, "jobs", "list") == listed
        ids = [line["id"] for line in objects(out(server.address, "jobs", "--json"))]
        assert ids == jobs[::-1]

    def test_filters(self, server: FakeServer, jobs: list[str]) -> None:
        def ids(*words: str) -> list[str]:
            return [line["id"] for line in objects(out(server.address, "jobs", *words, "--json"))]

        assert ids("--state", "paused", "--state", "running") == [jobs[2], jobs[1]]
        assert ids("list", "--model", "m") == [jobs[0]]
        assert out(server.address, "jobs", "--model", "nix") == "no such jobs\n"

    def test_tags(self, server: FakeServer, service: FakeService, jobs: list[str]) -> None:
        words = ["train", "-", "--model", "m", "--detach", "--tag", "team=a=b", "--tag", "run="]
        words += ["--tag", "for/programs=yes"]
        job = out(server.address, *words, data=b"hello").strip()
        assert dict(service.jobs[job].spec.tags) == {
            "for/programs": "yes",
            "run": "",
            "team": "a=b",
        }
        head, row = out(server.address, "jobs", "--tag", "team=a=b", "--tag", "run=").splitlines()
        assert (head.split()[-1], row.split()[0]) == ("tags", job)
        assert row.endswith("  run= team=a=b")
        assert "tags" not in out(server.address, "jobs", "--model", STUCK)
        shown = out(server.address, "jobs", "show", job)
        assert "tags      for/programs=yes run= team=a=b" in shown.splitlines()
        assert out(server.address, "jobs", "--tag", "team=c") == "no such jobs\n"
        for wrong in ("team", "=a"):
            sentence = complaint(run(server.address, "jobs", "--tag", wrong), 2)
            assert f"{wrong!r} is not a tag such as team=search" in sentence

    def test_no_jobs(self, server: FakeServer) -> None:
        assert out(server.address, "jobs") == "no jobs yet\n"

    def test_show(self, server: FakeServer, service: FakeService, jobs: list[str]) -> None:
        service.jobs[jobs[0]].restarts = 2
        service.jobs[jobs[0]].reason = "max_steps"
        text = out(server.address, "jobs", "show", jobs[0])
        for line in (
            "id        a1-job",
            "model     m version 1",
            "state     succeeded: --max-steps",
            "accepted  2023-11-14 22:13:20 UTC",
            "step      200/200",
            "loss      0.750 valid",
            "corpus    5 B",
            "          note: the batch was shrunk to 1",
            "events    5",
            "restarts  2",
        ):
            assert line in text.splitlines()
        shown = objects(out(server.address, "jobs", "show", jobs[0], "--json"))[0]
        assert (shown["id"], shown["state"], shown["last_sequence"]) == (jobs[0], "succeeded", 5)

    def test_steering(self, server: FakeServer, service: FakeService, jobs: list[str]) -> None:
        job = jobs[1]
        assert out(server.address, "jobs", "pause", job) == f"job {job} is paused\n"
        assert out(server.address, "jobs", "resume", "a2") == f"job {job} is queued\n"
        assert out(server.address, "jobs", "cancel", job) == (
            f"job {job} is cancelled: its client asked for it\n"
        )
        assert objects(out(server.address, "jobs", "pause", job, "--json"))[0]["state"] == "paused"
        assert out(server.address, "jobs", "delete", job) == f"deleted job {job}\n"
        assert job not in service.jobs


class TestWeights:
    def test_generate_from_a_job(
        self, server: FakeServer, service: FakeService, jobs: list[str]
    ) -> None:
        out(server.address, "generate", "--job", "a2", "--best", "--prompt", "h")
        assert service.requests[-1] == v1.GenerateRequest(
            prompt="h", job=jobs[1], job_weights=v1.JOB_WEIGHTS_BEST
        )
        out(server.address, "generate", "--greedy", "m@stable")
        assert service.requests[-1].model == "m@stable"

    @pytest.mark.parametrize("words", [["-", "--job", "a2"], ["--job", "a2", "-"]])
    def test_score_with_a_job(
        self, server: FakeServer, service: FakeService, jobs: list[str], words: list[str]
    ) -> None:
        assert len(out(server.address, "score", *words, data=b"hello").splitlines()) == 2
        assert service.requests[-1] == v1.ScoreRequest(texts=["hello"], job=jobs[1])
        out(server.address, "score", "--job", "latest", "--text", "h")
        assert service.requests[-1] == v1.ScoreRequest(texts=["h"], job=jobs[2])


class TestAliases:
    def test_alias_and_unalias(self, server: FakeServer, service: FakeService) -> None:
        words = ["models", "alias", "m", "stable"]
        assert out(server.address, *words, "--version", "3") == "m@stable is version 3\n"
        assert out(server.address, *words) == "m@stable is version 2\n"
        assert objects(out(server.address, *words, "--json"))[0]["aliases"] == ["stable"]
        words = ["models", "unalias", "m", "stable"]
        assert out(server.address, *words) == "m has no alias stable any more\n"
        assert service.requests[-1] == v1.DeleteAliasRequest(model="m", alias="stable")


class TestCurve:
    def test_in_the_terminal(self, server: FakeServer, jobs: list[str]) -> None:
        lines = out(server.address, "curve", jobs[0]).splitlines()
        assert len(lines) == 20
        assert lines[0] == "m, job a1-job"
        assert max(map(len, lines[:-1])) < 80
        assert "●" in "".join(lines)
        small = out(server.address, "curve", "a1", "--width", "40", "--height", "8").splitlines()
        assert len(small) == 8
        assert max(map(len, small[:-1])) <= 40

    @pytest.mark.parametrize("name", ["a.svg", "b.SVG"])
    def test_pictures(self, server: FakeServer, jobs: list[str], tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        words = ["curve", jobs[0], "--out", str(path), "--width", "640", "--height", "360"]
        assert out(server.address, *words) == f"{path}\n"
        picture = path.read_text()
        assert picture.startswith("<svg ")
        assert 'width="640" height="360"' in picture

    def test_a_running_job_is_drawn_as_far_as_it_is(
        self, server: FakeServer, service: FakeService
    ) -> None:
        job = service.accept(v1.TrainSpec(model=STUCK))
        sentence = complaint(run(server.address, "curve", job), 1)
        assert sentence == f"treadle: job {job} has no losses yet: there is nothing to draw"
        progress = v1.TrainingProgress(step=7, train_loss=1.5)
        service.events[job].append(v1.JobEvent(sequence=3, job=job, progress=progress))
        service.jobs[job].last_sequence = 3
        drawn = out(server.address, "curve", job)
        assert "⠒⠒ train" in drawn
        assert "1.50 ┤" in drawn

    def test_a_place_that_cannot_be_written(self, server: FakeServer, jobs: list[str]) -> None:
        done = run(server.address, "curve", jobs[0], "--out", "no/such/x.svg")
        assert "cannot write no/such/x.svg: there is no folder no/such" in complaint(done, 2)
