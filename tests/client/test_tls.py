"""TLS and tokens against a server of the test's own: what is sent, and what a fault says."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import DAY, HOUR, Authority, Pair
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2  # type: ignore[import-untyped]

from treadle.client import (
    Client,
    InputError,
    InternalError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
    QuotaViolation,
    ResourceExhaustedError,
    TokenFile,
    UnauthenticatedError,
    UnavailableError,
)
from treadle.client.access.bearer_token import BearerToken, masked
from treadle.client.address import is_loopback
from treadle.server.access.callers import authenticator

from .fake import FakeServer, FakeService, status
from .shell import complaint, out, run

SECRET = "treadle_ab12_5ecret5ecret"


class Site:
    """An authority, a certificate of a server and one of a client."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ours")
        self.other = Authority(folder / "others", "Another authority")
        self.server = self.authority.server()
        self.client = self.authority.issue("ann")

    def credentials(self, pair: Pair | None = None, mutual: bool = False) -> Any:
        pair = pair or self.server
        roots = self.authority.ca if mutual else None
        return grpc.ssl_server_credentials([(pair.key, pair.cert)], roots, mutual)

    @property
    def ca(self) -> str:
        return str(self.authority.ca_file)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls_server(site: Site) -> Iterator[FakeServer]:
    server = FakeServer(credentials=site.credentials())
    yield server
    server.stop()


@pytest.fixture
def mutual_server(site: Site) -> Iterator[FakeServer]:
    server = FakeServer(credentials=site.credentials(mutual=True))
    yield server
    server.stop()


def failure(address: str, **settings: Any) -> str:
    with (
        Client(address, timeout_s=30, **settings) as client,
        pytest.raises(UnavailableError) as caught,
    ):
        client.server_info()
    return str(caught.value)


class TestTls:
    def test_a_server_of_a_known_authority(self, site: Site, tls_server: FakeServer) -> None:
        with Client(tls_server.address, ca_file=site.ca) as client:
            assert client.server_info().version
            assert client.health()

    def test_several_servers_with_certificates_for_the_first_name(
        self, site: Site, tls_server: FakeServer
    ) -> None:
        second = FakeServer(credentials=site.credentials())
        port = second.address.rpartition(":")[2]
        with Client(f"{tls_server.address},localhost:{port}", ca_file=site.ca) as client:
            client.wait_ready(60)
            for _ in range(200):
                client.get_model("m")
                if tls_server.service.requests and second.service.requests:
                    break
            assert tls_server.service.requests
            assert second.service.requests
        second.stop()

    def test_what_this_machine_trusts(
        self, site: Site, tls_server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "no authority that this client trusts" in failure(tls_server.address, tls=True)
        monkeypatch.setenv("SSL_CERT_FILE", site.ca)
        with Client(tls_server.address, tls=True) as client:
            assert client.server_info().version

    def test_a_client_shows_its_certificate(self, site: Site, mutual_server: FakeServer) -> None:
        pair: dict[str, Any] = {
            "cert_file": site.client.cert_file,
            "key_file": str(site.client.key_file),
        }
        with Client(mutual_server.address, ca_file=site.ca, **pair) as client:
            assert client.server_info().version

    def test_an_unknown_authority(self, site: Site, tls_server: FakeServer) -> None:
        said = failure(tls_server.address, ca_file=site.other.ca_file)
        assert said == (
            f"cannot reach a Treadle server at {tls_server.address}: no authority that this client "
            "trusts has signed its certificate: give the server's authority as ca_file"
        )

    @pytest.mark.parametrize(
        ("certificate", "expected"),
        [
            ({"begins": -2 * DAY, "ends": -HOUR}, "its certificate has expired"),
            ({"begins": HOUR, "ends": DAY}, "its certificate is not yet valid: compare the clocks"),
            ({"dns": ("example.com",), "ips": ()}, "its certificate is for another name"),
            ({"self_signed": True}, "no authority that this client trusts"),
        ],
    )
    def test_a_wrong_certificate_of_the_server(
        self, site: Site, certificate: dict[str, Any], expected: str
    ) -> None:
        wrong = site.authority.server("wrong", **certificate)
        server = FakeServer(credentials=site.credentials(wrong))
        assert expected in failure(server.address, ca_file=site.ca)
        server.stop()

    def test_one_side_alone_uses_tls(
        self, site: Site, server: FakeServer, tls_server: FakeServer
    ) -> None:
        assert "it does not use TLS: leave out tls" in failure(server.address, ca_file=site.ca)
        assert "if it uses TLS, give ca_file, or tls where" in failure(tls_server.address)

    def test_a_server_that_requires_a_certificate(
        self, site: Site, mutual_server: FakeServer
    ) -> None:
        said = failure(mutual_server.address, ca_file=site.ca)
        assert "require a certificate: give cert_file and key_file" in said
        wrong = site.other.issue("ann")
        pair = {"cert_file": wrong.cert_file, "key_file": wrong.key_file}
        said = failure(mutual_server.address, ca_file=site.ca, **pair)
        assert "is cert_file expired, or of an authority that the server does not trust?" in said

    def test_waiting_ends_with_the_reason(self, site: Site, tls_server: FakeServer) -> None:
        with (
            Client(tls_server.address, ca_file=site.other.ca_file) as client,
            pytest.raises(UnavailableError, match=r"within 0.3 s: cannot reach .* signed its"),
        ):
            client.wait_ready(0.3)

    def test_a_silent_server_does_not_delay_the_end(self, site: Site) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            with (
                Client(address, ca_file=site.ca) as client,
                pytest.raises(UnavailableError, match=r"was ready at .* within 0.1 s"),
            ):
                client.wait_ready(0.1)


class TestFiles:
    def fault(self, **settings: Any) -> str:
        with pytest.raises(InputError) as caught:
            Client("127.0.0.1:1", **settings)
        return str(caught.value)

    def test_a_file_that_is_missing(self, site: Site, tmp_path: Path) -> None:
        missing = tmp_path / "missing"
        assert self.fault(ca_file=missing) == (
            f"ca_file '{missing}' cannot be read: No such file or directory"
        )
        assert "cert_file '" in self.fault(cert_file=missing, key_file=site.client.key_file)
        assert "key_file '" in self.fault(cert_file=site.client.cert_file, key_file=missing)
        assert "ca_file '" in self.fault(ca_file=tmp_path)
        assert "ca_file 7.5 cannot be read" in self.fault(ca_file=7.5)
        with open(site.ca, "rb") as file:
            assert "give the name of a file" in self.fault(ca_file=file.fileno())
            assert file.read()  # it is still open

    def test_a_file_with_something_else(self, site: Site, tmp_path: Path) -> None:
        pair = {"cert_file": site.client.cert_file, "key_file": site.client.key_file}
        text = tmp_path / "text"
        text.write_text("hello")
        assert "holds no certificate that can be read" in self.fault(ca_file=text)
        assert "holds no certificate that" in self.fault(ca_file=site.client.key_file)
        assert f"cert_file '{text}' holds no certificate" in self.fault(
            **pair | {"cert_file": text}
        )
        assert f"key_file '{text}' holds no private key" in self.fault(**pair | {"key_file": text})
        text.write_text("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
        assert "cannot be read: give a certificate and" in self.fault(**pair | {"cert_file": text})
        text.write_bytes(b"# \xe9\n" + site.authority.ca)
        Client("127.0.0.1:1", ca_file=text).close()
        with open(text, "wb") as file:
            file.truncate((16 << 20) + 1)
        assert "is larger than 16,777,216 bytes" in self.fault(ca_file=text)

    def test_a_key_of_another_certificate(self, site: Site) -> None:
        other = site.authority.issue("other")
        said = self.fault(cert_file=site.client.cert_file, key_file=other.key_file)
        assert "belongs to another certificate than cert_file" in said

    def test_an_encrypted_key(self, site: Site) -> None:
        pair = site.authority.issue("locked", password=b"x")
        said = self.fault(cert_file=pair.cert_file, key_file=pair.key_file)
        assert "is encrypted, which gRPC cannot read" in said

    def test_arguments_that_contradict_each_other(self, site: Site) -> None:
        cert = site.client.cert_file
        assert self.fault(cert_file=cert) == "cert_file is given without key_file: give both"
        assert self.fault(key_file=cert) == "key_file is given without cert_file: give both"
        assert "ca_file is for TLS, which is turned off" in self.fault(tls=False, ca_file=site.ca)
        assert "tls cannot be 'yes'" in self.fault(tls="yes")


CALLS: list[tuple[str, Callable[[Client], object]]] = [
    ("GetServerInfo", lambda client: client.server_info()),
    ("Check", lambda client: client.health()),
    ("Generate", lambda client: client.generate_text("m")),
    ("Score", lambda client: client.score_text("m", "t")),
    ("ScoreStream", lambda client: list(client.score_stream("m", ["t"]))),
    ("LearnStream", lambda client: list(client.learn_stream("m", ["t"]))),
    ("Train", lambda client: client.train("hello", model="m").result()),
    ("WatchJob", lambda client: client.watch(client.train("hello", model="m").detach()).result()),
]


class TestToken:
    @pytest.mark.parametrize(("method", "call"), CALLS)
    def test_every_call_carries_it(
        self, server: FakeServer, method: str, call: Callable[[Client], object]
    ) -> None:
        with Client(server.address, token=f" {SECRET}\n") as client:
            call(client)
        found = [metadata for name, metadata in server.calls if name == method]
        assert found
        for metadata in found:
            assert metadata["authorization"] == f"Bearer {SECRET}"
            assert uuid.UUID(metadata["x-request-id"])

    def test_over_tls(self, site: Site, tls_server: FakeServer) -> None:
        with Client(tls_server.address, ca_file=site.ca, token=SECRET) as client:
            client.server_info()
        assert tls_server.calls[0][1]["authorization"] == f"Bearer {SECRET}"

    def test_without_one_no_header_is_sent(self, client: Client, server: FakeServer) -> None:
        client.server_info()
        assert "authorization" not in server.calls[0][1]

    def test_a_function_is_asked_for_each_call(self, server: FakeServer) -> None:
        tokens = iter(["first", "second"])
        with Client(server.address, token=lambda: next(tokens)) as client:
            client.server_info()
            client.generate_text("m")
        assert [each["authorization"] for _, each in server.calls] == [
            "Bearer first",
            "Bearer second",
        ]

    def test_a_function_that_fails(self, server: FakeServer) -> None:
        def fail() -> str:
            raise KeyError("the vault is closed")

        with Client(server.address, token=fail) as client, pytest.raises(KeyError, match="vault"):
            client.server_info()
        with (
            Client(server.address, token=lambda: "a b") as client,
            pytest.raises(InputError, match="token holds white space"),
        ):
            client.generate("m")

    @pytest.mark.parametrize(
        ("token", "reason"),
        [
            ("", "is empty"),
            (" \n", "is empty"),
            (f"{SECRET} {SECRET}", "holds white space"),
            (f"{SECRET}\n{SECRET}", "holds white space"),
            (f"{SECRET}é", "holds white space or characters that are not ASCII"),
            (f"Bearer {SECRET}", "begins with the word Bearer"),
            (SECRET * 1000, "is longer than 8,000 characters"),
            (b"secret", "cannot be of the type bytes"),
            (7, "cannot be of the type int"),
        ],
    )
    def test_what_is_no_token(self, token: Any, reason: str) -> None:
        with pytest.raises(InputError, match=reason) as caught:
            Client("127.0.0.1:1", token=token)
        assert "ecret" not in str(caught.value)

    @pytest.mark.parametrize(
        "address", ["example.com:1", "10.0.0.1:1", "vsock:2:1", "dns://8.8.8.8/localhost:1"]
    )
    def test_it_is_not_sent_to_another_machine_in_plaintext(self, site: Site, address: str) -> None:
        with pytest.raises(InputError, match="without encryption, where others can read it"):
            Client(address, token=SECRET)
        Client(address, token=SECRET, allow_plaintext_token=True).close()
        Client(address, token=SECRET, ca_file=site.ca).close()
        Client(address).close()

    @pytest.mark.parametrize(
        ("address", "loopback"),
        [
            ("localhost:1", True),
            ("127.0.0.1:1", True),
            ("[::1]:1", True),
            ("unix:/run/treadle", True),
            ("ipv4:127.0.0.1:1", True),
            ("dns:///localhost:1", False),
            ("dns:localhost:1", False),
            ("ipv4:example.com/127.0.0.1:1", False),
            ("ipv4:10.0.0.1:1,127.0.0.1:1", False),
            ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
            ("127.0.0.1.example.com:1", False),
            ("localhost.example.com:1", False),
        ],
    )
    def test_addresses_of_this_machine(self, address: str, loopback: bool) -> None:
        assert is_loopback(address) is loopback

    def test_it_is_never_shown(self, server: FakeServer, service: FakeService) -> None:
        bearer = BearerToken(SECRET)
        client = Client(server.address, token=SECRET)
        shown = [repr(each) for each in (bearer, vars(bearer), client, vars(client))]
        credentials = client._connection._credentials
        shown += [repr(vars(credentials)), repr(vars(credentials._token)), repr(credentials.peer)]
        service.failure = status(code_pb2.UNAUTHENTICATED, "this token is not known")
        with pytest.raises(UnauthenticatedError) as caught:
            client.server_info()
        error: BaseException | None = caught.value
        while error is not None:
            shown += [str(error), repr(error), repr(vars(error))]
            error = error.__cause__
        client.close()
        assert not [text for text in shown if "5ecret" in text]

    def test_how_it_is_masked(self) -> None:
        assert masked(SECRET) == "treadle_ab12_********"
        assert masked("eyJhbGciOiJIUzI1NiJ9.e30.abc") == "********"
        assert masked("treadle_5ecret") == "********"


class TestTokenFile:
    def test_it_is_read_again_when_it_changes(self, server: FakeServer, tmp_path: Path) -> None:
        path = tmp_path / "token"
        path.write_text("first\n")
        token = TokenFile(path)
        with Client(server.address, token=token) as client:
            client.server_info()
            new = tmp_path / "new"
            new.write_text("another")
            new.replace(path)
            client.server_info()
            path.unlink()
            with pytest.raises(InputError, match=r"token_file '.*' cannot be read: No such file"):
                client.server_info()
        assert [each["authorization"] for _, each in server.calls] == [
            "Bearer first",
            "Bearer another",
        ]
        assert "another" not in repr(token)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "is empty"),
            (b"5ecret\n5ecret\n", "holds white space"),
            (b"5ecret\xff", "it is not ASCII"),
            (b"5ecret" * 10_000, "is longer than"),
        ],
    )
    def test_what_holds_no_token(self, tmp_path: Path, content: bytes, reason: str) -> None:
        (tmp_path / "token").write_bytes(content)
        with pytest.raises(InputError, match=f"token_file '.*token' .*{reason}") as caught:
            TokenFile(tmp_path / "token")
        assert "5ecret" not in str(caught.value)


class TestRefusals:
    def test_an_unknown_caller(self, server: FakeServer, service: FakeService) -> None:
        service.failure = status(code_pb2.UNAUTHENTICATED, "this token is not known")
        with Client(server.address) as client, pytest.raises(UnauthenticatedError) as caught:
            client.server_info()
        assert str(caught.value) == (
            f"the server at {server.address} serves known callers only: give token"
        )
        assert isinstance(caught.value, PermissionDeniedError)
        with (
            Client(server.address, token="t") as client,
            pytest.raises(UnauthenticatedError, match=r"^this token is not known$"),
        ):
            client.generate_text("m")

    def test_the_file_of_a_token_is_named(
        self, server: FakeServer, service: FakeService, tmp_path: Path
    ) -> None:
        path = tmp_path / "secret.txt"
        path.write_text("password123")
        service.failure = status(code_pb2.UNAUTHENTICATED, authenticator._MALFORMED)
        path.chmod(0o600)
        said = complaint(run(server.address, "--token-file", str(path), "info"), 1)
        assert said == (
            f"treadle: the token in '{path}' is not one of the server at {server.address}, which "
            "`treadle-server token create` prints; perhaps it was cut"
        )
        with (
            Client(server.address, token="password123") as client,
            pytest.raises(UnauthenticatedError, match=r"^the token is not one of the server at"),
        ):
            client.server_info()
        service.failure = status(code_pb2.UNAUTHENTICATED, "the token has expired")
        with (
            Client(server.address, token=TokenFile(path)) as client,
            pytest.raises(UnauthenticatedError, match=r"has expired \(.* the one in '.*txt'\)$"),
        ):
            client.server_info()

    def test_a_quota(self, client: Client, service: FakeService) -> None:
        violation = error_details_pb2.QuotaFailure.Violation
        failure = error_details_pb2.QuotaFailure(
            violations=[
                violation(subject="caller:ann", description="60,000 a minute", quota_id="tokens"),
                violation(subject="calls", description="8 at once"),
            ]
        )
        retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=3))
        text = "the quota of ann is used up"
        service.failure = status(code_pb2.RESOURCE_EXHAUSTED, text, retry, failure)
        with pytest.raises(QuotaExceededError, match=f"^{text}$") as caught:
            client.generate_text("m")
        assert caught.value.quota == "tokens"
        assert caught.value.quotas[1] == QuotaViolation("calls", "8 at once")
        assert caught.value.retry_delay_s == 3
        placed = caught.value.placed("line 7")
        assert (str(placed), placed.quota, placed.retry_delay_s) == (f"line 7: {text}", "tokens", 3)
        service.failure = status(code_pb2.RESOURCE_EXHAUSTED, "the queue is full", retry)
        with pytest.raises(ResourceExhaustedError) as full:
            client.generate_text("m")
        assert type(full.value) is ResourceExhaustedError

    def test_the_id_of_a_call(
        self, client: Client, server: FakeServer, service: FakeService
    ) -> None:
        service.failure = status(code_pb2.INTERNAL, "the server failed")
        for call in (client.server_info, lambda: client.generate_text("m")):
            with pytest.raises(InternalError) as caught:
                call()
            sent = server.calls[-1][1]["x-request-id"]
            assert caught.value.request_id == sent
            assert str(caught.value) == f"the server failed (request id {sent})"
        service.failure = status(code_pb2.NOT_FOUND, "there is no model 'm'")
        with pytest.raises(NotFoundError, match=r"^there is no model 'm'$") as missing:
            client.get_model("m")
        assert missing.value.request_id == server.calls[-1][1]["x-request-id"]
        ids = {metadata["x-request-id"] for _, metadata in server.calls}
        assert len(ids) == len(server.calls)

    def test_a_server_that_names_the_id_itself(self, server: FakeServer) -> None:
        from treadle.client.messages.status import from_rpc_error

        from .test_errors import Refusal

        refusal = Refusal(grpc.StatusCode.INTERNAL, "request 77 failed")
        assert str(from_rpc_error(refusal, "host:1", "77")) == "request 77 failed"


class TestRenewal:
    def test_a_run_continues_with_the_next_token(
        self, server: FakeServer, service: FakeService
    ) -> None:
        """A server ends the calls of a token that expires."""
        tokens = iter(["first", "second"])
        service.breaks = [(3, code_pb2.UNAUTHENTICATED, "the token has expired")]
        with Client(server.address, token=lambda: next(tokens)) as client:
            run_ = client.train("hello", model="hello")
            assert [event.sequence for event in run_] == [1, 2, 3, 4, 5]
        assert [each["authorization"] for _, each in server.calls] == [
            "Bearer first",
            "Bearer second",
        ]

    def test_a_token_that_is_not_accepted_ends_it(
        self, server: FakeServer, service: FakeService
    ) -> None:
        service.breaks = [(3, code_pb2.UNAUTHENTICATED, "the token has expired")]
        with (
            Client(server.address, token="t") as client,
            pytest.raises(UnauthenticatedError, match="expired"),
        ):
            client.train("hello", model="hello").result()
        with Client(server.address, token=lambda: "t") as client:
            service.failure = status(code_pb2.UNAUTHENTICATED, "this token is not known")
            with pytest.raises(UnauthenticatedError, match="not known"):
                client.watch("a1-job").result()


class TestCommandLine:
    def test_flags(self, site: Site, mutual_server: FakeServer, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(SECRET)
        (tmp_path / "token").chmod(0o600)
        words = ["--ca-file", site.ca, "--token-file", str(tmp_path / "token")]
        words += ["--cert-file", str(site.client.cert_file)]
        words += ["--key-file", str(site.client.key_file)]
        assert out(mutual_server.address, *words, "health") == "serving\n"
        assert out(mutual_server.address, "health", *words) == "serving\n"
        assert mutual_server.calls[-1][1]["authorization"] == f"Bearer {SECRET}"

    def test_variables(self, site: Site, tls_server: FakeServer) -> None:
        done = run(tls_server.address, "health", TREADLE_CA_FILE=site.ca, TREADLE_TOKEN=SECRET)
        assert done.stdout == b"serving\n"
        assert tls_server.calls[-1][1]["authorization"] == f"Bearer {SECRET}"
        done = run(tls_server.address, "health", TREADLE_TLS="1", SSL_CERT_FILE=site.ca)
        assert done.stdout == b"serving\n"

    def test_faults_name_flags(self, site: Site, tls_server: FakeServer, tmp_path: Path) -> None:
        address = tls_server.address
        assert "give --ca-file, or --tls where" in complaint(run(address, "info"), 3)
        said = complaint(run(address, "--tls", "info"), 3)
        assert "give the server's authority as --ca-file" in said
        said = complaint(run(address, "--ca-file", str(tmp_path / "x"), "info"), 2)
        assert "--ca-file '" in said
        cert = str(site.client.cert_file)
        said = complaint(run(address, "--cert-file", cert, "info"), 2)
        assert "--cert-file is given without --key-file: give both" in said
        said = complaint(run(address, "--no-tls", "--ca-file", site.ca, "info"), 2)
        assert "--ca-file is for TLS, which is turned off" in said
        said = complaint(run("example.com:1", "info", TREADLE_TOKEN=SECRET), 2)
        assert "give --ca-file, or give --tls where" in said
        assert "--allow-plaintext-token permits it" in said
        assert SECRET not in said

    def test_an_unknown_caller(self, server: FakeServer, service: FakeService) -> None:
        service.failure = status(code_pb2.UNAUTHENTICATED, "this token is not known")
        said = complaint(run(server.address, "models"), 1)
        assert said.endswith("known callers only: give --token-file, or set TREADLE_TOKEN")

    @pytest.mark.parametrize(
        "words", [["--token", SECRET, "info"], ["info", "--token", SECRET], [f"--token={SECRET}"]]
    )
    def test_a_token_is_no_word_of_a_command(self, words: list[str]) -> None:
        said = complaint(run("127.0.0.1:1", *words), 2)
        assert "there is no --token: every user of this machine can see" in said
        assert SECRET not in said

    def test_a_word_after_two_dashes_is_text(self, server: FakeServer) -> None:
        assert '"text": "--token"' in out(server.address, "embed", "m", "--", "--token")
