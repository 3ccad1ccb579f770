"""What says who calls: `callers_file`, `key_set` and `web_token`."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from treadle.server.access.callers.access_token import new_access_token
from treadle.server.access.callers.authenticator import CallersAuthenticator
from treadle.server.access.callers.callers_file import CallersFileError, parse_callers
from treadle.server.access.oidc.signing_keys import KeySetError, parse_keys
from treadle.server.errors import StatusError

from .mutate import Mutator


class Fault(Exception):  # noqa: N818 - not an error that is handled: what a campaign looks for
    """A case that ended as none may."""


_ISSUER = "https://issuer.example"
_TOKEN = new_access_token()
_FILE = f"""
[defaults.quotas]
calls = 64
tokens_per_minute = 600000

[callers.ann]
role = "trainer"
models = ["team-a-*"]
read_models = ["shared"]
quotas = {{ tokens_per_minute = 60000, calls = "unlimited" }}

[[callers.ann.tokens]]
id = "{_TOKEN.id}"
sha256 = "{_TOKEN.sha256.hex()}"
created = 2026-11-29T14:58:18Z
expires = 2100-02-27T14:58:18Z

[callers.robot]
role = "user"
models = ["*"]
certificates = ["CN=robot", "URI:spiffe://example.com/robot"]

[oidc]
issuer = "{_ISSUER}"
audience = "treadle"
jwks_file = "KEYS"
algorithms = ["RS256", "ES256"]
leeway_s = 0

[[oidc.grants]]
value = "root"
role = "admin"

[[oidc.grants]]
value = "ml"
role = "trainer"
models = ["team-a-*"]
quotas = {{ calls = 4 }}
"""

_TOML_PIECES = (
    "\n",
    "=",
    "[",
    "]]",
    '"',
    '"""',
    "'",
    "{",
    "}",
    ",",
    "\\u0000",
    "\\ud800",
    "\0",
    "é",
    "1e999",
    "-1",
    "9" * 5000,
    "inf",
    "nan",
    "true",
    "0x",
    "9999-99-99T99:99:99Z",
    "0001-01-01T00:00:00Z",
    "[" * 3000,
    "a." * 3000 + "a = 1\n",
    "a = {" * 3000,
    "[callers.ann]",
    "[callers]",
    "[oidc]",
    "role = 1",
    "*",
    "x" * 5000,
)


def callers_file(seed: int) -> None:
    """A damaged callers file is refused with a sentence, or names callers."""
    draw = Mutator(seed)
    pick = draw.random
    data = _FILE.encode()
    for _ in range(pick.choice((1, 1, 2, 4))):
        place = pick.randrange(len(data) + 1)
        choice = pick.randrange(4)
        if choice == 0:
            data = draw.bytes(data)
        elif choice == 1:
            data = data[:place] + pick.choice(_TOML_PIECES).encode() + data[place:]
        else:  # a value is replaced, or a line comes twice
            lines = data.split(b"\n")
            line = pick.randrange(len(lines))
            name, mark, _ = lines[line].partition(b"=")
            changed = name + mark + pick.choice(_TOML_PIECES).encode()
            lines[line : line + 1] = [lines[line]] * 2 if choice == 2 else [changed]
            data = b"\n".join(lines)
    use_callers_file(data)


def use_callers_file(data: bytes) -> None:
    """Reads a callers file."""
    try:
        parse_callers(data, Path("/nowhere/callers.toml"))
    except CallersFileError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise Fault(f"the error is no sentence: {error!r:.500}") from error


# Keys and tokens of an identity provider


@cache
def _signers() -> dict[str, tuple[Any, str]]:
    """Returns keys and their algorithms, by the ids of the keys."""
    return {
        "rsa": (rsa.generate_private_key(65537, 2048), "RS256"),
        "ec": (ec.generate_private_key(ec.SECP256R1()), "ES256"),
    }


@cache
def _key_set() -> dict[str, Any]:
    keys = []
    for kid, (key, algorithm) in _signers().items():
        values = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
        keys.append({**values, "kid": kid, "use": "sig", "alg": algorithm})
    return {"keys": keys}


def key_set(seed: int) -> None:
    """A damaged set of keys is refused, or holds the keys that can be used."""
    draw = Mutator(seed)
    changed = draw.dumped(draw.json(_key_set(), draw.random.choice((1, 1, 3))))
    data = changed.encode(errors="surrogatepass")
    if draw.random.randrange(3) == 0:
        data = draw.bytes(data, 2)
    try:
        keys = parse_keys(data)
    except KeySetError:
        return
    for kid in (None, "rsa", "ec", "none", ""):
        for algorithm in ("RS256", "ES256", "HS256", "none"):
            keys.find(kid, algorithm)


@cache
def _authenticator() -> CallersAuthenticator:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "callers.toml"
        keys = Path(folder) / "keys.json"
        keys.write_text(json.dumps(_key_set()))
        path.write_text(_FILE.replace("KEYS", str(keys)))
        for place in (path, keys):
            place.chmod(0o600)
        return CallersAuthenticator(path)


def _claims() -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": _ISSUER,
        "aud": "treadle",
        "sub": "ann",
        "iat": now - 10,
        "nbf": now - 10,
        "exp": now + 3600,
        "roles": ["ml"],
    }


def _part(values: Any) -> str:
    data = json.dumps(values).encode(errors="surrogatepass")
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def web_token(seed: int) -> None:
    """A credential that was not given out is refused, whatever it is; others are taken."""
    draw = Mutator(seed)
    pick = draw.random
    kid = pick.choice(("rsa", "ec"))
    key, algorithm = _signers()[kid]
    claims = _claims()
    whole = jwt.encode(claims, key, algorithm, headers={"kid": kid})
    assert _caller([("authorization", f"Bearer {whole}")]) == "oidc:ann"
    assert _caller([("authorization", f"Bearer {_TOKEN.text}")]) == "ann"
    choice = pick.randrange(8)
    signed = choice == 0
    if choice == 0:  # what the provider signs may be anything
        changed = draw.json(claims, pick.choice((1, 2)))
        try:
            payload = json.dumps(changed).encode()
            encoded = jwt.api_jws.encode(payload, key, algorithm, headers={"kid": kid})
        except (TypeError, ValueError):
            return
        text = encoded if isinstance(encoded, str) else encoded.decode()
    elif choice == 1:  # nobody signs it
        header = draw.json({"alg": algorithm, "kid": kid, "typ": "JWT"}, 2)
        text = f"{_part(header)}.{_part(claims)}.{whole.rpartition('.')[2]}"
    elif choice == 2:
        text = f"{_part({'alg': pick.choice(('none', 'None', ''))})}.{_part(claims)}."
    elif choice == 3:  # the public key as the secret of another algorithm
        head = f"{_part({'alg': 'HS256', 'kid': kid})}.{_part(claims)}"
        mac = hmac.digest(json.dumps(_key_set()).encode(), head.encode(), "sha256")
        text = f"{head}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    elif choice in (4, 5):
        text = draw.bytes(whole.encode(), pick.choice((1, 2))).decode("latin-1")
    elif choice == 6:
        text = draw.bytes(_TOKEN.text.encode(), pick.choice((1, 2))).decode("latin-1")
    else:
        text = pick.choice(("", ".", "..", "...", "a.b.c", "e30.e30.", "[" * 20_000, "é", "\0"))
    odd = pick.choice(
        ("Bearer {}", "Bearer {}", "Bearer {}", "bearer  {}", "{}", "Basic {}", "{} ")
    )
    headers: list[tuple[str, str | bytes]] = [("authorization", odd.format(text))]
    if pick.randrange(10) == 0:
        headers *= 2
    elif pick.randrange(20) == 0:
        headers = [("authorization", odd.format(text).encode(errors="replace"))]
    name = _caller(headers)
    if name is not None and not signed and text.strip() not in (whole, _TOKEN.text):
        # The unused bits of the last character of a signature are no part of it.
        head, _, signature = text.strip().rpartition(".")
        same = head == whole.rpartition(".")[0] and signature[:-1] == whole.rpartition(".")[2][:-1]
        if not same:
            raise Fault(f"{name} is nobody: {text}")


def _caller(headers: list[tuple[str, str | bytes]]) -> str | None:
    """Returns the name of a caller; None if it is refused."""
    try:
        caller = asyncio.run(_authenticator().authenticate(headers, {}))
    except StatusError as error:
        if error.code.name not in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            raise
        if _TOKEN.text in error.message:
            raise Fault("an error shows a token") from error
        return None
    _authenticator().is_valid(caller)
    return caller.name


CASES: dict[str, Callable[[int], None]] = {
    "callers_file": callers_file,
    "key_set": key_set,
    "web_token": web_token,
}
