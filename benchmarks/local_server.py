"""`serve` starts a server of this machine for a measurement, open or with TLS and callers."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import grpc
from grpc import aio

from treadle.benchmarks.channels import THIS_MACHINE
from treadle.v1 import sequence_pb2_grpc

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2_grpc import SequenceServiceAsyncStub as Stub

_SERVER = (sys.executable, "-m", "treadle.server")


@dataclass(frozen=True)
class LocalServer:
    """A server that runs."""

    address: str
    """Its address."""
    pid: int
    """The id of its process."""
    certificate: bytes = b""
    """The certificate that it shows, as PEM; empty: it speaks no TLS."""
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    """The token of each caller, by its name."""
    http_url: str = ""
    """The URL of its HTTP address; empty: it has none."""

    def channel(self) -> aio.Channel:
        """Returns a channel to it."""
        if not self.certificate:
            return aio.insecure_channel(self.address, THIS_MACHINE)
        credentials = grpc.ssl_channel_credentials(self.certificate)
        return aio.secure_channel(self.address, credentials, THIS_MACHINE)

    def stub(self, channel: aio.Channel, caller: str = "") -> Stub:
        """Returns the methods of the server.

        Args:
            channel: A channel to it.
            caller: Whose token the calls carry; empty: none.
        """
        stub: Stub = sequence_pb2_grpc.SequenceServiceStub(channel)
        return cast("Stub", _Authorized(stub, self.tokens[caller])) if caller else stub


class _Authorized:
    """A stub whose calls carry a token, in the same way as those of Treadle's client.

    The call credentials of gRPC would do it in a thread of their own, at a tenth of the speed of 64
    streams.
    """

    def __init__(self, stub: Any, token: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {token}"),)

    def __getattr__(self, name: str) -> Any:
        """Returns a method."""
        return partial(getattr(self._stub, name), metadata=self._metadata)


@contextmanager
def serve(callers: Sequence[str] = (), flags: Sequence[str] = ()) -> Iterator[LocalServer]:
    """Starts a server, and ends it.

    Args:
        callers: Names of callers that may do everything; with any, it speaks TLS as well.
        flags: More of its flags.

    Yields:
        The server.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [*_SERVER, "--address", "127.0.0.1:0", "--log-level", "warning"]
        command += ["--data-dir", f"{folder / 'data'}", *flags]
        certificate = b""
        tokens = {}
        if callers:
            certificate = _make_pair(folder)
            tokens = {caller: _make_token(folder, caller) for caller in callers}
            command += ["--tls-cert-file", f"{folder / 'server.pem'}"]
            command += ["--tls-key-file", f"{folder / 'server.key'}"]
            command += ["--callers-file", f"{folder / 'callers.toml'}"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            http_url = ""
            if "--http-address" in flags:
                http_url = server.stdout.readline().split()[-1]
            yield LocalServer(address, server.pid, certificate, tokens, http_url)
        finally:
            server.terminate()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()


def _make_pair(folder: Path) -> bytes:
    """Makes a certificate for this machine, and its key; returns the certificate."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{folder / 'server.key'}"]
    command += ["-out", f"{folder / 'server.pem'}"]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "server.pem").read_bytes()


def _make_token(folder: Path, caller: str) -> str:
    """Makes a caller that may do everything; returns its token."""
    command = [*_SERVER, "token", "create", caller, "--role", "admin"]
    command += ["--callers-file", f"{folder / 'callers.toml'}"]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return made.stdout.strip()
