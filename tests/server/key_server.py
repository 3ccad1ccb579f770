"""`KeyServer` is an identity provider of a test's own: it signs tokens and offers its keys."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from certificates import Pair
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER = "https://id.example.com"
AUDIENCE = "treadle"

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
"""A key for all tests: to make one takes long."""


class Signer:
    """A private key of the provider.

    Args:
        kid: Its id; None: it has none.
        algorithm: RS256, ES256 or EdDSA.
    """

    def __init__(self, kid: str | None = "one", algorithm: str = "ES256") -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.key: Any
        if algorithm == "ES256":
            self.key = ec.generate_private_key(ec.SECP256R1())
        elif algorithm == "EdDSA":
            self.key = ed25519.Ed25519PrivateKey.generate()
        else:
            self.key = RSA_KEY

    @property
    def public(self) -> dict[str, Any]:
        """The public key as JSON Web Key."""
        kinds = {"ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}
        kind: Any = kinds.get(self.algorithm, RSAAlgorithm)
        values: dict[str, Any] = json.loads(kind.to_jwk(self.key.public_key()))
        values.pop("key_ops", None)
        return values | ({} if self.kid is None else {"kid": self.kid})

    @property
    def pem(self) -> bytes:
        """The public key as PEM."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        pem: bytes = self.key.public_key().public_bytes(serialization.Encoding.PEM, form)
        return pem

    def token(self, headers: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """Returns a token that is valid for a minute; a claim that is None is left out."""
        now = int(time.time())
        payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 60, "roles": ["ml"]}
        payload |= claims
        payload = {key: value for key, value in payload.items() if value is not None}
        head = ({} if self.kid is None else {"kid": self.kid}) | dict(headers or {})
        return jwt.encode(payload, self.key, self.algorithm, headers=head)


class KeyServer:
    """Offers public keys on 127.0.0.1.

    Args:
        signers: The keys that it offers.
        pair: The certificate with which it speaks TLS, if any.
    """

    def __init__(self, *signers: Signer, pair: Pair | None = None) -> None:
        self.signers = list(signers)
        self.asked = 0
        """How often the keys were asked for."""
        self.answer: Callable[[BaseHTTPRequestHandler], None] | None = None
        """What answers instead."""
        place = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                place.asked += 1
                if place.answer is not None:
                    place.answer(self)
                    return
                reply(self, 200, json.dumps({"keys": [key.public for key in place.signers]}))

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        scheme = "http"
        if pair is not None:
            scheme = "https"
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(pair.cert_file, pair.key_file)
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """Ends the provider."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def reply(handler: BaseHTTPRequestHandler, code: int, body: str, **headers: str) -> None:
    """Answers a request."""
    data = body.encode()
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
