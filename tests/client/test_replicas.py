"""A client of several servers: calls take turns, and move to another server where one is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import HealthServicer  # type: ignore[import-untyped]

from treadle.client import Client, InputError, UnavailableError
from treadle.client.access.credentials import Credentials
from treadle.client.address import check_address, is_local, is_loopback
from treadle.client.errors import ServerError
from treadle.client.messages.connection_faults import Peer
from treadle.client.messages.status import from_rpc_error
from treadle.client.replicas.balancing import channel_target, replica_options, service_config
from treadle.v1 import sequence_pb2 as v1

from .fake import FakeServer, FakeService
from .shell import complaint, run
from .test_errors import Refusal

SERVICE = v1.DESCRIPTOR.services_by_name["SequenceService"]

EFFECTS = {
    "CancelJob",
    "DeleteAlias",
    "DeleteFile",
    "DeleteJob",
    "DeleteModel",
    "ImportModel",
    "LearnStream",
    "PauseJob",
    "ResumeJob",
    "SetAlias",
    "Train",
    "UploadFile",
}
"""The calls that change something."""

SAFE_TWICE = {"CancelJob", "PauseJob", "ResumeJob", "SetAlias"}
"""Those of them that change nothing more if they come twice."""


class TestAddresses:
    @pytest.mark.parametrize(
        "address", ["a:1,b:2", "a:1, [::1]:2", "dns:///treadle:50051", "ipv4:10.0.0.1:1,10.0.0.2:1"]
    )
    def test_several_servers_are_an_address(self, address: str) -> None:
        check_address(address)

    @pytest.mark.parametrize(
        ("address", "fault"),
        [
            ("a:1,b", "'b' lacks a port"),
            ("a:1,", "'' is empty"),
            ("a:1,unix:/socket", "'unix:/socket' is one of several, and only HOST:PORT can be"),
            ("a:1,dns:///b:2", "'dns:///b:2' is one of several"),
            ("a:1,http://b:2", "'http://b:2' is a URL"),
        ],
    )
    def test_the_one_at_fault_is_named(self, address: str, fault: str) -> None:
        with pytest.raises(InputError) as caught:
            Client(address)
        assert fault in str(caught.value)

    def test_a_token_leaves_this_machine_only_if_all_servers_are_here(self) -> None:
        assert is_loopback("127.0.0.1:1,[::1]:2")
        assert not is_loopback("127.0.0.1:1,10.0.0.1:2")
        assert is_local("127.0.0.1:1,localhost:2")
        assert not is_local("127.0.0.1:1,10.0.0.1:2")
        with pytest.raises(InputError, match="without encryption"):
            Credentials("127.0.0.1:1,10.0.0.1:2", token="secret-token")

    def test_names_are_looked_up(self) -> None:
        assert channel_target("a:1") == "a:1"
        assert channel_target("dns:///a:1") == "dns:///a:1"
        assert channel_target("127.0.0.1:1,localhost:2") == "ipv4:127.0.0.1:1,127.0.0.1:2"
        assert channel_target("[::1]:1,10.0.0.1:2") == "ipv6:[::1]:1,[::ffff:10.0.0.1]:2"
        assert channel_target("a.invalid:1,127.0.0.1:2") == "ipv4:127.0.0.1:2"
        assert channel_target("a.invalid:1,b.invalid:2") == "dns:///a.invalid:1"


class TestSettings:
    def test_one_server_has_none(self) -> None:
        assert replica_options("127.0.0.1:1", tls=True) == []
        assert replica_options("unix:/a,b", tls=False) == []

    def test_the_certificates_of_a_list_are_for_its_first_name(self) -> None:
        named = ("grpc.ssl_target_name_override", "one.example")
        assert named in replica_options("one.example:1,two.example:2", tls=True)
        assert named not in replica_options("one.example:1,two.example:2", tls=False)
        assert len(replica_options("dns:///one.example:1", tls=True)) == 4

    def test_what_may_happen_twice_is_made_again(self) -> None:
        config = json.loads(service_config())
        assert config["healthCheckConfig"] == {"serviceName": ""}
        (method_config,) = config["methodConfig"]
        assert {name["service"] for name in method_config["name"]} == {SERVICE.full_name}
        named = {name["method"] for name in method_config["name"]}
        streams_requests = {"ScoreStream", "LearnStream", "Train", "ImportModel", "UploadFile"}
        assert set(SERVICE.methods_by_name) - named == (EFFECTS - SAFE_TWICE) | streams_requests


def test_the_server_that_failed_is_named() -> None:
    details = (
        "connections to all backends failing; last error: UNKNOWN: ipv4:10.0.0.2:50051: Failed to "
        "connect to remote host: Connection refused"
    )
    refusal: Any = Refusal(grpc.StatusCode.UNAVAILABLE, details)
    error = from_rpc_error(refusal, Peer("one:50051,two:50051", is_several=True))
    assert str(error).startswith(
        "nothing listens at 10.0.0.2:50051, the last tried of one:50051,two:50051: start"
    )
    assert error.unsent
    assert str(from_rpc_error(refusal, Peer("one:50051"))).startswith("nothing listens at one:")


class RefusedHealth(HealthServicer):  # type: ignore[misc]
    """The health service of a server where it needs a token, too."""

    def Watch(  # noqa: N802
        self, request: Any, context: Any, send_response_callback: Any = None
    ) -> None:
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")


class UnreadyHealth(HealthServicer):  # type: ignore[misc]
    """The health service of a server that has not started yet."""

    def __init__(self) -> None:
        super().__init__()
        self.set("", 2)  # NOT_SERVING


@pytest.mark.parametrize(
    ("health", "fault"),
    [
        (RefusedHealth, r"refuses the health check .* --public-services health, or give HOST:PORT"),
        (UnreadyHealth, "does not serve now"),
    ],
)
def test_a_server_whose_health_keeps_it_out_is_named(
    health: type[HealthServicer], fault: str
) -> None:
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        health_pb2_grpc.add_HealthServicer_to_server(health(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with (
                Client(f"dns:///127.0.0.1:{port}", timeout_s=30) as client,
                pytest.raises(UnavailableError, match=fault),
            ):
                client.get_model("m")
        finally:
            server.stop(0).wait()


@pytest.fixture
def twins() -> Iterator[tuple[FakeServer, FakeServer]]:
    first, second = FakeServer(), FakeServer()
    yield first, second
    first.stop()
    second.stop()


def asked(twins: tuple[FakeServer, FakeServer]) -> list[int]:
    """How many requests each server got."""
    return [len(server.service.requests) for server in twins]


def repeated(call: Callable[[], object], until: Callable[[], object]) -> bool:
    """Makes calls until something is true; returns whether it is within a minute."""
    end = time.monotonic() + 60
    while not until() and time.monotonic() < end:
        call()
        time.sleep(0.01)
    return bool(until())


def test_calls_take_turns_and_avoid_what_is_lost(twins: tuple[FakeServer, FakeServer]) -> None:
    first, second = twins
    with Client(f"{first.address},{second.address}") as client:
        client.wait_ready(30)
        assert repeated(lambda: client.get_model("m"), until=lambda: all(asked(twins)))
        first.stop()
        for _ in range(4):
            client.get_model("m")
        second.stop()
        with pytest.raises(UnavailableError, match=f"the last tried of {first.address}"):
            client.get_model("m")


def test_a_server_that_does_not_serve_gets_no_calls(twins: tuple[FakeServer, FakeServer]) -> None:
    first, second = twins
    first.health.set("", 2)  # NOT_SERVING
    with Client(f"{first.address},{second.address}") as client:
        for _ in range(6):
            client.get_model("m")
        assert not first.service.requests
        first.health.set("", 1)
        assert repeated(lambda: client.get_model("m"), until=lambda: asked(twins)[0])


def test_the_command_line_takes_several_servers(server: FakeServer, service: FakeService) -> None:
    lost = "127.0.0.1:1"
    done = run(f"{lost},{server.address}", "models", "list")
    assert done.returncode == 0, done.stderr
    assert "is one of several" in complaint(run(f"{lost},unix:/a", "info"), 2)


# ------------------------------------------------------------------------- real servers


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Starts a server, and returns it with its address."""
    words = ["--address", "127.0.0.1:0", "--data-dir", str(folder / "data")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "treadle.server", *words], stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    ready = process.stdout.readline().decode()
    assert "listening on" in ready, (folder / "log").read_text()
    return process, ready.split()[-1]


def test_a_killed_server_costs_its_callers_nothing(real_server: str, tmp_path: Path) -> None:
    process, lost = start(tmp_path)
    try:
        with (
            Client(real_server) as here,
            Client(lost) as there,
            Client(f"{lost},{real_server}") as client,
        ):
            here.train(
                "hello world " * 200, model="twins", max_steps=10, hidden_size=16, seed=1
            ).result()
            here.copy_model("twins", there)
            client.wait_ready(60)
            # More than the client buffers, so that the killed server has not sent it all.
            asked: dict[str, Any] = {"seed": 4, "max_new_tokens": 8000, "return_state": True}
            asked["log_probabilities"] = True
            with here.generate("twins", "hello", **asked) as undisturbed:
                whole = "".join(undisturbed), undisturbed.result()
            breaks: list[ServerError] = []
            streams = [
                client.generate("twins", "hello", on_break=breaks.append, **asked) for _ in range(4)
            ]
            pieces = [iter(stream) for stream in streams]
            begun = [next(each) for each in pieces]
            process.kill()
            found = [
                (first + "".join(rest), stream.result())
                for first, rest, stream in zip(begun, pieces, streams, strict=True)
            ]
            assert found == [whole] * 4
            assert breaks  # those that the lost server had begun
            want = here.score_text("twins", "hello world")
            assert [client.score_text("twins", "hello world") for _ in range(4)] == [want] * 4
    finally:
        process.kill()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
