"""A conversation's memory is the caller's: it continues, forks and comes back from its bytes."""

from __future__ import annotations

import pytest
from google.rpc import code_pb2  # type: ignore[import-untyped]

from treadle.client import Client, FailedPreconditionError, InputError

from .fake import FakeService, status


def test_each_prompt_goes_on_from_the_last_reply(client: Client, service: FakeService) -> None:
    session = client.session("m", temperature=0.5)
    assert session.send("h", seed=3) == "ello"
    assert session.state == b"hello"  # the fake's state is all that was read
    assert session.send("j") == "ello"
    assert session.state == b"hellojello"
    first, second = service.requests
    assert (first.state, first.seed, first.temperature) == (b"", 3, 0.5)
    assert (second.state, second.HasField("seed"), second.temperature) == (b"hello", False, 0.5)
    assert first.return_state
    assert second.return_state


def test_the_version_that_answered_first_stays(client: Client, service: FakeService) -> None:
    session = client.session("m@prod")
    session.send("h")
    session.send("h")
    asked = [(request.model, request.version) for request in service.requests]
    assert asked == [("m@prod", 0), ("m", 1)]
    assert session.version == 1


def test_a_stored_state_goes_on(client: Client, service: FakeService) -> None:
    session = client.session("m", state=b"\x00kept", version=4)
    assert session.send("x") == "ello"
    assert (service.requests[0].state, service.requests[0].version) == (b"\x00kept", 4)
    assert session.state == b"\x00keptxello"


def test_a_fork_goes_its_own_way(client: Client) -> None:
    session = client.session("m", temperature=0.5)
    session.send("h")
    twin = session.fork()
    twin.send("j")
    assert session.state == b"hello"
    assert twin.state == b"hellojello"
    assert twin.version == 1


def test_reading_makes_no_text(client: Client, service: FakeService) -> None:
    session = client.session("m", state=b"s")
    session.read("abc")
    assert session.state == b"sabc"
    assert service.requests[0].max_new_tokens == 0
    assert service.requests[0].HasField("max_new_tokens")


def test_trouble_and_replies_left_early_leave_the_memory_alone(
    client: Client, service: FakeService
) -> None:
    session = client.session("m", state=b"kept")
    pieces = session.stream("x")
    assert next(pieces) == "el"
    pieces.close()  # type: ignore[attr-defined]
    assert session.state == b"kept"
    service.failure = status(code_pb2.FAILED_PRECONDITION, "the state is another model's")
    with pytest.raises(FailedPreconditionError, match="another model"):
        session.send("x")
    assert session.state == b"kept"


def test_a_session_needs_a_stored_model(client: Client) -> None:
    with pytest.raises(InputError, match="needs a stored model"):
        client.session("", job="a1-job")
