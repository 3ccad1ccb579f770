"""Tags of jobs: what they may be, that they stay with the job, and lists by them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from treadle.server.messages.page import Page
from treadle.server.names import tag_violations
from treadle.server.rpc import servicer
from treadle.server.storage.data_dir import DataDir
from treadle.server.storage.schema import JobRow
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Caller, Server, fields_of, tiny_spec
from .samples import job_row

JOBS = 250


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"a": ""},
        {"team/x.y-z_1": "any text, with ä, = and \N{SNOWMAN}"},
        {"k" * 63: "v" * 256},
    ],
)
def test_good_tags(tags: dict[str, str]) -> None:
    assert tag_violations(tags, "tags") == []


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("", "a", "must have names of 1 to 63 letters"),
        ("-a", "a", "the first a letter or digit, not '-a'"),
        ("a b", "a", "not 'a b'"),
        ("ä", "a", "not 'ä'"),
        ("k" * 64, "a", "not 'kkk"),
        ("a", "v" * 257, "must have values of at most 256 characters, not 257: shorten that of"),
        ("a", "x\ny", "must have values without control characters: change that of 'a'"),
        ("a", "\x1b[2J", "must have values without control characters"),
    ],
)
def test_bad_tags(name: str, value: str, fault: str) -> None:
    ((field, text),) = tag_violations({"good": "x", name: value}, "spec.tags")
    assert field == "spec.tags"
    assert text.startswith("spec.tags must have ")
    assert fault in text


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with jobs of which every tenth has a tag, and one that is damaged."""
    root: Path = tmp_path_factory.mktemp("tagged") / "data"
    data_dir = DataDir(root)
    for number in range(JOBS):
        tags = {"tenth": "yes", "number": str(number)} if number % 10 == 0 else {}
        spec = pb.TrainSpec(model="m", tags=tags).SerializeToString()
        row = job_row(
            f"job-{number:03}", spec=spec, state="failed", created_s=1.0 + number, ended_s=1e10
        )
        data_dir.database.add_job(row, b"")
    data_dir.database.add_job(job_row("damaged", spec=b"\xff", state="failed", ended_s=1e10), b"")
    data_dir.close()
    server = Server(root, "--job-retention-s", "0")
    yield server
    server.close()


def test_lists_by_tags_find_every_job_once_on_pages_of_any_size(tagged: Server) -> None:
    expected = [f"job-{number:03}" for number in reversed(range(0, JOBS, 10))]
    for page_size in (1, 7, 1000):
        found = [job.id for job in tagged.caller.jobs(tags={"tenth": "yes"}, page_size=page_size)]
        assert found == expected
    (one,) = tagged.caller.jobs(tags={"tenth": "yes", "number": "70"})
    assert (one.id, dict(one.spec.tags)) == ("job-070", {"tenth": "yes", "number": "70"})
    assert not list(tagged.caller.jobs(tags={"tenth": "no"}))
    assert not list(tagged.caller.jobs(tags={"tenth": "yes"}, model="other"))
    assert len(list(tagged.caller.jobs())) == JOBS + 1


def test_a_list_that_reads_many_jobs_goes_on_with_the_next_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page ends after `_MOST_READ` jobs, whether they have the tags or not."""
    monkeypatch.setattr(servicer, "_MOST_READ", 200)
    tagged = pb.TrainSpec(model="m", tags={"a": "b"}).SerializeToString()
    rows = [
        job_row(f"{number:03}", spec=tagged if number < 3 else b"", created_s=float(number))
        for number in reversed(range(500))
    ]

    async def read(
        states: object, model: str, after: tuple[float, str] | None, limit: int
    ) -> list[JobRow]:
        return [row for row in rows if after is None or row.place < after][:limit]

    async def no_backlog() -> SimpleNamespace:
        return SimpleNamespace(positions=dict)

    service = servicer.SequenceService.__new__(servicer.SequenceService)
    service._jobs = SimpleNamespace(  # type: ignore[assignment]
        registry=SimpleNamespace(page=read, fault=lambda row: ""),
        backlog=no_backlog,
    )

    def fill(tags: dict[str, str], after: tuple[float, str] | None) -> tuple[list[str], object]:
        page: Page[pb.Job] = Page(1000, 1 << 22)
        more = asyncio.run(service._fill(page, [], "", tags, after))
        return [job.id for job in page.items], more

    found, more = fill({"a": "b"}, None)
    assert (found, more) == ([], rows[199].place)
    assert fill({"a": "b"}, rows[199].place) == ([], rows[399].place)
    assert fill({"a": "b"}, rows[399].place) == (["002", "001", "000"], None)
    assert len(fill({}, None)[0]) == 500


def test_a_token_of_a_page_belongs_to_its_tags(tagged: Server) -> None:
    stub = tagged.caller.stub
    first = stub.ListJobs(
        pb.ListJobsRequest(page_size=1, tags={"tenth": "yes"}), timeout=PATIENCE_S
    )
    other = pb.ListJobsRequest(page_size=1, tags={"tenth": "no"}, page_token=first.next_page_token)
    with pytest.raises(grpc.RpcError, match="another filter"):
        stub.ListJobs(other, timeout=PATIENCE_S)


def test_wrong_tags_are_refused(caller: Caller) -> None:
    with pytest.raises(grpc.RpcError) as listed:
        list(caller.jobs(tags={"": "x"}))
    assert fields_of(listed.value) == ["tags"]
    spec = tiny_spec("tags")
    spec.tags["a"] = "v" * 257
    with pytest.raises(grpc.RpcError) as trained:
        list(caller.train(spec, TEXT))
    assert fields_of(trained.value) == ["spec.tags"]
    spec.tags.clear()
    spec.tags.update({f"k{number}": "" for number in range(65)})
    with pytest.raises(grpc.RpcError, match=r"spec\.tags must hold at most 64 entries, not 65"):
        list(caller.train(spec, TEXT))


def test_tags_stay_with_a_job_and_belong_to_its_order(caller: Caller) -> None:
    spec = tiny_spec("tagged", max_steps=1)
    spec.request_id = "the tagged order"
    spec.tags["team"] = "search"
    (*_, last) = caller.train(spec, TEXT)
    job = caller.job(last.job)
    assert dict(job.spec.tags) == dict(job.started.spec.tags) == {"team": "search"}
    assert [each.id for each in caller.jobs(tags={"team": "search"})] == [job.id]
    assert list(caller.train(spec, TEXT))[-1].job == job.id
    spec.tags["team"] = "other"
    with pytest.raises(grpc.RpcError, match=r"another spec \(it differs in spec\.tags\.team\)"):
        list(caller.train(spec, TEXT))
