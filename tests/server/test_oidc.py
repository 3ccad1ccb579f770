"""`OidcVerifier` accepts tokens of one identity provider, and follows the provider's keys."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Authority

from treadle.server.access.caller import Caller, Role
from treadle.server.access.callers.authenticator import CallersAuthenticator
from treadle.server.access.callers.callers_file import parse_callers
from treadle.server.access.oidc.key_source import KeySource
from treadle.server.access.oidc.signing_keys import KeySetError, parse_keys
from treadle.server.access.oidc.verifier import OidcVerifier
from treadle.server.access.quotas import NO_QUOTAS
from treadle.server.config import SettingError
from treadle.server.errors import StatusError
from treadle.server.resources import thread_pools

from .harness import PATIENCE_S, until
from .key_server import AUDIENCE, ISSUER, RSA_KEY, KeyServer, Signer, reply

GRANTS = """
[[oidc.grants]]
value = "root"
role = "admin"

[[oidc.grants]]
value = "ml"
role = "trainer"
models = ["team-a-*"]
read_models = ["shared"]
quotas = { calls = 4 }

[[oidc.grants]]
value = "all"
role = "reader"
models = ["*"]
"""


def text(where: str, more: str = "") -> str:
    """Returns a callers file with an identity provider."""
    return f'[oidc]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n{where}\n{more}\n{GRANTS}'


def verifier(where: str, more: str = "") -> OidcVerifier:
    settings = parse_callers(text(where, more).encode(), Path("/callers.toml")).oidc
    assert settings is not None
    return OidcVerifier(settings, KeySource(settings.keys))


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs a test on an event loop, and ends the threads that it started."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    try:
        asyncio.run(bounded())
    finally:
        thread_pools.KEYS.close()
        thread_pools.SETTINGS.close()


async def refusal(
    verifier: OidcVerifier,
    token: str,
    code: grpc.StatusCode = grpc.StatusCode.UNAUTHENTICATED,
) -> str:
    """Returns with what a token is refused."""
    with pytest.raises(StatusError) as caught:
        await verifier.authenticate(token)
    assert caught.value.code is code, caught.value.message
    assert len(token) < 20 or token[-20:] not in caught.value.message
    return caught.value.message


@pytest.fixture
def signer() -> Signer:
    return Signer()


@pytest.fixture
def provider(signer: Signer) -> Iterator[KeyServer]:
    provider = KeyServer(signer)
    yield provider
    provider.close()


@pytest.fixture
def file(signer: Signer, tmp_path: Path) -> Path:
    """A file with the provider's keys."""
    path = tmp_path / "keys.json"
    path.touch(0o600)
    path.write_text(json.dumps({"keys": [signer.public]}))
    return path


@pytest.fixture
def local(file: Path) -> OidcVerifier:
    """A verifier with the keys of a file."""
    return verifier(f'jwks_file = "{file}"', "leeway_s = 0")


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
def test_a_token_leads_to_a_caller(algorithm: str) -> None:
    async def test() -> None:
        signer = Signer(algorithm=algorithm)
        provider = KeyServer(signer)
        try:
            accepts = verifier(f'jwks_url = "{provider.url}"')
            caller = await accepts.authenticate(signer.token())
            assert (caller.name, caller.role) == ("oidc:ann", Role.TRAINER)
            assert caller.read_models == ("team-a-*", "shared")
            assert caller.write_models == ("team-a-*",)
            assert caller.quotas.calls == 4
            assert accepts.quotas_of("oidc:ann") == caller.quotas
            assert accepts.is_valid(caller)
            token = signer.token(sub="bob")
            assert await accepts.authenticate(token) is await accepts.authenticate(token)
            assert provider.asked == 1
        finally:
            provider.close()

    run(test)


def test_the_first_grant_counts_that_a_token_has(local: OidcVerifier, signer: Signer) -> None:
    async def role(**claims: Any) -> Caller:
        return await local.authenticate(signer.token(**claims))

    async def test() -> None:
        both = await role(roles=["all", "x", 3, "ml"])
        assert both.role is Role.TRAINER
        assert not both.may_read("team-b"), "rights of different grants are never mixed"
        assert (await role(roles="all")).role is Role.READER
        for roles in (None, [], ["ML"], "ml all", {"ml": 1}, 3, [["ml"]]):
            message = await refusal(
                local, signer.token(roles=roles), grpc.StatusCode.PERMISSION_DENIED
            )
            assert "the claim 'roles' of the token has no value that gives a role" in message

    run(test)


def test_claims_may_lie_deeper_and_scope_is_a_list(file: Path, signer: Signer) -> None:
    async def test() -> None:
        where = f'jwks_file = "{file}"'
        nested = verifier(
            where, 'role_claim = ["realm_access", "roles"]\ncaller_claim = ["user", "name"]'
        )
        claims: dict[str, Any] = {"realm_access": {"roles": ["ml"]}, "user": {"name": "bob"}}
        assert (await nested.authenticate(signer.token(**claims))).name == "oidc:bob"
        assert "lacks the claim 'user.name'" in await refusal(nested, signer.token(user="bob"))
        scoped = verifier(where, 'role_claim = "scope"')
        caller = await scoped.authenticate(signer.token(scope="openid ml"))
        assert caller.role is Role.TRAINER

    run(test)


def _part(values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).rstrip(b"=").decode()


def forged(signer: Signer, algorithm: str, secret: bytes) -> str:
    """Returns a token with an HMAC whose key is the public key."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": 2**40, "roles": ["root"]}
    signed = f"{_part({'alg': algorithm, 'typ': 'JWT', 'kid': signer.kid})}.{_part(claims)}"
    mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest() if secret else b""
    return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def test_tokens_of_others_are_refused(local: OidcVerifier, signer: Signer) -> None:
    async def test() -> None:
        stranger = Signer()
        assert await local.authenticate(signer.token())
        good = signer.token()
        head, body, signature = good.split(".")
        changed = _part({"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": 2**40, "roles": "root"})
        own = {"jwk": stranger.public, "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"}
        tokens = [
            stranger.token(),
            stranger.token(own),
            stranger.token({"kid": "two"}),
            Signer(kid=None).token(),
            Signer(algorithm="RS256").token(),
            signer.token({"kid": "two"}),
            good[:-4] + "AAAA",
            f"{head}.{changed}.{signature}",
            f"{head}.{body}.",
            f"{head}.{body}",
            f"{head}..{signature}",
            ".".join([_part({"alg": "none"}), changed, ""]),
            ".".join([_part({"alg": "none", "kid": "one"}), changed, signature]),
            ".".join([_part({"alg": ["ES256"], "kid": "one"}), body, signature]),
            ".".join([_part({"alg": "ES256", "kid": ["one"]}), body, signature]),
            ".".join([_part({"alg": "ES256", "kid": "one", "crit": ["x"]}), body, signature]),
            ".".join([_part({"alg": "ES256", "kid": "one", "b64": False}), "", signature]),
            ".".join([_part("ES256"), body, signature]),
            forged(signer, "HS256", signer.pem),
            forged(signer, "HS256", json.dumps(signer.public).encode()),
            forged(signer, "none", b""),
            forged(signer, "NONE", b""),
            "",
            ".",
            "..",
            "a.b.c",
            "é.é.é",
            "\udcff.b.c",
            "a" * 10_000,
            ".".join(["a" * 3000] * 5),
            base64.urlsafe_b64encode(b"[" * 6000).decode() + ".e30.e30",
        ]
        messages = {await refusal(local, token) for token in tokens}
        (message,) = messages
        assert "mistyped, or signed by nobody whom this server trusts" in message
        assert "longer than 16384 bytes" in await refusal(local, good + "A" * 16_384)

    run(test)


@pytest.mark.parametrize(
    ("claims", "complaint"),
    [
        ({"exp": 1}, "has expired: get a new one"),
        ({"exp": None}, "lacks the claim 'exp'"),
        ({"exp": "soon"}, "mistyped"),
        ({"exp": float("inf")}, "mistyped"),
        ({"exp": True}, "has expired: get a new one"),
        ({"nbf": 2**40}, "is not valid yet: compare the clocks"),
        ({"iat": 2**40}, "is not valid yet: compare the clocks"),
        ({"aud": "other"}, "is for another audience than this server"),
        ({"aud": ["other", 3]}, "is for another audience"),
        ({"aud": None}, "lacks the claim 'aud'"),
        ({"aud": {AUDIENCE: 1}}, "is for another audience"),
        ({"iss": "https://id.example.com/"}, "is of another issuer"),
        ({"iss": None}, "lacks the claim 'iss'"),
        ({"sub": None}, "lacks the claim 'sub', a name"),
        ({"sub": " "}, "lacks the claim 'sub', a name"),
        ({"sub": "a" * 201}, "must be up to 200 printable characters"),
        ({"sub": "a\nb"}, "must be up to 200 printable characters"),
        ({"sub": "\u202eann"}, "must be up to 200 printable characters"),
        ({"sub": 3}, "mistyped"),
    ],
)
def test_claims_that_do_not_fit_are_named(
    local: OidcVerifier, signer: Signer, claims: dict[str, Any], complaint: str
) -> None:
    async def test() -> None:
        assert complaint in await refusal(local, signer.token(**claims))

    run(test)


def test_clocks_may_differ_by_the_leeway(file: Path, signer: Signer) -> None:
    async def test() -> None:
        lenient = verifier(f'jwks_file = "{file}"', "leeway_s = 30")
        end = int(time.time()) - 10
        caller = await lenient.authenticate(signer.token(exp=end))
        assert caller.valid_until_s == end + 30
        await lenient.authenticate(signer.token(nbf=int(time.time()) + 20))
        assert "has expired" in await refusal(lenient, signer.token(exp=end - 60))

    run(test)


def test_only_allowed_algorithms_are_accepted(file: Path, signer: Signer) -> None:
    async def test() -> None:
        strict = verifier(f'jwks_file = "{file}"', 'algorithms = ["RS256"]')
        assert "mistyped" in await refusal(strict, signer.token())

    run(test)


def test_keys_are_replaced_while_tokens_are_checked(provider: KeyServer, signer: Signer) -> None:
    async def test() -> None:
        accepts = verifier(f'jwks_url = "{provider.url}"', "min_refresh_s = 0.1")
        before = await accepts.authenticate(signer.token())
        second = Signer("two")
        provider.signers = [signer, second]
        await asyncio.sleep(0.11)
        assert (await accepts.authenticate(second.token(sub="bob"))).name == "oidc:bob"
        assert provider.asked == 2
        assert accepts.is_valid(before)
        provider.signers = [second]
        await asyncio.sleep(0.11)
        assert "mistyped" in await refusal(accepts, signer.token({"kid": "three"}))
        assert provider.asked == 3
        assert not accepts.is_valid(before), "its key was withdrawn"
        assert "mistyped" in await refusal(accepts, signer.token())

    run(test)


def test_unknown_keys_do_not_become_requests(provider: KeyServer, signer: Signer) -> None:
    async def test() -> None:
        accepts = verifier(f'jwks_url = "{provider.url}"', "min_refresh_s = 3600")
        first = [accepts.authenticate(signer.token(sub=f"u{n}")) for n in range(50)]
        assert len(await asyncio.gather(*first)) == 50
        strange = [refusal(accepts, signer.token({"kid": f"k{n}"})) for n in range(200)]
        await asyncio.gather(*strange)
        assert provider.asked == 1, "all waited for the same answer, and then none was due"

    run(test)


def no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"not HTTP\r\n\r\n")


def test_old_keys_stay_while_the_provider_is_down(
    provider: KeyServer, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        accepts = verifier(
            f'jwks_url = "{provider.url}"', "min_refresh_s = 0.1\nrefresh_s = 1\ntimeout_s = 0.3"
        )
        await accepts.authenticate(signer.token())
        answers: list[Callable[[BaseHTTPRequestHandler], None]] = [
            lambda handler: reply(handler, 500, "{}"),
            lambda handler: reply(handler, 200, "not JSON"),
            lambda handler: reply(handler, 200, "[]"),
            lambda handler: reply(handler, 200, "[" * 100_000),
            lambda handler: reply(handler, 200, " " * (1 << 20) + " "),
            lambda handler: reply(handler, 302, "", Location=provider.url + "/other"),
            lambda handler: reply(handler, 302, "", Location="file:///etc/passwd"),
            no_http,
            lambda handler: time.sleep(0.5),
        ]
        for answer in answers:
            provider.answer = answer
            asked = provider.asked
            await asyncio.sleep(0.11)
            caplog.clear()
            await refusal(accepts, signer.token({"kid": "unknown"}))
            assert provider.asked == asked + 1, "a redirection is not followed"
            assert "the known ones stay in use" in caplog.text
            assert (await accepts.authenticate(signer.token(sub="b"))).name == "oidc:b"
        provider.close()
        await asyncio.sleep(0.11)
        await refusal(accepts, signer.token({"kid": "unknown"}))
        assert "Connection refused" in caplog.text
        assert (await accepts.authenticate(signer.token(sub="c"))).name == "oidc:c"

    run(test)


def test_a_provider_that_never_answered_is_unavailable(signer: Signer) -> None:
    async def test() -> None:
        provider = KeyServer(signer)
        provider.answer = lambda handler: reply(handler, 503, "")
        accepts = verifier(f'jwks_url = "{provider.url}"', "min_refresh_s = 0.1")
        code = grpc.StatusCode.UNAVAILABLE
        assert "cannot be fetched at present" in await refusal(accepts, signer.token(), code)
        provider.answer = None
        await asyncio.sleep(0.11)
        await accepts.authenticate(signer.token())
        provider.close()

    run(test)


def test_a_provider_must_be_one_that_this_machine_trusts(
    tmp_path: Path,
    signer: Signer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority = Authority(tmp_path / "authority")
    provider = KeyServer(signer, pair=authority.server())
    monkeypatch.setenv("no_proxy", "*")

    async def test() -> None:
        accepts = verifier(f'jwks_url = "{provider.url}"', "min_refresh_s = 0.1")
        await refusal(accepts, signer.token(), grpc.StatusCode.UNAVAILABLE)
        assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        await asyncio.sleep(0.11)
        assert (await accepts.authenticate(signer.token())).name == "oidc:ann"

    try:
        run(test)
    finally:
        provider.close()


def test_a_provider_on_this_machine_needs_no_proxy(
    provider: KeyServer, signer: Signer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    async def test() -> None:
        await verifier(f'jwks_url = "{provider.url}"').authenticate(signer.token())

    run(test)


def test_a_slow_provider_holds_nobody_up(provider: KeyServer, signer: Signer) -> None:
    async def test() -> None:
        accepts = verifier(f'jwks_url = "{provider.url}"', "min_refresh_s = 0.1\ntimeout_s = 60")
        await accepts.authenticate(signer.token())
        released = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait(handler: BaseHTTPRequestHandler) -> None:
            asyncio.run_coroutine_threadsafe(released.wait(), loop).result(PATIENCE_S)
            reply(handler, 503, "")

        provider.answer = wait
        await asyncio.sleep(0.11)
        strange = asyncio.create_task(refusal(accepts, signer.token({"kid": "unknown"})))
        await until(lambda: provider.asked == 2)
        for name in ("b", "c"):
            assert (await accepts.authenticate(signer.token(sub=name))).name == f"oidc:{name}"
        # A caller that leaves does not end the fetching for the others.
        impatient = asyncio.create_task(accepts.authenticate(signer.token({"kid": "unknown"})))
        await asyncio.sleep(0)
        impatient.cancel()
        assert not strange.done()
        released.set()
        assert "mistyped" in await strange

    run(test)


def test_old_keys_are_fetched_again(provider: KeyServer, signer: Signer) -> None:
    async def test() -> None:
        accepts = verifier(f'jwks_url = "{provider.url}"', "min_refresh_s = 0.1\nrefresh_s = 1")
        await accepts.source.refresh()
        await until(lambda: provider.asked == 1)
        await accepts.authenticate(signer.token())
        await accepts.source.refresh()
        await asyncio.sleep(0.05)
        assert provider.asked == 1

        async def refreshed() -> None:
            while provider.asked == 1:
                await accepts.source.refresh()
                await asyncio.sleep(0.02)

        await asyncio.wait_for(refreshed(), PATIENCE_S)

    run(test)


def test_a_file_of_keys_is_read_again(
    local: OidcVerifier, file: Path, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        before = await local.authenticate(signer.token())
        second = Signer("two")
        assert "mistyped" in await refusal(local, second.token())
        file.write_text("{")
        await local.source.refresh()
        await local.source.refresh()
        assert caplog.text.count("is not JSON; the known ones stay in use") == 1
        assert local.is_valid(before)
        file.write_text(json.dumps({"keys": [second.public]}))
        await local.source.refresh()
        assert (await local.authenticate(second.token())).name == "oidc:ann"
        assert not local.is_valid(before)
        file.write_text('{"keys": []}')
        await local.source.refresh()
        assert "has no usable signing key" in caplog.text
        assert "mistyped" in await refusal(local, second.token())

    run(test)


def test_a_set_has_only_keys_that_verify_tokens(signer: Signer) -> None:
    def count(*keys: object) -> int:
        return len(parse_keys(json.dumps({"keys": keys}).encode()))

    public = signer.public
    assert count(public, Signer("two", "EdDSA").public, Signer("three", "RS256").public) == 3
    useless: list[object] = [
        3,
        {},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "one"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "secp256k1", "x": public["x"], "y": public["y"]},
        {"kty": "EC", "crv": ["P-256"], "x": 3, "y": None},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        public | {"use": "enc"},
        public | {"key_ops": ["encrypt"]},
        public | {"key_ops": "verify"},
        public | {"kid": 3},
        public | {"alg": "HS256"},
        public | {"alg": "RS256"},
    ]
    assert [count(key) for key in useless] == [0] * len(useless)
    for text in ("", "[]", "{}", '{"keys": 3}', "[" * 5000, "\xff"):
        with pytest.raises(KeySetError):
            parse_keys(text.encode("latin-1"))
    with pytest.raises(KeySetError, match="more than 100 keys"):
        count(*[public] * 101)


def test_two_keys_with_one_id_are_not_guessed_between(file: Path, signer: Signer) -> None:
    async def test() -> None:
        file.write_text(json.dumps({"keys": [signer.public, Signer().public]}))
        assert "mistyped" in await refusal(verifier(f'jwks_file = "{file}"'), signer.token())

    run(test)


def test_a_single_key_needs_no_id(file: Path) -> None:
    async def test() -> None:
        nameless = Signer(kid=None)
        file.write_text(json.dumps({"keys": [nameless.public]}))
        assert await verifier(f'jwks_file = "{file}"').authenticate(nameless.token())

    run(test)


def test_short_rsa_keys_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.server.access.oidc.signing_keys._LEAST_RSA_BITS", 4096)
    assert RSA_KEY.key_size == 2048
    assert len(parse_keys(json.dumps({"keys": [Signer("x", "RS256").public]}).encode())) == 0


def test_tokens_of_both_kinds_are_told_apart(tmp_path: Path, file: Path, signer: Signer) -> None:
    path = tmp_path / "callers.toml"
    path.touch(0o600)
    path.write_text(text(f'jwks_file = "{file.name}"') + '[callers.ann]\nrole = "admin"\n')
    authenticator = CallersAuthenticator(path)

    async def test() -> None:
        metadata = [("authorization", f"Bearer {signer.token()}")]
        caller = await authenticator.authenticate(metadata, {})
        assert caller.name == "oidc:ann"
        assert authenticator.is_valid(caller)
        assert authenticator.quotas_of("oidc:ann") == caller.quotas
        good = path.read_text()

        async def is_valid(text: str) -> bool:
            path.write_text(text)
            await authenticator.look()
            return authenticator.is_valid(caller)

        grant = '[[oidc.grants]]\nvalue = "new"\nrole = "reader"\nmodels = ["x"]\n'
        assert await is_valid(good + grant), "a later grant"
        assert await is_valid(good.replace("calls = 4", "calls = 5"))
        assert authenticator.quotas_of("oidc:stranger") == NO_QUOTAS
        assert not await is_valid(good.replace("shared", "shareD")), "its rights have changed"
        assert not await is_valid(good.replace("[[oidc", f"{grant}[[oidc", 1)), "an earlier grant"
        assert not await is_valid(good.replace(AUDIENCE, "other"))
        assert await is_valid(good)
        path.write_text('[callers.ann]\nrole = "admin"\n')
        await authenticator.look()
        assert not authenticator.is_valid(caller)
        with pytest.raises(StatusError):
            await authenticator.authenticate(metadata, {})

    run(test)


def test_keys_stay_when_grants_change_while_the_provider_is_down(
    tmp_path: Path, signer: Signer
) -> None:
    provider = KeyServer(signer)
    path = tmp_path / "callers.toml"
    path.touch(0o600)
    path.write_text(text(f'jwks_url = "{provider.url}"'))
    authenticator = CallersAuthenticator(path)

    async def test() -> None:
        metadata = [("authorization", f"Bearer {signer.token()}")]
        caller = await authenticator.authenticate(metadata, {})
        provider.close()
        path.write_text(path.read_text().replace("trainer", "user").replace("read_m", "# read_m"))
        await authenticator.look()
        assert not authenticator.is_valid(caller)
        assert (await authenticator.authenticate(metadata, {})).role is Role.USER

    run(test)


def test_a_missing_package_is_named(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "callers.toml"
    path.touch(0o600)
    path.write_text(text(f'jwks_file = "{file}"'))
    for name in [name for name in sys.modules if ".access.oidc.v" in name or ".oidc.s" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jwt", None)
    with pytest.raises(SettingError, match=r"requires PyJWT: pip install '.\[server,oidc\]'"):
        CallersAuthenticator(path)


def test_a_file_of_keys_that_cannot_be_used_is_refused_at_start(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    path.touch(0o600)
    path.write_text(text('jwks_file = "missing.json"'))
    with pytest.raises(SettingError, match=r"oidc\.jwks_file: '/.*' cannot be read: No such file"):
        CallersAuthenticator(path)
