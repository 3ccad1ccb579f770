"""The audit log: one line for each call that changes something or is refused, and no content."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.server.access.audit import audit_log
from treadle.server.access.audit.audit_file import AuditFile
from treadle.server.access.audit.audit_log import AuditLog
from treadle.server.access.audit.audited_call import (
    CHANGING,
    AuditedCall,
    audit_change,
    audit_hidden,
    audit_note,
    audit_refusal,
)
from treadle.server.access.caller import Caller, Role
from treadle.server.access.permissions import PERMISSIONS
from treadle.server.access.quota_book import quota_exceeded
from treadle.server.config import SettingError
from treadle.server.errors import StatusError, invalid, not_found
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, Server, requests, tiny_spec, wait_for

ADA = Caller("ada", Role.TRAINER, credential_id="k7")
DENIED = StatusError(grpc.StatusCode.PERMISSION_DENIED, "m may not be written")
UNKNOWN = StatusError(grpc.StatusCode.UNAUTHENTICATED, "the token is not valid")


def entries_of(path: Path) -> list[dict[str, Any]]:
    """Returns the entries of a file, each of which is one line."""
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(path: Path) -> Iterator[AuditLog]:
    log = AuditLog(str(path), 0, 3)
    yield log
    log.close(PATIENCE_S)


def call_of(log: AuditLog, method: str, request: Any = None, caller: Caller | None = ADA) -> Any:
    call = AuditedCall(log, method, "call-1", "ipv4:127.0.0.1:4")
    call.begin()
    call.caller = caller
    if request is not None:
        call.take(request, request.ByteSize())
    return call


# ---------------------------------------------------------------- entries


def test_a_call_that_changes_something_is_a_line(log: AuditLog, path: Path) -> None:
    call = call_of(log, "SetAlias", pb.SetAliasRequest(model="m", alias="best", version=3))
    call.sent = 70
    call.end()
    log.close(PATIENCE_S)
    (entry,) = entries_of(path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
    assert 0 <= entry.pop("duration_s") < PATIENCE_S
    assert entry == {
        "request_id": "call-1",
        "caller": "ada",
        "role": "trainer",
        "credential": "k7",
        "method": "SetAlias",
        "resource": {"model": "m", "alias": "best", "version": 3},
        "status": "OK",
        "bytes_in": 11,
        "bytes_out": 70,
        "peer": "ipv4:127.0.0.1:4",
    }


def test_which_calls_are_written_down(log: AuditLog, path: Path) -> None:
    quota = quota_exceeded("ada", "calls", 2, "2 of 2 calls run", 1.0)
    full = StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "the training queue is full")
    expected = []
    for method in PERMISSIONS:
        changes = method in CHANGING
        for error, status, written in (
            (None, "OK", changes),
            (not_found("m"), "NOT_FOUND", changes),
            (full, "RESOURCE_EXHAUSTED", changes),
            (DENIED, "PERMISSION_DENIED", True),
            (UNKNOWN, "UNAUTHENTICATED", True),
            (quota, "RESOURCE_EXHAUSTED", True),
        ):
            call_of(log, method).end(error)
            if written:
                expected.append((method, status, "calls" if error is quota else None))
    call_of(log, "DeleteJob").end(None, cancelled=True)
    expected.append(("DeleteJob", "CANCELLED", None))
    call_of(log, "Generate").end(None, cancelled=True)
    log.close(PATIENCE_S)
    found = [(each["method"], each["status"], each.get("quota")) for each in entries_of(path)]
    assert found == expected


def test_what_is_hidden_is_written_down(log: AuditLog, path: Path) -> None:
    for error in (not_found("m"), None, invalid([("model", "no")])):
        call_of(log, "Generate", pb.GenerateRequest(model="m"))
        audit_hidden()
        call_of(log, "Embed").end(error)  # another call hides nothing
        call = call_of(log, "Generate", pb.GenerateRequest(model="m"))
        audit_hidden()
        call.end(error)
    log.close(PATIENCE_S)
    (entry,) = entries_of(path)
    assert (entry["status"], entry["resource"]) == ("NOT_FOUND", {"model": "m"})


def test_every_method_that_changes_something_is_known() -> None:
    reading = {"WatchJob", "GetJob", "ListJobs", "ListModels", "GetModel", "GetServerInfo"}
    reading |= {"ListFiles", "GetFile", "ReadFile"}
    using = {"Generate", "Score", "ScoreStream", "Embed"}
    assert set(PERMISSIONS) - reading - using == CHANGING | {"LearnStream"}


def test_a_change_is_written_before_a_long_call_ends(log: AuditLog, path: Path) -> None:
    call = call_of(log, "Train", pb.TrainRequest(spec=pb.TrainSpec(model="m")))
    audit_change(job="job-1", corpora=["ab" * 32])
    wait_for(lambda: path.read_text().endswith("\n"))
    (entry,) = entries_of(path)
    assert entry["resource"] == {"model": "m", "job": "job-1", "corpora": ["ab" * 32]}
    call.end(None, cancelled=True)
    log.close(PATIENCE_S)
    assert len(entries_of(path)) == 1  # that its client left changes nothing


def test_each_published_model_is_a_line(log: AuditLog, path: Path) -> None:
    spec = pb.LearnStreamSpec(model="m@best")
    call = call_of(log, "LearnStream", pb.LearnStreamRequest(spec=spec))
    audit_change(model="m", version=2, alias="live")
    audit_note(model="other", version=0, alias="")
    audit_refusal(DENIED)
    audit_refusal(invalid([("publish.model", "no")]))
    audit_change(model="m", version=3, alias="")
    call.end(UNKNOWN)  # its token was revoked
    log.close(PATIENCE_S)
    assert [(each["status"], each["resource"]) for each in entries_of(path)] == [
        ("OK", {"model": "m", "version": 2, "alias": "live"}),
        ("PERMISSION_DENIED", {"model": "other"}),
        ("OK", {"model": "m", "version": 3}),
        ("UNAUTHENTICATED", {"model": "m", "version": 3}),
    ]


SECRET = "the secret words of the prompt"


def test_neither_content_nor_error_texts_are_written(log: AuditLog, path: Path) -> None:
    texts: list[Any] = [
        pb.GenerateRequest(model=SECRET, prompt=SECRET, regex=SECRET, state=SECRET.encode()),
        pb.ScoreRequest(model="m", texts=[SECRET], context=SECRET),
        pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="m", context=SECRET)),
        pb.TrainRequest(spec=pb.TrainSpec(model="m", request_id=SECRET)),
        pb.CancelJobRequest(job=SECRET),
        pb.SetAliasRequest(model="m", alias=SECRET),
    ]
    for request in texts:
        call = call_of(log, "Train", request)
        call.end(StatusError(grpc.StatusCode.PERMISSION_DENIED, SECRET))
        call_of(log, "Train", request).end(invalid([("prompt", SECRET)]))
    log.close(PATIENCE_S)
    assert len(entries_of(path)) == 2 * len(texts)
    assert not any(word in path.read_text() for word in ("secret", "words", "prompt"))


@pytest.mark.parametrize(
    "text",
    ["a\nb", '"}\n{"caller":"root"', "\x1b[2J", "\x7f", "\u2028", "\ud800", "x" * 100_000, "a b"],
)
def test_no_text_forges_a_line(log: AuditLog, path: Path, text: str) -> None:
    caller = Caller(text, Role.USER, credential_id=text)
    call = AuditedCall(log, "DeleteJob", "call-1", text)
    call.caller = caller
    call.note(job=text, corpora=[text])
    call.end(DENIED)
    log.close(PATIENCE_S)
    data = path.read_bytes()
    assert data.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in data[:-1])
    assert len(data) < 5000
    (entry,) = entries_of(path)
    assert entry["resource"] == {"job": "(invalid)", "corpora": ["(invalid)"]}


def test_refusals_of_one_caller_cannot_fill_the_files(
    log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_REFUSED_PER_S", 0)
    bob = Caller("bob", Role.TRAINER)
    for _ in range(1500):
        call_of(log, "Generate").end(DENIED)
        call_of(log, "CancelJob").end(not_found("x"))
    call_of(log, "SetAlias").end()
    call_of(log, "Generate", caller=bob).end(DENIED)
    monkeypatch.setattr(audit_log, "_REFUSED_PER_S", 10**9)
    time.sleep(0.001)
    call_of(log, "Generate").end(DENIED)
    log.close(PATIENCE_S)
    entries = entries_of(path)
    assert len(entries) == 1003
    ends = [(each["method"], each["caller"], each.get("left_out")) for each in entries[1000:]]
    assert ends == [
        ("SetAlias", "ada", None),
        ("Generate", "bob", None),
        ("Generate", "ada", 2000),
    ]


def test_unknown_callers_cannot_fill_the_files(
    log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_REFUSED_PER_S", 0)
    for _ in range(1500):
        call_of(log, "Generate", caller=None).end(UNKNOWN)
    call_of(log, "Generate").end(DENIED)
    monkeypatch.setattr(audit_log, "_REFUSED_PER_S", 10**9)
    time.sleep(0.001)
    call_of(log, "Generate", caller=None).end(UNKNOWN)
    log.close(PATIENCE_S)
    entries = entries_of(path)
    assert len(entries) == 1002
    assert entries[-1]["left_out"] == 500
    assert entries[0]["caller"] is None


# ---------------------------------------------------------------- the file


def test_the_file_is_rotated_by_its_size(path: Path) -> None:
    file = AuditFile(str(path), 100, 2)
    for number in range(20):
        file.write(b"%019d\n" % number)
    file.close()
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [path.with_name(f"{path.name}{end}").read_bytes() for end in (".2", ".1", "")]
    assert b"".join(kept) == b"".join(b"%019d\n" % number for number in range(5, 20))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_moved_away_is_begun_again(path: Path) -> None:
    file = AuditFile(str(path), 0, 1)
    file.write(b"one\n")
    path.rename(path.with_name("old"))
    file.write(b"two\n")
    assert path.read_bytes() == b"two\n"
    path.unlink()
    file.write(b"three\n")
    assert path.read_bytes() == b"three\n"
    file.close()
    again = AuditFile(str(path), 0, 1)
    again.write(b"four\n")
    again.close()
    assert path.read_bytes() == b"three\nfour\n"


@pytest.mark.parametrize("most_bytes", [0, 5])
def test_a_link_that_takes_the_place_of_the_file_is_not_followed(
    path: Path, tmp_path: Path, most_bytes: int
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"kept")
    file = AuditFile(str(path), most_bytes, 1)
    file.write(b"first\n")
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        file.write(b"second\n")
    assert victim.read_bytes() == b"kept"
    path.unlink()
    file.write(b"third\n")
    assert path.read_bytes() == b"third\n"
    file.close()


def test_the_target_of_a_link_is_rotated(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "audit"
    target.parent.mkdir()
    path.symlink_to(target)
    file = AuditFile(str(path), 5, 1)
    file.write(b"first\n")
    file.write(b"second\n")
    file.close()
    assert path.is_symlink()
    assert path.read_bytes() == b"second\n"
    assert target.with_name("audit.1").read_bytes() == b"first\n"


def test_standard_output_and_pipes_are_not_rotated(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    reader, writer = os.pipe()
    for place in ("-", f"/dev/fd/{writer}", "/dev/null"):
        file = AuditFile(place, 5, 1)
        for _ in range(2):
            file.write(b"a line\n")
        file.close()
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"a line\n" * 2
    assert capfdbinary.readouterr().out == b"a line\n" * 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_loses_lines_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write
    full = threading.Event()

    def half(descriptor: int, data: Any) -> int:
        """Writes ten bytes more, and then none."""
        if not full.is_set():
            return write(descriptor, data)
        if len(data) <= 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[: len(data) - 10])

    monkeypatch.setattr("treadle.server.access.audit.audit_file.os.write", half)
    log = AuditLog(str(path), 0, 1)
    log.write({"number": 1})
    wait_for(lambda: path.read_text().endswith("\n"))
    full.set()
    with caplog.at_level(logging.ERROR):
        for number in range(2, 5):
            log.write({"number": number})
            wait_for(log._waiting.empty)
        wait_for(lambda: "No space left" in caplog.text)
        wait_for(lambda: log._lost == 3)
        full.clear()
        log.write({"number": 5})
        log.close(PATIENCE_S)
    assert caplog.text.count("cannot be written") == 1
    assert "3 entries of the audit log" in caplog.text
    entries = entries_of(path)
    assert [entry.get("number") for entry in entries] == [1, None, 5]
    assert entries[1]["lost"] == 3


def test_nobody_waits_for_a_disk_that_hangs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = threading.Event()
    write = AuditFile.write

    def hang(self: AuditFile, lines: bytes) -> None:
        held.wait(PATIENCE_S)
        write(self, lines)

    monkeypatch.setattr(AuditFile, "write", hang)
    log = AuditLog(str(path), 0, 1)
    for number in range(audit_log._WAITING + 2000):
        log.write({"number": number})
    assert log._lost > 0
    log.close(0.01)
    held.set()
    log.write({"number": -1})
    log.close(PATIENCE_S)
    entries = entries_of(path)
    lost = sum(entry.get("lost", 0) for entry in entries)
    assert lost > 0
    numbers = [entry["number"] for entry in entries if "number" in entry]
    assert numbers[: audit_log._WAITING] == list(range(audit_log._WAITING))
    assert len(numbers) + lost == audit_log._WAITING + 2001


def test_a_file_that_cannot_be_rotated_grows(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*names: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("treadle.server.access.audit.audit_file.os.replace", refuse)
    file = AuditFile(str(path), 5, 1)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            file.write(b"a line\n")
    file.close()
    assert path.read_bytes() == b"a line\n" * 3
    assert caplog.text.count("cannot be rotated") == 1


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for place in (tmp_path, tmp_path / "none" / "audit", fifo, "a\0b"):
        with pytest.raises(SettingError, match=r"^--audit-log names .*, which cannot be written"):
            AuditLog(str(place), 0, 1)


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = AuditLog()
    call_of(log, "DeleteModel").end(DENIED)
    log.close()
    assert not log.is_on
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- a server


@pytest.mark.jit
def test_a_server_writes_down_its_calls(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    server = Server(tmp_path / "data", "--standby-workers", "0", "--audit-log", str(path))
    try:
        how: dict[str, Any] = {"metadata": [("x-request-id", "t-1")], "timeout": PATIENCE_S}
        text = b"the quick brown fox " * 40
        events = server.caller.stub.Train(requests(tiny_spec("m"), text), **how)
        *_, last = events
        job = last.job
        server.caller.generate("m", prompt="the quick", max_new_tokens=2)
        spec = pb.LearnStreamSpec(model="m")
        publish = pb.Publish(model="learned", alias="live")
        stream = [
            pb.LearnStreamRequest(spec=spec),
            pb.LearnStreamRequest(learn=pb.TextPiece(text="the quick")),
            pb.LearnStreamRequest(publish=publish),
        ]
        assert len(list(server.caller.stub.LearnStream(iter(stream), timeout=PATIENCE_S))) == 2
        with pytest.raises(grpc.RpcError):
            server.caller.stub.DeleteModel(pb.DeleteModelRequest(model="none", version=1))
        deletion = pb.DeleteModelRequest(model="m", version=1)
        server.caller.stub.DeleteModel(deletion, timeout=PATIENCE_S)
        server.caller.stub.DeleteJob(pb.DeleteJobRequest(job=job), timeout=PATIENCE_S)
        wait_for(lambda: path.read_text().count("\n") == 5)
    finally:
        server.close()
    entries = entries_of(path)
    found = [(entry["method"], entry["status"], entry["resource"]) for entry in entries]
    (corpus,) = entries[0]["resource"].pop("corpora")
    assert found == [
        ("Train", "OK", {"model": "m", "job": job}),
        ("LearnStream", "OK", {"model": "learned", "version": 1, "alias": "live"}),
        ("DeleteModel", "NOT_FOUND", {"model": "none", "version": 1}),
        ("DeleteModel", "OK", {"model": "m", "version": 1, "versions": [1]}),
        ("DeleteJob", "OK", {"job": job}),
    ]
    assert re.fullmatch(r"[0-9a-f]{64}", corpus)
    assert entries[0]["request_id"] == "t-1"
    assert entries[0]["bytes_in"] > len(text)
    assert entries[0]["peer"].startswith("ipv4:127.0.0.1:")
    assert {(entry["caller"], entry["role"]) for entry in entries} == {("", "admin")}
    assert "quick" not in path.read_text()
