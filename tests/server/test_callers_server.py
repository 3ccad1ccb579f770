"""Callers of a running server with TLS: every RPC refuses them without a valid credential."""

from __future__ import annotations

import datetime
import json
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority, channel_credentials
from google.protobuf import message_factory

from treadle.server.access.callers.access_token import new_access_token
from treadle.server.access.permissions import PERMISSIONS
from treadle.v1 import sequence_pb2 as pb
from treadle.v1 import sequence_pb2_grpc

from .harness import NO_PROXY, PATIENCE_S, TEXT, Server, long_spec, requests, tiny_spec, wait_for
from .key_server import AUDIENCE, ISSUER, KeyServer, Signer
from .web import SERVICE as WEB_SERVICE
from .web import Web

SERVICE = pb.DESCRIPTOR.services_by_name["SequenceService"]
METHODS = {method.name: method for method in SERVICE.methods}
REFUSED = grpc.StatusCode.UNAUTHENTICATED
JSON = "application/json"
Metadata = tuple[tuple[str, str | bytes], ...]

SOON_S = 10.0
"""Seconds within which a call ends whose credential is not valid any more, on a busy machine."""


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


class Guarded:
    """A server with TLS and callers, and a channel to it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "authority")
        pair = self.authority.server()
        self.file = folder / "callers.toml"
        self.provider = KeyServer(Signer())
        self.signer = self.provider.signers[0]
        self.admin = self.token("create", "root", "--role", "admin")
        self.reader = self.token("create", "reader", "--role", "reader", "--models", "*")
        with self.file.open("a") as file:
            file.write(
                f'\n# Below here the file is written by hand.\n[oidc]\nissuer = "{ISSUER}"\n'
                f'audience = "{AUDIENCE}"\njwks_url = "{self.provider.url}"\nleeway_s = 0\n'
                '[[oidc.grants]]\nvalue = "ml"\nrole = "user"\nmodels = ["*"]\n'
            )
        self.server = Server(
            folder / "data",
            *("--standby-workers", "0", "--training-slots", "2", "--log-level", "debug"),
            *("--callers-file", str(self.file), "--http-address", "127.0.0.1:0"),
            *("--tls-cert-file", str(pair.cert_file), "--tls-key-file", str(pair.key_file)),
            credentials=channel_credentials(self.authority),
        )
        self.channel = self.server.caller.channel
        self.stub = sequence_pb2_grpc.SequenceServiceStub(self.channel)

    def web(self, token: str) -> Web:
        """Returns an HTTP client with a token."""
        tls = ssl.create_default_context(cafile=str(self.authority.ca_file))
        return Web(self.server.http_url, tls, token)

    def command(self, *words: str) -> str:
        """Runs `treadle-server token`; returns what it prints."""
        command = [sys.executable, "-m", "treadle.server", "token", *words]
        done = subprocess.run(
            [*command, "--callers-file", str(self.file)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        return done.stdout.strip()

    def token(self, *words: str) -> str:
        """Returns the token that a command prints."""
        token = self.command(*words)
        assert token.startswith("treadle_")
        return token

    def write(self, name: str, role: str, expires: datetime.datetime) -> str:
        """Adds a caller with a token that expires at a time; returns the token."""
        token = new_access_token()
        with self.file.open("a") as file:
            file.write(
                f'\n[callers.{name}]\nrole = "{role}"\nmodels = ["*"]\n[[callers.{name}.tokens]]\n'
                f'id = "{token.id}"\nsha256 = "{token.sha256.hex()}"\n'
                f"expires = {expires.isoformat()}\n"
            )
        return token.text

    def answer(self, method: str, metadata: Metadata) -> tuple[grpc.StatusCode, str]:
        """Calls a method with an empty request; returns the status."""
        descriptor = METHODS[method]
        output: Any = message_factory.GetMessageClass(descriptor.output_type)
        request: Any = message_factory.GetMessageClass(descriptor.input_type)()
        call: Any = self.channel.stream_stream(
            f"/{SERVICE.full_name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=output.FromString,
        )
        try:
            for _ in call(iter([request]), metadata=metadata, timeout=PATIENCE_S):
                pass
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code, str(error.details())
        return grpc.StatusCode.OK, ""

    def code(self, metadata: Metadata) -> grpc.StatusCode:
        return self.answer("GetServerInfo", metadata)[0]

    def accepts(self, metadata: Metadata) -> bool:
        return self.code(metadata) is grpc.StatusCode.OK

    def close(self) -> None:
        self.server.close()
        self.provider.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    yield guarded
    guarded.close()
    for sign in ("Traceback", "internal error", "never retrieved"):
        assert sign not in guarded.server.log


@pytest.fixture(scope="module")
def refused(guarded: Guarded) -> dict[str, Metadata]:
    """Credentials that are not valid, by what is wrong with them."""
    now = datetime.datetime.now(datetime.UTC)
    other = new_access_token().text
    expired = guarded.write("expired", "admin", now - datetime.timedelta(days=1))
    revoked = guarded.token("create", "revoked", "--role", "admin")
    wait_for(lambda: guarded.accepts(bearer(revoked)))
    guarded.command("revoke", "revoked")
    wait_for(lambda: not guarded.accepts(bearer(revoked)))
    wrong_secret = guarded.admin.rpartition("_")[0] + "_" + other.rpartition("_")[2]
    return {
        "no token": (),
        "unknown id": bearer(other),
        "wrong secret": bearer(wrong_secret),
        "malformed": bearer("secret"),
        "empty": (("authorization", ""),),
        "no bearer": (("authorization", guarded.admin),),
        "expired": bearer(expired),
        "revoked": bearer(revoked),
        "two headers": bearer(guarded.admin) * 2,
        "one of two": bearer(other) + bearer(guarded.admin),
        "other header": (("x-authorization", f"Bearer {guarded.admin}"),),
        "JWT of a stranger": bearer(Signer().token()),
        "JWT expired": bearer(guarded.signer.token(exp=1)),
        "JWT for another": bearer(guarded.signer.token(aud="other")),
    }


def test_every_method_refuses_every_wrong_credential(
    guarded: Guarded, refused: dict[str, Metadata]
) -> None:
    """Before it has read anything of the request, and with the same words for every method."""
    assert sorted(METHODS) == sorted(PERMISSIONS)
    for fault, metadata in refused.items():
        answers = {method: guarded.answer(method, metadata) for method in METHODS}
        assert {code for code, _ in answers.values()} == {REFUSED}, fault
        assert len({message for _, message in answers.values()}) == 1, fault
    messages = {fault: guarded.answer("Train", refused[fault])[1] for fault in refused}
    assert messages["unknown id"] == messages["wrong secret"] == messages["revoked"]
    assert "requires a token" in messages["no token"]
    assert "the token has expired" in messages["expired"]


def test_every_method_accepts_a_valid_token(guarded: Guarded) -> None:
    """The empty request is refused by then, or answered."""
    for method in METHODS:
        code, message = guarded.answer(method, bearer(guarded.admin))
        assert code not in (REFUSED, grpc.StatusCode.PERMISSION_DENIED), (method, message)


def test_a_reader_is_refused_what_its_role_lacks(guarded: Guarded) -> None:
    for method, role in PERMISSIONS.items():
        code, message = guarded.answer(method, bearer(guarded.reader))
        denied = role.title != "reader"
        assert (code is grpc.StatusCode.PERMISSION_DENIED) == denied, (method, message)


def test_a_silent_stream_without_a_token_is_refused_at_once(guarded: Guarded) -> None:
    silence = threading.Event()

    def nothing() -> Iterator[pb.TrainRequest]:
        silence.wait(PATIENCE_S)
        yield from ()

    try:
        with pytest.raises(grpc.RpcError) as caught:
            next(guarded.stub.Train(nothing(), timeout=PATIENCE_S))
    finally:
        silence.set()
    assert caught.value.code() is REFUSED


def ends_with(call: Any) -> grpc.StatusCode:
    """Reads a stream to its end, and returns its status."""
    try:
        for _ in call:
            pass
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


class Streams:
    """Streams of one caller that do not end by themselves, one of each kind.

    Args:
        stub: Of the server.
        job: A job that runs.
        metadata: The credential of the caller.
    """

    def __init__(self, stub: Any, job: str, metadata: Metadata) -> None:
        self._silence = threading.Event()
        how: dict[str, Any] = {"metadata": metadata, "timeout": PATIENCE_S}
        watched = stub.WatchJob(pb.WatchJobRequest(job=job), **how)
        next(watched)
        scored = stub.ScoreStream(
            self._requests(
                pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="short")),
                pb.ScoreStreamRequest(piece=pb.TextPiece(text="the quick ")),
            ),
            **how,
        )
        next(scored)
        learned = stub.LearnStream(
            self._requests(
                pb.LearnStreamRequest(spec=pb.LearnStreamSpec(model="short")),
                pb.LearnStreamRequest(learn=pb.TextPiece(text="the quick ")),
            ),
            **how,
        )
        next(learned)
        self.calls = [watched, scored, learned]

    def _requests(self, *first: Any) -> Iterator[Any]:
        yield from first
        self._silence.wait(PATIENCE_S)

    @property
    def are_open(self) -> bool:
        """Whether all of them run."""
        return all(call.is_active() for call in self.calls)

    def codes(self) -> set[grpc.StatusCode]:
        """Waits for the end of all; returns the statuses."""
        return set(map(ends_with, self.calls))

    def close(self) -> None:
        for call in self.calls:
            call.cancel()
        self._silence.set()


def test_running_calls_of_a_credential_that_ends_end(guarded: Guarded) -> None:
    admin: Any = {"metadata": bearer(guarded.admin), "timeout": PATIENCE_S}
    list(guarded.stub.Train(requests(tiny_spec("short"), TEXT), **admin))
    run = guarded.stub.Train(requests(long_spec("long"), TEXT), **admin)
    job = next(run).job
    revoked = guarded.token("create", "shortlived", "--role", "admin")
    kept = guarded.token("create", "kept", "--role", "admin")
    wait_for(lambda: guarded.accepts(bearer(kept)))
    streams = [Streams(guarded.stub, job, bearer(token)) for token in (revoked, kept)]
    try:
        assert streams[0].are_open
        guarded.command("revoke", "shortlived")
        began = time.monotonic()
        assert streams[0].codes() == {REFUSED}
        assert time.monotonic() - began < SOON_S
        assert streams[1].are_open
        # An overlap is over while its streams run, and so is the time of a token.
        rotated = guarded.token("rotate", "kept", "--overlap", "3s")
        began = time.monotonic()
        wait_for(lambda: guarded.accepts(bearer(rotated)))
        fresh = Streams(guarded.stub, job, bearer(rotated))
        streams.append(fresh)
        assert streams[1].codes() == {REFUSED}
        assert time.monotonic() - began < 3 + SOON_S
        assert fresh.are_open
        assert guarded.code(bearer(kept)) is REFUSED
        # A role that is less than before ends what runs with the former one.
        text = guarded.file.read_text()
        assert text.count('[callers.kept]\nrole = "admin"') == 1
        old = '[callers.kept]\nrole = "admin"'
        new = '[callers.kept]\nrole = "reader"\nmodels = ["short"]'
        guarded.file.write_text(text.replace(old, new))
        assert fresh.codes() == {REFUSED}
        assert run.is_active()
    finally:
        for stream in streams:
            stream.close()
        run.cancel()
        guarded.stub.CancelJob(pb.CancelJobRequest(job=job), **admin)


def test_running_streams_over_http_of_a_credential_that_ends_end(guarded: Guarded) -> None:
    admin: Any = {"metadata": bearer(guarded.admin), "timeout": PATIENCE_S}
    run = guarded.stub.Train(requests(long_spec("web"), TEXT), **admin)
    job = next(run).job
    web = guarded.web(guarded.token("create", "browser", "--role", "admin"))
    wait_for(lambda: web.get("/v1/models").status == 200)
    watch = json.dumps({"job": job}).encode()
    fields = {"model": f"job:{job}", "prompt": "the", "max_tokens": 1, "stream": True}
    wait_for(lambda: web.post("/v1/completions", fields).status == 200)
    fields |= {"max_tokens": 100_000, "n": 32}  # far more than is made before the end
    text = json.dumps(fields).encode()
    try:
        with (
            web.open("POST", f"{WEB_SERVICE}/WatchJob", watch, content_type=JSON) as events,
            web.open("POST", "/v1/completions", text, content_type=JSON) as sse,
        ):
            assert b"JOB_STATE_QUEUED" in events.readline()
            assert sse.readline().startswith(b"data: ")
            guarded.command("revoke", "browser")
            began = time.monotonic()
            last_event = events.read().splitlines()[-1]
            last_data = [line for line in sse.read().splitlines() if line][-1]
            assert time.monotonic() - began < SOON_S
        assert json.loads(last_event)["error"]["code"] == "unauthenticated"
        assert b"revoked" in last_data
        assert web.get("/v1/models").status == 401
    finally:
        run.cancel()
        guarded.stub.CancelJob(pb.CancelJobRequest(job=job), **admin)


def test_a_stream_with_a_jwt_ends_when_that_expires(guarded: Guarded) -> None:
    job = next(iter(_jobs(guarded)), None)
    assert job is not None, "the tests before have trained"
    token = guarded.signer.token(exp=int(time.time()) + 3)
    silence = threading.Event()

    def pieces() -> Iterator[pb.ScoreStreamRequest]:
        yield pb.ScoreStreamRequest(spec=pb.ScoreStreamSpec(model="short"))
        yield pb.ScoreStreamRequest(piece=pb.TextPiece(text="the quick "))
        silence.wait(PATIENCE_S)

    began = time.monotonic()
    call = guarded.stub.ScoreStream(pieces(), metadata=bearer(token), timeout=PATIENCE_S)
    next(call)
    assert ends_with(call) is REFUSED
    silence.set()
    assert time.monotonic() - began < 3 + SOON_S


def _jobs(guarded: Guarded) -> list[pb.Job]:
    request = pb.ListJobsRequest()
    return list(guarded.stub.ListJobs(request, metadata=bearer(guarded.admin)).jobs)


def test_a_jwt_has_the_rights_of_its_grant(guarded: Guarded) -> None:
    token = bearer(guarded.signer.token())
    assert guarded.accepts(token)
    assert guarded.answer("Train", token)[0] is grpc.StatusCode.PERMISSION_DENIED
    roles = bearer(guarded.signer.token(roles=["other"]))
    assert guarded.answer("ListModels", roles)[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_huge_token_is_refused_and_the_server_lives(guarded: Guarded) -> None:
    for size in (7_000, 100_000):
        code = guarded.code(bearer("a." * size))
        assert code in (REFUSED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert guarded.accepts(bearer(guarded.admin))


def test_a_broken_file_does_not_lock_anybody_out(guarded: Guarded) -> None:
    text = guarded.file.read_text()
    guarded.file.write_text("[callers")
    wait_for(lambda: "the callers file cannot be used" in guarded.server.log)
    assert guarded.accepts(bearer(guarded.admin))
    guarded.file.write_text(text)
    known = guarded.token("create", "after", "--role", "admin")
    wait_for(lambda: guarded.accepts(bearer(known)))


def test_no_secret_is_in_the_log(guarded: Guarded, refused: dict[str, Metadata]) -> None:
    """The log has level debug, and every test of this module has written to it."""
    log = guarded.server.log
    secrets = {guarded.admin, guarded.reader}
    for metadata in refused.values():
        secrets |= {str(value) for _, value in metadata if len(value) > 60}
    for secret in secrets:
        assert secret[-32:] not in log


def test_a_certificate_is_a_credential(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.server()
    file = tmp_path / "callers.toml"
    file.touch(0o600)
    token = new_access_token()
    entry = '[callers.robot]\nrole = "reader"\nmodels = ["*"]\ncertificates = ["CN=robot"]\n'
    file.write_text(
        f'{entry}[callers.ann]\nrole = "admin"\n[[callers.ann.tokens]]\n'
        f'id = "{token.id}"\nsha256 = "{token.sha256.hex()}"\n'
    )
    server = Server(
        tmp_path / "data",
        *("--standby-workers", "0", "--callers-file", str(file)),
        *("--tls-cert-file", str(pair.cert_file), "--tls-key-file", str(pair.key_file)),
        *("--tls-client-ca-file", str(authority.ca_file)),
        credentials=channel_credentials(authority, pair),
    )
    channels = []

    def answer(name: str, metadata: Metadata = ()) -> grpc.StatusCode:
        """Deletes a model that does not exist, with a certificate and perhaps a token."""
        credentials = channel_credentials(authority, authority.issue(name))
        channel = grpc.secure_channel(server.address, credentials, NO_PROXY)
        channels.append(channel)
        stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        try:
            request = pb.DeleteModelRequest(model="none", version=1)
            stub.DeleteModel(request, metadata=metadata, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK

    try:
        assert answer("robot") is grpc.StatusCode.PERMISSION_DENIED
        assert answer("stranger") is REFUSED
        assert answer("robot", bearer(token.text)) is grpc.StatusCode.NOT_FOUND, "the token wins"
        assert answer("robot", bearer(new_access_token().text)) is REFUSED, "also a wrong one"
        assert answer("stranger", bearer(token.text)) is grpc.StatusCode.NOT_FOUND
        file.write_text(file.read_text().replace(entry, ""))
        wait_for(lambda: answer("robot") is REFUSED)
    finally:
        for channel in channels:
            channel.close()
        server.close()
    assert "Traceback" not in server.log


def test_a_file_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    file.touch(0o600)
    file.write_text("[callers.x]\nrole = 'root'\n")
    command = [sys.executable, "-m", "treadle.server", "--address", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--data-dir", str(tmp_path / "data"), "--callers-file", str(file)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"treadle-server: --callers-file {str(file)!r}: callers.x.role must be reader, user, "
        "trainer or admin, not 'root'\n"
    )
