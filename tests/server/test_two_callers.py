"""Two callers of one server: neither can use the other's states; refusals are written down."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from treadle.server.access.callers.access_token import AccessToken, new_access_token
from treadle.server.access.state_sealer import MAGIC
from treadle.v1 import sequence_pb2 as pb

from .harness import PATIENCE_S, TEXT, Server, requests, tiny_spec, wait_for

pytestmark = pytest.mark.jit

CALLERS = ("ada", "eve", "reader")


class Place:
    """A server with callers, a state key and an audit log."""

    def __init__(self, folder: Path) -> None:
        self.tokens: dict[str, AccessToken] = {name: new_access_token() for name in CALLERS}
        callers = self.callers = folder / "callers.toml"
        callers.touch(0o600)
        for name, token in self.tokens.items():
            role = "trainer" if name != "reader" else "reader"
            quota = "quotas = { jobs_queued = 0 }\n" if name == "eve" else ""
            with callers.open("a") as file:
                file.write(
                    f'[callers.{name}]\nrole = "{role}"\nmodels = ["*"]\n{quota}'
                    f'[[callers.{name}.tokens]]\nid = "{token.id}"\n'
                    f'sha256 = "{token.sha256.hex()}"\n'
                )
        self.keys = folder / "keys"
        self.keys.touch(0o600)
        self.keys.write_text("the first secret of this server\n")
        self.audit = folder / "audit.jsonl"
        self.server = Server(
            folder / "data",
            *("--standby-workers", "0", "--callers-file", str(callers)),
            *("--state-key-file", str(self.keys), "--audit-log", str(self.audit)),
        )
        self.stub = self.server.caller.stub
        self.job = ""
        """A job of ada."""

    def how(self, name: str) -> dict[str, Any]:
        """Returns how a caller calls."""
        metadata = [("authorization", f"Bearer {self.tokens[name].text}"), ("x-request-id", name)]
        return {"metadata": metadata, "timeout": PATIENCE_S}

    def generated(self, name: str, **fields: Any) -> pb.GenerateResult:
        request = pb.GenerateRequest(
            model="m", max_new_tokens=5, seed=1, return_state=True, **fields
        )
        *_, last = self.stub.Generate(request, **self.how(name))
        return last.result

    def streamed(self, name: str, **fields: Any) -> pb.ScoreStreamResult:
        spec = pb.ScoreStreamSpec(model="m", return_state=True, **fields)
        messages = [
            pb.ScoreStreamRequest(spec=spec),
            pb.ScoreStreamRequest(piece=pb.TextPiece(text="the quick")),
        ]
        *_, last = self.stub.ScoreStream(iter(messages), **self.how(name))
        return last.result

    def scored(self, name: str, **fields: Any) -> pb.TextScore:
        request = pb.ScoreRequest(model="m", texts=["the quick"], return_states=True, **fields)
        [score] = self.stub.Score(request, **self.how(name)).scores
        return score

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text("ascii").splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("callers"))
    *_, last = place.stub.Train(requests(tiny_spec("m"), TEXT), **place.how("ada"))
    assert last.HasField("completed")
    place.job = last.job
    yield place
    place.server.close()
    for sign in ("Traceback", "internal error", "never retrieved", "first secret"):
        assert sign not in place.server.log


def refusals(place: Place, name: str, state: bytes) -> set[tuple[object, str]]:
    """Returns how each call that takes a state refuses one; the field is named as the call does."""
    found = set[tuple[object, str]]()
    for call in (place.generated, place.scored, place.streamed):
        with pytest.raises(grpc.RpcError) as caught:
            call(name, state=state)
        found.add((caught.value.code(), caught.value.details() or ""))
    return found


def test_a_state_of_another_caller_is_refused_like_a_forged_one(place: Place) -> None:
    states = [
        place.generated("ada").state,
        place.scored("ada").state,
        place.streamed("ada").state,
    ]
    assert states[1] == states[2]
    forged = states[0][:8] + bytes(len(states[0]) - 8)
    expected = refusals(place, "ada", forged)
    ((code, _),) = expected
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    for state in states:
        assert state.startswith(MAGIC)
        assert refusals(place, "eve", state) == expected
        for call in (place.generated, place.scored, place.streamed):
            assert call("ada", state=state).state.startswith(MAGIC)


def test_the_same_request_returns_the_same_state(place: Place) -> None:
    assert place.generated("ada").state == place.generated("ada").state
    assert place.generated("ada").state != place.generated("eve").state
    first = place.generated("ada")
    rest = place.generated("ada", state=first.state)
    assert rest == place.generated("ada", state=first.state)


def test_refused_calls_are_written_down(place: Place) -> None:
    before = len(place.entries())
    with pytest.raises(grpc.RpcError):
        place.generated("reader", prompt="secret words")
    with pytest.raises(grpc.RpcError):
        list(place.stub.Train(requests(tiny_spec("m"), TEXT), **place.how("eve")))
    token = new_access_token().text
    stranger = (("authorization", f"Bearer {token}"), ("x-request-id", "x"))
    with pytest.raises(grpc.RpcError):
        place.stub.DeleteJob(pb.DeleteJobRequest(job="j"), metadata=stranger, timeout=PATIENCE_S)
    wait_for(lambda: len(place.entries()) == before + 3)
    keys = ("caller", "role", "method", "status", "request_id", "bytes_in")
    found = [tuple(entry[key] for key in keys) for entry in place.entries()[before:]]
    assert found[0] == ("reader", "reader", "Generate", "PERMISSION_DENIED", "reader", 0)
    assert found[1][:5] == ("eve", "trainer", "Train", "RESOURCE_EXHAUSTED", "eve")
    assert found[2] == (None, None, "DeleteJob", "UNAUTHENTICATED", "x", 0)
    assert place.entries()[before + 1]["quota"] == "jobs_queued"
    assert place.entries()[before]["credential"] == f"token:{place.tokens['reader'].id}"


def test_a_job_of_another_is_written_down_like_a_missing_one(place: Place) -> None:
    before = len(place.entries())
    for job in (place.job, "no-such-job"):
        with pytest.raises(grpc.RpcError):
            place.stub.GetJob(pb.GetJobRequest(job=job), **place.how("eve"))
        with pytest.raises(grpc.RpcError):
            list(place.stub.Generate(pb.GenerateRequest(job=job), **place.how("eve")))
    place.stub.GetJob(pb.GetJobRequest(job=place.job), **place.how("ada"))
    with pytest.raises(grpc.RpcError):
        place.stub.GetModel(pb.GetModelRequest(model="none"), **place.how("eve"))  # it may read it
    wait_for(lambda: len(place.entries()) >= before + 4)
    found = [
        (entry["caller"], entry["method"], entry["status"], entry["resource"])
        for entry in place.entries()[before:]
    ]
    assert found == [
        ("eve", method, "NOT_FOUND", {"job": job})
        for job in (place.job, "no-such-job")
        for method in ("GetJob", "Generate")
    ]


def test_no_secret_is_in_the_audit_log(place: Place) -> None:
    text = place.audit.read_text()
    for token in place.tokens.values():
        assert token.text.rpartition("_")[2] not in text
    assert "quick" not in text
    assert "secret" not in text


def test_a_change_of_the_callers_is_written_down(place: Place) -> None:
    before = len(place.entries())
    token = new_access_token()
    text = place.callers.read_text()
    entry = f'[[callers.reader.tokens]]\nid = "{token.id}"\nsha256 = "{token.sha256.hex()}"\n'
    place.callers.write_text(text.replace('models = ["*"]', 'models = ["m"]', 1) + entry)
    wait_for(lambda: len(place.entries()) > before)
    place.callers.write_text(text)
    wait_for(lambda: len(place.entries()) > before + 1)
    first, second = place.entries()[before:]
    shown = {"caller": "reader", "role": "reader", "credential": f"token:{token.id}"}
    assert first["added"] == second["removed"] == [shown]
    assert [each["caller"] for each in first["changed"]] == ["ada"]
    assert token.sha256.hex() not in place.audit.read_text()


def test_the_key_changes_while_the_server_runs(place: Place) -> None:
    before = place.generated("ada").state
    fresh = place.keys.with_name("fresh")
    fresh.touch(0o600)
    fresh.write_text("the second secret of this server\n" + place.keys.read_text())
    fresh.replace(place.keys)
    wait_for(lambda: place.generated("ada").state[:8] != before[:8])
    rest = place.generated("ada", state=before)
    place.keys.write_text("short")
    wait_for(lambda: "stay in use" in place.server.log)
    assert place.generated("ada", state=before) == rest
