"""`parse_callers` reads the callers file, and names the key, the fault and the remedy."""

from __future__ import annotations

import datetime
from contextlib import suppress
from pathlib import Path

import pytest

from treadle.server.access.caller import Role
from treadle.server.access.callers.callers_file import (
    CallersFile,
    CallersFileError,
    parse_callers,
)
from treadle.server.access.quotas import Quotas

PATH = Path("/etc/treadle/callers.toml")
HASH = "ab" * 32
TOKEN = f'[[callers.ci.tokens]]\nid = "0123456789abcdef"\nsha256 = "{HASH}"\n'
CI = '[callers.ci]\nrole = "trainer"\nmodels = ["team-a-*"]\n'
OIDC = (
    '[oidc]\nissuer = "https://id.example.com"\naudience = "treadle"\n'
    'jwks_url = "https://id.example.com/keys"\n'
)
GRANT = '[[oidc.grants]]\nvalue = "ml"\nrole = "user"\nmodels = ["*"]\n'


def parse(text: str) -> CallersFile:
    return parse_callers(text.encode(), PATH)


def test_a_file_says_who_may_call() -> None:
    file = parse(
        "# Whose they are.\n"
        "[defaults.quotas]\ncalls = 8\nsessions = 4\n"
        f"{CI}"
        'read_models = ["shared"]\nwrite_models = ["scratch-?"]\n'
        'quotas = { calls = "unlimited", tokens_per_minute = 60000 }\n'
        'certificates = ["CN=robot", "CN=robot,O=Lab", "DNS:robot.lab", "URI:spiffe://lab/robot"]\n'
        f"{TOKEN}created = 2026-11-29T12:00:00Z\nexpires = 2027-02-27T12:00:00+01:00\n"
        '[callers."ann.b"]\nrole = "reader"\nmodels = ["*"]\n'
        '[callers.root]\nrole = "admin"\n'
    )
    record = file.callers["ci"]
    assert record.caller.role is Role.TRAINER
    assert record.caller.read_models == ("team-a-*", "shared", "scratch-?")
    assert record.caller.write_models == ("team-a-*", "scratch-?")
    assert record.caller.quotas == Quotas(sessions=4, tokens_per_minute=60000)
    assert record.certificates[0] == "CN=robot"
    (token,) = record.tokens
    assert token.sha256 == bytes.fromhex(HASH)
    assert token.expires == datetime.datetime(2027, 2, 27, 11, tzinfo=datetime.UTC)
    assert token.is_expired(token.expires)
    assert not token.is_expired(token.expires - datetime.timedelta(seconds=1))
    ann = file.callers["ann.b"].caller
    assert ann.may_read("anything")
    assert not ann.write_models
    assert ann.quotas == Quotas(calls=8, sessions=4)
    assert file.callers["root"].caller.may_write("anything")
    assert HASH not in repr(file)


def test_an_empty_file_has_no_callers() -> None:
    assert parse("") == CallersFile({})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("callers = 1", "callers must be a table, [callers], not a number"),
        ("caller = 1", "caller is not a known key; did you mean callers?"),
        ("x = 1", "x is not a known key; use defaults, callers, oidc"),
        ("[callers]\nci = 1", "callers.ci must be a table, [callers.ci], not a number"),
        ('[callers."oidc:x"]\nrole = "admin"', "the name of a caller must be 1 to 100 letters"),
        ('[callers."a\\nb"]\nrole = "admin"', "the name of a caller must be 1 to 100 letters"),
        ("[callers.ci]", "callers.ci.role is missing; it is required"),
        ('[callers.ci]\nrole = ""', "callers.ci.role is empty; give a value"),
        ('[callers.ci]\nrole = "root"', "callers.ci.role must be reader, user, trainer or admin"),
        ("[callers.ci]\nrole = 3", "callers.ci.role must be a string, not a number"),
        ('[callers.ci]\nrole = "user"', "callers.ci.models is missing; list the names or patter"),
        (f"{CI}rolle = 1", "callers.ci.rolle is not a known key; did you mean role?"),
        (CI.replace('["team-a-*"]', '"x"'), "callers.ci.models must be a list of strings"),
        (CI.replace('"team-a-*"', "1"), "callers.ci.models must have strings only, not a number"),
        (CI.replace("team-a-*", "[a]"), "callers.ci.models must have patterns, each a model's"),
        (CI.replace("team-a-*", "../x"), "callers.ci.models must have patterns, each a model's"),
        (CI.replace('"team', '"a", "a", "team'), "callers.ci.models has 'a' twice; remove one"),
        (
            '[callers.ci]\nrole = "user"\nwrite_models = ["a"]',
            "callers.ci.write_models needs the role trainer, not user; use read_models",
        ),
        (
            '[callers.ci]\nrole = "admin"\nmodels = ["a"]',
            "callers.ci.models does not limit an admin; remove it, or use another role",
        ),
        (f"{CI}quotas = 1", "callers.ci.quotas must be a table, [callers.ci.quotas], not a num"),
        (f"{CI}quotas = {{ call = 1 }}", "callers.ci.quotas.call is not a known key; did you mea"),
        (f"{CI}quotas = {{ calls = -1 }}", "callers.ci.quotas.calls must be 0 to 4294967295, or "),
        (f"{CI}quotas = {{ calls = 4294967296 }}", "callers.ci.quotas.calls must be 0 to 429496"),
        (f"{CI}quotas = {{ calls = 1.5 }}", "callers.ci.quotas.calls must be a whole number or"),
        (f"{CI}quotas = {{ calls = true }}", "callers.ci.quotas.calls must be a whole number or"),
        (f"{CI}quotas = {{ calls = 'x' }}", "callers.ci.quotas.calls must be a whole number or"),
        (f"{CI}quotas = {{ tokens_per_minute = 0 }}", "callers.ci.quotas.tokens_per_minute must"),
        ("[defaults.quotas]\ncals = 1", "defaults.quotas.cals is not a known key; did you mean"),
        ("[defaults]\nrole = 1", "defaults.role is not a known key; use quotas"),
        (f'{CI}certificates = ["robot"]', "callers.ci.certificates must have names such as CN="),
        (f'{CI}certificates = ["CN="]', "callers.ci.certificates must have names such as CN="),
        (f'{CI}certificates = ["DNS:A"]', "callers.ci.certificates must have DNS names in lower"),
        (f"{CI}tokens = 1", "callers.ci.tokens must be a list of tables, [[callers.ci.tokens]]"),
        (f"{CI}[[callers.ci.tokens]]", "callers.ci.tokens[1].id is missing; it is required"),
        (CI + TOKEN.replace("0123", "xxxx"), "callers.ci.tokens[1].id must be the 16 hexadecimal"),
        (
            CI + TOKEN.replace("abab", "ABAB"),
            "callers.ci.tokens[1].sha256 must be the SHA-256 of the",
        ),
        (f"{CI}{TOKEN}secret = 1", "callers.ci.tokens[1].secret is not a known key; did you mean"),
        (f"{CI}{TOKEN}expires = 2027-01-31", "callers.ci.tokens[1].expires must be a date with a"),
        (f"{CI}{TOKEN}expires = 2027-01-31T00:00:00", "callers.ci.tokens[1].expires must be a dat"),
        (f'{CI}{TOKEN}expires = "soon"', "callers.ci.tokens[1].expires must be a date with a time"),
        (CI + TOKEN + TOKEN, "caller ci has twice the token 0123456789abcdef; remove one"),
        (
            CI + TOKEN + TOKEN.replace("0123", "4567"),
            "caller ci has twice the sha256 of token 4567456789abcdef; remove one",
        ),
        (
            (CI + TOKEN) + (CI + TOKEN).replace("callers.ci", "callers.x"),
            "callers ci and x both have the token 0123456789abcdef; remove one",
        ),
        (
            f'{CI}certificates = ["CN=a"]\n'
            + f'{CI}certificates = ["CN=a"]'.replace("callers.ci", "callers.x"),
            "callers ci and x both have the certificate 'CN=a'; remove one",
        ),
        ("a = [", "is not TOML: "),
        ("[callers.ci]\n[callers.ci]", "is not TOML: "),
        ("a = " + "[" * 5000, "is nested too deeply"),
        ("a = " + "9" * 5000, "has a number with too many digits"),
        ("oidc = 1", "oidc must be a table, [oidc], not a number"),
        (OIDC, "oidc.grants is missing; give [[oidc.grants]] with value, role and models"),
        (f"{OIDC}leeway = 3\n{GRANT}", "oidc.leeway is not a known key; did you mean leeway_s?"),
        (f"{OIDC}leeway_s = 1e9\n{GRANT}", "oidc.leeway_s must be 0 to 300, not 1000000000.0"),
        (f"{OIDC}leeway_s = nan\n{GRANT}", "oidc.leeway_s must be 0 to 300, not nan"),
        (f"{OIDC}leeway_s = '1'\n{GRANT}", "oidc.leeway_s must be a number, not a string"),
        (f'{OIDC}jwks_file = "k"\n{GRANT}', "oidc.jwks_url or jwks_file names the provider's ke"),
        (OIDC.replace("jwks_url", "#") + GRANT, "oidc.jwks_url or jwks_file names the provider"),
        (OIDC.replace("https", "http") + GRANT, "oidc.jwks_url must begin with https:// (http:/"),
        (OIDC.replace('url = "https:', 'url = "file:') + GRANT, "oidc.jwks_url must begin with"),
        (OIDC.replace("/id.example.com/k", "/a:b@c/k") + GRANT, "oidc.jwks_url must not have a "),
        (f'{OIDC}algorithms = ["HS256"]\n{GRANT}', "oidc.algorithms must have some of RS256"),
        (f'{OIDC}algorithms = ["none"]\n{GRANT}', "oidc.algorithms must have some of RS256"),
        (f"{OIDC}algorithms = []\n{GRANT}", "oidc.algorithms is empty; list some of RS256"),
        (f'{OIDC}caller_claim = ""\n{GRANT}', "oidc.caller_claim is empty; give a value"),
        (f"{OIDC}role_claim = []\n{GRANT}", "oidc.role_claim must have one string or more"),
        (f"{OIDC}rol_claim = 3\n{GRANT}", "oidc.rol_claim is not a known key; did you mean role_"),
        (f'{OIDC}audience_ = ""\n{GRANT}', "oidc.audience_ is not a known key; did you mean aud"),
        (OIDC + GRANT + GRANT, "oidc.grants has the value 'ml' twice; remove one"),
        (OIDC + GRANT.replace("user", "x"), "oidc.grants[1].role must be reader, user, trainer"),
        (f"{OIDC}{GRANT}x = 1", "oidc.grants[1].x is not a known key; use value, role, models"),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str) -> None:
    with pytest.raises(CallersFileError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"'{PATH}': {complaint}")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_named() -> None:
    with pytest.raises(CallersFileError, match="line 2 is not UTF-8; save the file as UTF-8"):
        parse_callers(b"#\n# \xff\n", PATH)


def test_a_token_that_stands_in_the_file_is_not_shown() -> None:
    secret = "treadle_0123456789abcdef_" + "c" * 64
    for key in ("id", "sha256", "secret", "expires"):
        lines = [line for line in TOKEN.splitlines() if not line.startswith(f"{key} ")]
        text = CI + "\n".join([*lines, f'{key} = "{secret}"'])
        with pytest.raises(CallersFileError) as caught:
            parse(text)
        assert secret[:30] not in str(caught.value)


def test_any_damage_is_an_error_of_the_file() -> None:
    """Never an exception of another kind, and never a file that says less than half."""
    text = f"{CI}quotas = {{ calls = 3 }}\n{TOKEN}created = 2026-11-29T12:00:00Z\n{OIDC}{GRANT}"
    pieces = ("", "\n", '"', "[", "]]", "=", "1", "é", "\0", "nan")
    for place in range(len(text)):
        for piece in pieces:
            damaged = text[:place] + piece + text[place + 1 :]
            with suppress(CallersFileError):
                assert parse(damaged).callers


def test_keys_of_an_identity_provider_may_be_at_an_address_of_this_machine() -> None:
    for host in ("127.0.0.1:8000", "localhost", "[::1]:1"):
        url = f"http://{host}/keys"
        file = parse(OIDC.replace("https://id.example.com/keys", url) + GRANT)
        assert file.oidc is not None
        assert file.oidc.keys.jwks_url == url


def test_a_file_of_keys_is_next_to_the_callers_file() -> None:
    file = parse(OIDC.replace('jwks_url = "https://id.example.com/', 'jwks_file = "') + GRANT)
    assert file.oidc is not None
    assert file.oidc.keys.jwks_file == PATH.parent / "keys"
