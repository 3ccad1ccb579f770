"""TLS of a running server: who may connect, renewed files, and health checks."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import DAY, HOUR, Authority, Pair, channel_credentials, copy_over, write
from grpc import aio
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from treadle.server import healthcheck
from treadle.server.address import health_socket
from treadle.server.rpc import server_options
from treadle.server.rpc.listening import listen
from treadle.server.tls.certificate_files import CertificateFiles
from treadle.server.tls.certificate_reloader import CertificateReloader
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from .harness import NO_PROXY, PATIENCE_S, Caller, Server, tiny_spec, wait_for

Start = Callable[..., Server]

STREAMS = 64
RELOADS = 5


def tls_flags(pair: Pair, client_ca: Path | None = None) -> list[str]:
    flags = ["--tls-cert-file", str(pair.cert_file), "--tls-key-file", str(pair.key_file)]
    return flags if client_ca is None else [*flags, "--tls-client-ca-file", str(client_ca)]


def check_health(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "treadle.server", "--check-health", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def code_of(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """Returns the status of a call over a connection of its own."""
    caller = Caller(address, credentials)
    try:
        caller.info()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    finally:
        caller.close()
    return grpc.StatusCode.OK


class Mutual:
    """A server that asks for client certificates, and the authority of them and of its own."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        self.pair = self.authority.server()
        self.robot = self.authority.issue("robot")
        self.client_ca = folder / "clients.pem"
        write(self.client_ca, self.authority.ca, 0o644)
        self.server = Server(
            folder / "data",
            *("--standby-workers", "0"),
            *tls_flags(self.pair, self.client_ca),
            credentials=self.credentials,
        )

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        return channel_credentials(self.authority, self.robot)

    def seen(self) -> bytes:
        """Returns the certificate that a new connection gets, as PEM."""
        context = ssl.create_default_context(cafile=str(self.authority.ca_file))
        context.load_cert_chain(self.robot.cert_file, self.robot.key_file)
        context.set_alpn_protocols(["h2"])
        host, _, port = self.server.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), PATIENCE_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            found = connection.getpeercert(binary_form=True)
        assert found is not None
        return ssl.DER_cert_to_PEM_cert(found).encode()


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutual]:
    mutual = Mutual(tmp_path_factory.mktemp("mutual"))
    yield mutual
    mutual.server.close()
    assert "Traceback" not in mutual.server.log
    assert "PRIVATE KEY" not in mutual.server.log


@pytest.fixture(scope="module")
def model(mutual: Mutual) -> str:
    return mutual.server.caller.trained(tiny_spec("shared")).name


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name is short enough for a socket in it."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_a_client_with_a_certificate_of_the_authority_may_call(mutual: Mutual) -> None:
    assert code_of(mutual.server.address, mutual.credentials) is grpc.StatusCode.OK


def test_a_client_without_a_valid_certificate_does_not_get_in(mutual: Mutual) -> None:
    authority = mutual.authority
    other = Authority(authority.ca_file.parent / "other", "Test authority")  # of the same name
    wrong = {
        "none": None,
        "of another authority": other.issue("robot"),
        "expired": authority.issue("old", begins=-2 * DAY, ends=-HOUR),
        "not yet valid": authority.issue("young", begins=HOUR),
        "self-signed": authority.issue("alone", self_signed=True),
        "of a server": authority.server("another-server"),
    }
    codes = {
        what: code_of(mutual.server.address, channel_credentials(authority, pair))
        for what, pair in wrong.items()
    }
    assert codes == dict.fromkeys(wrong, grpc.StatusCode.UNAVAILABLE)
    assert code_of(mutual.server.address, None) is grpc.StatusCode.UNAVAILABLE
    assert mutual.server.caller.serving()


def test_a_client_does_not_trust_another_authority_or_another_host(
    start: Start, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "authority")
    other = Authority(tmp_path / "other")
    pair = authority.server(dns=["treadle.example"], ips=[])
    server = start(*tls_flags(pair))
    address = server.address
    assert code_of(address, channel_credentials(authority)) is grpc.StatusCode.UNAVAILABLE
    options = [*NO_PROXY, ("grpc.ssl_target_name_override", "treadle.example")]
    for trusted, said in ((authority, ""), (other, "CERTIFICATE_VERIFY_FAILED")):
        credentials = channel_credentials(trusted)
        with grpc.secure_channel(address, credentials, options) as channel:
            stub = sequence_pb2_grpc.SequenceServiceStub(channel)
            call = stub.GetServerInfo.future(pb.GetServerInfoRequest(), timeout=PATIENCE_S)
            assert said in (call.details() or "")
            assert (call.code() is grpc.StatusCode.OK) == (not said)


def hello(version: int) -> bytes:
    """Returns the first message of a client whose newest version of TLS is this one."""
    context = ssl.create_default_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    written = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), written, server_hostname="localhost").do_handshake()
    message = bytearray(written.read())
    assert message[9:11] == b"\3\3"
    message[9:11] = version.to_bytes(2, "big")  # RFC 5246, section 7.4.1.2
    return bytes(message)


@pytest.mark.parametrize(
    ("version", "accepted"), [(0x0300, False), (0x0301, False), (0x0302, False), (0x0303, True)]
)
def test_only_tls_1_2_and_newer_are_spoken(version: int, accepted: bool, mutual: Mutual) -> None:
    host, _, port = mutual.server.address.rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
        connection.sendall(hello(version))
        handshake = connection.recv(1)[:1] == b"\x16"
    assert handshake == accepted


@pytest.mark.parametrize("with_tls", [True, False])
def test_a_connection_that_sends_nothing_is_closed(
    with_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_options, "_HANDSHAKE_MS", 200)
    pair = Authority(tmp_path).server()
    files = CertificateFiles(str(pair.cert_file), str(pair.key_file), "")

    def read(address: str) -> None:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
            while connection.recv(1000):
                pass

    async def run() -> None:
        server = aio.server(options=server_options.server_options(1 << 20))
        credentials = CertificateReloader(files).credentials() if with_tls else None
        address = listen(server, "127.0.0.1:0", credentials)
        await server.start()
        await asyncio.to_thread(read, address)
        await server.stop(None)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S / 2))  # gRPC's own limit is 120 seconds


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_work(version: ssl.TLSVersion, mutual: Mutual) -> None:
    context = ssl.create_default_context(cafile=str(mutual.authority.ca_file))
    context.load_cert_chain(mutual.robot.cert_file, mutual.robot.key_file)
    context.set_alpn_protocols(["h2"])
    context.minimum_version = version
    context.maximum_version = version
    host, _, port = mutual.server.address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        assert connection.version() == version.name.replace("_", ".")
        assert connection.selected_alpn_protocol() == "h2"


async def stream(
    address: str, credentials: grpc.ChannelCredentials, model: str, done: asyncio.Event
) -> int:
    """Scores pieces until the end; returns how many were answered."""
    options = [*NO_PROXY, ("grpc.use_local_subchannel_pool", 1)]
    answers = 0
    async with aio.secure_channel(address, credentials, options) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        call: Any = stub.ScoreStream(timeout=PATIENCE_S)
        await call.write(pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model=model)))
        while not done.is_set():
            await call.write(pb.ScoreStreamRequest(piece=pb.TextPiece(text="the quick fox")))
            reply = await call.read()
            assert reply.WhichOneof("event") == "piece"
            answers += 1
            await asyncio.sleep(0.05)
        await call.done_writing()
        assert (await call.read()).WhichOneof("event") == "result"
        assert await call.code() is grpc.StatusCode.OK
    return answers


async def connect(address: str, credentials: grpc.ChannelCredentials, done: asyncio.Event) -> int:
    """Makes one connection after the other until the end; returns how many."""
    options = [*NO_PROXY, ("grpc.use_local_subchannel_pool", 1)]
    connections = 0
    while not done.is_set():
        async with aio.secure_channel(address, credentials, options) as channel:
            stub = sequence_pb2_grpc.SequenceServiceStub(channel)
            await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=PATIENCE_S)
        connections += 1
    return connections


def test_renewed_files_end_no_stream(mutual: Mutual, model: str) -> None:
    """64 streams, each with a connection of its own, new connections, and five renewals."""

    async def run() -> list[int | BaseException]:
        done = asyncio.Event()
        address = mutual.server.address
        streams = [
            asyncio.create_task(stream(address, mutual.credentials, model, done))
            for _ in range(STREAMS)
        ]
        streams.append(asyncio.create_task(connect(address, mutual.credentials, done)))
        for number in range(RELOADS):
            fresh = mutual.authority.server(f"fresh{number}")
            copy_over(fresh, mutual.pair)
            while await asyncio.to_thread(mutual.seen) != fresh.cert:
                await asyncio.sleep(0.1)
        done.set()
        return await asyncio.gather(*streams, return_exceptions=True)

    counts = asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert [count for count in counts if isinstance(count, BaseException)] == []
    assert len(counts) == STREAMS + 1
    assert min(count for count in counts if isinstance(count, int)) > RELOADS
    assert mutual.server.log.count("new connections get the certificate") >= RELOADS
    assert mutual.server.caller.serving(), "the connection from before the renewals"


def test_a_broken_pair_keeps_the_old_one_and_is_logged_once(mutual: Mutual) -> None:
    before = mutual.seen()
    good = mutual.pair.key
    log = len(mutual.server.log)
    mutual.pair.key_file.write_bytes(mutual.authority.server("else").key)
    wait_for(lambda: "the certificate in use stays" in mutual.server.log[log:])
    for _ in range(3):
        assert mutual.seen() == before
        assert code_of(mutual.server.address, mutual.credentials) is grpc.StatusCode.OK
    fresh = mutual.authority.server("repaired")
    copy_over(fresh, mutual.pair)
    wait_for(lambda: mutual.seen() == fresh.cert)
    said = mutual.server.log[log:]
    assert said.count("the certificate in use stays") == 1
    assert f"--tls-key-file names '{mutual.pair.key_file}', whose key is not of" in said
    assert good.decode() not in said


def test_new_authorities_of_clients_hold_for_new_connections(mutual: Mutual) -> None:
    other = Authority(mutual.authority.ca_file.parent / "next", "Next authority")
    guest = channel_credentials(mutual.authority, other.issue("guest"))
    address = mutual.server.address
    assert code_of(address, guest) is grpc.StatusCode.UNAVAILABLE
    mutual.client_ca.write_bytes(mutual.authority.ca + other.ca)
    wait_for(lambda: code_of(address, guest) is grpc.StatusCode.OK)
    assert code_of(address, mutual.credentials) is grpc.StatusCode.OK
    mutual.client_ca.write_bytes(mutual.authority.ca)
    wait_for(lambda: code_of(address, guest) is grpc.StatusCode.UNAVAILABLE)
    assert code_of(address, mutual.credentials) is grpc.StatusCode.OK


def test_the_health_check_needs_no_certificate(mutual: Mutual) -> None:
    done = check_health(mutual.server.address)
    assert (done.returncode, done.stdout) == (0, f"{mutual.server.address}: SERVING\n")
    done = check_health(TREADLE_ADDRESS=mutual.server.address)
    assert done.returncode == 0, "as in a container, whose command line has the flags of TLS"


def test_the_socket_of_health_checks_answers_nothing_else(mutual: Mutual) -> None:
    socket_address = health_socket(mutual.server.address)
    assert Caller(socket_address).serving()
    assert Caller(socket_address).serving("treadle.v1.SequenceService")
    assert code_of(socket_address, None) is grpc.StatusCode.UNIMPLEMENTED


def test_the_socket_of_another_user_is_not_trusted(
    mutual: Mutual, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OtherUser(struct.Struct):
        def unpack(self, buffer: object) -> tuple[int, int, int]:
            return 1, os.geteuid() + 1, 1

    monkeypatch.setattr(healthcheck, "_UCRED", OtherUser("iII"))
    assert healthcheck.check_health(mutual.server.address) == 1


def test_a_server_with_tls_elsewhere_is_explained(mutual: Mutual) -> None:
    done = check_health(mutual.server.address.replace("127.0.0.1", "localhost"))
    assert done.returncode == 1
    assert "one that speaks TLS answers health checks on its own machine" in done.stderr


@pytest.mark.parametrize("form", ["127.0.0.1:0", "unix:{}/health"])
def test_an_address_for_health_checks_alone(
    form: str, start: Start, tmp_path: Path, folder: Path
) -> None:
    authority = Authority(tmp_path / "authority")
    server = start(
        *("--health-address", form.format(folder)),
        *tls_flags(authority.server(), authority.ca_file),
        credentials=channel_credentials(authority, authority.issue("robot")),
    )
    address = server.log.partition("health checks are answered on ")[2].split()[0]
    assert server.caller.serving()
    assert check_health(address).returncode == 0
    assert check_health(TREADLE_HEALTH_ADDRESS=address).returncode == 0
    assert code_of(address, None) is grpc.StatusCode.UNIMPLEMENTED
    assert server.end() == 0
    assert not (folder / "health").exists()


def test_health_checks_follow_the_end_of_a_server(start: Start) -> None:
    server = start("--health-address", "127.0.0.1:0")
    address = server.log.partition("health checks are answered on ")[2].split()[0]
    caller = Caller(address)
    replies = caller.health.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    assert next(replies).status == health_pb2.HealthCheckResponse.SERVING
    assert server.end() == 0
    assert next(replies).status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError):
        next(replies)
    caller.close()


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [
        ("127.0.0.1", 2, "--health-address '127.0.0.1' lacks a port; give HOST:PORT"),
        (
            "{server}",
            1,
            "--health-address must be another address: cannot listen on {server}: address already",
        ),
    ],
)
def test_an_address_for_health_checks_that_cannot_be_is_named(
    address: str, code: int, said: str, mutual: Mutual, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
    command += ["--data-dir", str(tmp_path / "data")]
    command += ["--health-address", address.format(server=mutual.server.address)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"treadle-server: {said.format(server=mutual.server.address)}")


def test_a_server_whose_pair_is_wrong_does_not_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    pair = Pair(authority.server("one").cert_file, authority.server("two").key_file)
    command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
    command += ["--data-dir", str(tmp_path / "data"), *tls_flags(pair)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"treadle-server: --tls-key-file names '{pair.key_file}', whose key is")
    assert not (tmp_path / "data").exists()


def test_a_socket_may_speak_tls_as_well(start: Start, tmp_path: Path, folder: Path) -> None:
    authority = Authority(tmp_path / "authority")
    address = f"unix:{folder}/socket"
    server = start("--address", address, *tls_flags(authority.server()))
    assert check_health(address).returncode == 0
    options = [*NO_PROXY, ("grpc.ssl_target_name_override", "localhost")]
    with grpc.secure_channel(server.address, channel_credentials(authority), options) as channel:
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        assert stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=PATIENCE_S).version
    assert code_of(server.address, None) is grpc.StatusCode.UNAVAILABLE
