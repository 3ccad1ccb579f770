"""A run outlives its connection: each event comes once, in order, whatever breaks."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from treadle.client import (
    CancelledError,
    Client,
    CorpusFile,
    FailedPreconditionError,
    InputError,
    InternalError,
    NotFoundError,
    UnavailableError,
)
from treadle.client.replicas.retry import FIRST_PAUSE_S
from treadle.v1 import sequence_pb2 as v1

from .fake import PAUSED, STUCK, FakeServer, FakeService

PATIENCE_S = 120.0

CANCELLED = 1
ABORTED = 10
INTERNAL = 13
UNAVAILABLE = 14


def numbers(run: Any) -> list[int]:
    return [event.sequence for event in run]


class TestBrokenConnections:
    @pytest.mark.parametrize(
        ("code", "details"),
        [
            (UNAVAILABLE, "Socket closed"),
            (UNAVAILABLE, "the server is going away"),
            (CANCELLED, ""),
            (ABORTED, "stream removed"),
            (INTERNAL, "Received RST_STREAM with error code 2"),
        ],
    )
    def test_each_event_comes_once_whatever_breaks(
        self, client: Client, service: FakeService, code: int, details: str
    ) -> None:
        service.breaks = [(n, code, details) for n in (1, 2, 4)]
        run = client.train("hello", model="m")
        failures: list[Any] = []
        run.on_break = failures.append
        assert numbers(run) == [1, 2, 3, 4, 5]
        assert run.result().name == "m"
        assert len(failures) == 3
        watched = [r.after_sequence for r in service.requests if isinstance(r, v1.WatchJobRequest)]
        assert watched == [1, 2, 4]
        assert service.corpus == b"hello"

    def test_a_server_that_ends_the_stream_too_early_is_asked_again(
        self, client: Client, service: FakeService
    ) -> None:
        job = service.accept(v1.TrainSpec(model="m"))
        whole = service.events[job]
        service.events[job] = whole[:3]
        run = client.watch(job)
        assert [next(run).sequence for _ in range(3)] == [1, 2, 3]
        restore = threading.Timer(0.3, lambda: service.events.__setitem__(job, whole))
        restore.start()
        assert numbers(run) == [4, 5]
        restore.join()

    @pytest.mark.parametrize("options", [{}, {"request_id": "r"}])
    def test_a_stream_that_ends_before_the_job_is_accepted_is_broken(
        self,
        client: Client,
        service: FakeService,
        monkeypatch: pytest.MonkeyPatch,
        options: dict[str, Any],
    ) -> None:
        """A request id makes it safe to send the corpus again."""
        whole = service._events
        streams = [lambda *_: iter(()), whole]
        monkeypatch.setattr(service, "_events", lambda *call: streams.pop(0)(*call))
        run = client.train("hello", model="m", **options)
        if options:
            assert numbers(run) == [1, 2, 3, 4, 5]
        else:
            with pytest.raises(InternalError, match="before the server accepted it") as caught:
                next(run)
            assert caught.value.broken

    def test_a_server_that_stops_and_comes_back(self) -> None:
        first = FakeServer()
        service = first.service
        address = first.address
        made: list[FakeServer] = []
        with Client(address) as client:
            run = client.train("hello", model=STUCK)
            assert [next(run).sequence, next(run).sequence] == [1, 2]
            first.stop()
            job = service.accept(v1.TrainSpec(model="m"))
            service.jobs[run.job] = service.jobs[job]  # it has gone on meanwhile
            service.events[run.job] = service.events[job]
            starter = threading.Timer(
                3 * FIRST_PAUSE_S, lambda: made.append(FakeServer(address, service))
            )
            starter.start()
            assert numbers(run) == [3, 4, 5]
            starter.join()
        made[0].stop()

    def test_there_is_an_end_to_coming_back(self) -> None:
        server = FakeServer()
        with Client(server.address) as client:
            run = client.train("hello", model=STUCK, reconnect_s=0.3)
            next(run)
            server.stop()
            with pytest.raises(UnavailableError, match="nothing listens at"):
                run.result()

    def test_zero_never_comes_back(self, client: Client, service: FakeService) -> None:
        service.breaks = [(2, UNAVAILABLE, "Socket closed")]
        run = client.train("hello", model="m", reconnect_s=0)
        with pytest.raises(UnavailableError):
            run.result()
        assert run.last_sequence == 2
        assert numbers(client.watch(run.job, run.last_sequence)) == [3, 4, 5]

    def test_an_answer_is_no_broken_connection(self, client: Client, service: FakeService) -> None:
        for code, error in (
            (ABORTED, FailedPreconditionError),
            (CANCELLED, CancelledError),
            (INTERNAL, InternalError),
        ):
            service.breaks = [(2, code, "the job's own sentence")]
            with pytest.raises(error, match="the job's own sentence"):
                client.train("hello", model="m").result()
        assert not [r for r in service.requests if isinstance(r, v1.WatchJobRequest)]

    def test_before_the_job_is_accepted_there_is_nothing_to_come_back_to(self) -> None:
        with Client("127.0.0.1:1") as nobody, pytest.raises(UnavailableError):
            nobody.train("hello", model="m").result()

    def test_closing_ends_the_pause_before_a_try(self) -> None:
        server = FakeServer()
        with Client(server.address) as client:
            run = client.train("hello", model=STUCK, reconnect_s=1e6)
            next(run)
            server.stop()
            closer = threading.Timer(0.5, run.close)
            closer.start()
            assert numbers(run) in ([], [2])
            closer.join(PATIENCE_S)

    def test_the_timeout_holds_for_all_tries_together(self) -> None:
        server = FakeServer()
        with Client(server.address) as client:
            run = client.train("hello", model=STUCK, timeout_s=1.0, reconnect_s=1e6)
            next(run)
            server.stop()
            with pytest.raises(UnavailableError):
                run.result()

    def test_a_gap_is_told(self, client: Client, service: FakeService) -> None:
        job = service.accept(v1.TrainSpec(model="m"))
        del service.events[job][2]
        with pytest.raises(InternalError, match=f"left out events 3 to 3 of job {job}"):
            client.watch(job).result()

    def test_events_that_come_again_are_dropped(self, client: Client, service: FakeService) -> None:
        job = service.accept(v1.TrainSpec(model="m"))
        service.events[job].insert(3, service.events[job][1])
        assert numbers(client.watch(job)) == [1, 2, 3, 4, 5]


class TestJobs:
    def test_a_run_knows_its_job(self, client: Client) -> None:
        run = client.train("hello", model=PAUSED)
        assert (run.job, run.state) == ("", v1.JOB_STATE_UNSPECIFIED)
        next(run)
        assert (run.job, run.state, run.started) == ("a1-job", v1.JOB_STATE_QUEUED, None)

    def test_a_paused_job_ends_the_run_with_its_reason(self, client: Client) -> None:
        run = client.train("hello", model=PAUSED)
        with pytest.raises(FailedPreconditionError, match="the disk is full"):
            run.result()
        assert run.state == v1.JOB_STATE_PAUSED

    def test_a_job_that_is_over_is_not_asked_for_again(
        self, client: Client, service: FakeService
    ) -> None:
        service.breaks = [(3, UNAVAILABLE, "Socket closed")]
        with pytest.raises(UnavailableError):
            client.train("hello", model=PAUSED).result()
        assert not [r for r in service.requests if isinstance(r, v1.WatchJobRequest)]

    def test_detaching_leaves_the_job_to_the_server(
        self, client: Client, service: FakeService
    ) -> None:
        run = client.train("hello", model=STUCK)
        assert run.detach() == "a1-job"
        assert run.detach() == "a1-job"
        assert service.over.wait(PATIENCE_S)
        assert service.trained
        assert list(run) == []

    def test_detaching_waits_for_the_whole_corpus(
        self, client: Client, service: FakeService
    ) -> None:
        with (
            pytest.raises(InputError, match="cannot read the corpus: gone"),
            client.train(Broken(), model="m") as run,
        ):
            run.detach()
        assert not service.trained

    def test_a_repeated_request_follows_the_same_job(
        self, client: Client, service: FakeService
    ) -> None:
        first = client.train("hello", model="m", request_id="once").detach()
        run = client.train("hello", model="m", request_id="once")
        assert numbers(run) == [1, 2, 3, 4, 5]
        assert run.job == first
        assert list(service.jobs) == [first]

    @pytest.mark.parametrize("after", [0, 1, 4])
    def test_watching_begins_anywhere(
        self, client: Client, service: FakeService, after: int
    ) -> None:
        job = service.accept(v1.TrainSpec(model="m"))
        run = client.watch(job, after)
        assert run.job == job
        assert numbers(run) == list(range(after + 1, 6))
        assert run.result().name == "m"

    def test_watching_no_such_job(self, client: Client) -> None:
        with pytest.raises(NotFoundError, match="no job 'nix'"):
            next(client.watch("nix"))
        with pytest.raises(InputError, match="after_sequence cannot be -1"):
            client.watch("nix", -1)


class Broken:
    """A file that cannot be read to its end."""

    def read(self, size: int) -> bytes:
        raise OSError("gone")


class TestFiles:
    def test_each_file_is_headed_by_what_it_is(
        self, client: Client, service: FakeService, tmp_path: Any
    ) -> None:
        path = tmp_path / "plays.txt"
        path.write_bytes(b"hello")
        files = [
            CorpusFile(path, weight=2.5),
            CorpusFile("wor", name="letters"),
            CorpusFile(b"ld", role="valid"),
            CorpusFile("!", role="test"),
        ]
        client.train(files, model="m").result()
        assert service.files == [
            v1.CorpusFile(name="plays.txt", role=v1.CORPUS_ROLE_TRAIN, weight=2.5),
            v1.CorpusFile(name="letters", role=v1.CORPUS_ROLE_TRAIN),
            v1.CorpusFile(role=v1.CORPUS_ROLE_VALID),
            v1.CorpusFile(role=v1.CORPUS_ROLE_TEST),
        ]
        assert service.corpus == b"helloworld!"
        assert service.trained

    def test_a_plain_corpus_has_no_head(self, client: Client, service: FakeService) -> None:
        client.train(["hel", "lo"], model="m").result()
        assert (service.files, service.corpus) == ([], b"hello")

    def test_one_file_alone(self, client: Client, service: FakeService) -> None:
        client.train(CorpusFile("hello", name="greeting"), model="m").result()
        assert [file.name for file in service.files] == ["greeting"]

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ([CorpusFile("x"), "y"], "a list of CorpusFile and of nothing else"),
            ([CorpusFile("x", role="exam")], "role cannot be 'exam'"),  # type: ignore[arg-type]
            ([CorpusFile("x", weight="much")], "weight cannot be"),  # type: ignore[arg-type]
            ([CorpusFile("x"), CorpusFile(5)], "not int"),  # type: ignore[arg-type]
        ],
    )
    def test_wrong_files(self, client: Client, files: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            client.train(files, model="m")

    @pytest.mark.parametrize(
        ("names", "options", "expected"),
        [
            (["a.jsonl"], {}, v1.CORPUS_FORMAT_JSONL),
            (["a.csv", "b.tsv"], {}, v1.CORPUS_FORMAT_CSV),
            (["a.csv"], {"format": "plain"}, v1.CORPUS_FORMAT_PLAIN),
            (["a.csv", "b"], {"format": "csv"}, v1.CORPUS_FORMAT_CSV),
            (["a.gz"], {"tokenizer": "bytes"}, v1.CORPUS_FORMAT_UNSPECIFIED),
            (["a.txt"], {}, v1.CORPUS_FORMAT_UNSPECIFIED),
        ],
    )
    def test_a_format_is_taken_from_the_paths(
        self,
        client: Client,
        service: FakeService,
        tmp_path: Any,
        names: list[str],
        options: Any,
        expected: int,
    ) -> None:
        for name in names:
            (tmp_path / name).write_text("hello")
        files = [CorpusFile(tmp_path / name) for name in names]
        client.train(files if len(files) > 1 else files[0].data, model="m", **options).result()
        assert service.requests[0].data.format == expected

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["a.csv", "b.txt"], "b.txt is of no known format: give one format with format="),
            (["a.gz"], "a.gz is compressed: unpack it first"),
        ],
    )
    def test_paths_that_tell_no_format(
        self, client: Client, tmp_path: Any, names: list[str], message: str
    ) -> None:
        files = [CorpusFile(tmp_path / name) for name in names]
        with pytest.raises(InputError, match=message):
            client.train(files, model="m")

    @pytest.mark.parametrize("value", [None, True, 1.5, b"csv", ["csv"], "", "table"])
    def test_what_is_not_a_value_of_an_enum(self, client: Client, value: Any) -> None:
        with pytest.raises(InputError, match=r"format cannot be .*: it is one of plain, jsonl"):
            client.train(b"x", model="m", format=value)
        with pytest.raises(InputError, match=r"role cannot be .*: it is one of train, valid"):
            client.train(CorpusFile(b"x", role=value), model="m")

    def test_paths_are_not_pieces(self, client: Client, tmp_path: Any) -> None:
        with pytest.raises(InputError, match="several files are a list of CorpusFile"):
            client.train([tmp_path / "a", tmp_path / "b"], model="m").result()
