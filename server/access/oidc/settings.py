"""`read_oidc` reads the table `[oidc]` of the callers file: whose JSON Web Tokens are accepted."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from treadle.server.access.quotas import Quotas
from treadle.server.access.rights import Rights, read_rights
from treadle.server.access.toml_table import TomlTable, shown

ALGORITHMS = (
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "EdDSA",
)
"""The signatures that may be accepted: those with a private key that the provider alone has."""

_DEFAULT_ALGORITHMS = ("RS256", "ES256", "EdDSA")
_MAX_LEEWAY_S = 300
_CLAIM = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True)
class Grant:
    """What callers may do whose tokens have a value in a claim."""

    value: str
    """The value of the claim."""
    rights: Rights
    """What it gives."""


@dataclass(frozen=True)
class KeySettings:
    """Where the keys of the provider are, and how often they are fetched."""

    jwks_file: Path | None
    """The file with the keys, or None."""
    jwks_url: str
    """The address of the keys; empty with a file."""
    refresh_s: float
    """Seconds after which the keys are fetched again."""
    min_refresh_s: float
    """The fewest seconds between two fetches, whatever tokens arrive."""
    timeout_s: float
    """Seconds that a fetch may take."""


@dataclass(frozen=True)
class OidcSettings:
    """Whose tokens are accepted, and what their claims give."""

    issuer: str
    """The claim `iss` of every token, exactly."""
    audience: tuple[str, ...]
    """The claim `aud` of every token has one of these."""
    keys: KeySettings
    """Where the keys are that sign the tokens."""
    algorithms: tuple[str, ...]
    """The algorithms of signatures that are accepted."""
    leeway_s: float
    """How far the clocks of the provider and of this machine may be apart, in seconds."""
    caller_claim: tuple[str, ...]
    """Where a token has the name of its caller: a claim, or a path of keys within it."""
    role_claim: tuple[str, ...]
    """Where a token has the values of `grants`."""
    grants: tuple[Grant, ...]
    """What the values give. The first that a token has counts."""


def read_oidc(table: TomlTable, folder: Path, default_quotas: Quotas) -> OidcSettings:
    """Returns the settings of an identity provider.

    Args:
        table: The table `[oidc]`.
        folder: The folder of the callers file, from which a relative `jwks_file` starts.
        default_quotas: The quotas of callers for whom the table has none.

    Raises:
        TomlError: A value is missing or cannot be used.
    """
    issuer = table.text("issuer")
    audience = _one_or_more(table, "audience")
    file = table.text("jwks_file", "")
    url = table.text("jwks_url", "", fault=url_fault)
    if bool(file) == bool(url):
        raise table.error("jwks_url", "or jwks_file names the provider's keys; give one of them")
    algorithms = table.texts("algorithms", _DEFAULT_ALGORITHMS, fault=_algorithm_fault)
    if not algorithms:
        raise table.error("algorithms", f"is empty; list some of {', '.join(ALGORITHMS)}")
    settings = OidcSettings(
        issuer=issuer,
        audience=audience,
        keys=KeySettings(
            jwks_file=folder / file if file else None,
            jwks_url=url,
            refresh_s=table.number("refresh_s", 3600, 1, 7 * 86_400),
            min_refresh_s=table.number("min_refresh_s", 30, 0.1, 3600),
            timeout_s=table.number("timeout_s", 5, 0.1, 60),
        ),
        algorithms=algorithms,
        leeway_s=table.number("leeway_s", 30, 0, _MAX_LEEWAY_S),
        caller_claim=_path(table, "caller_claim", ("sub",)),
        role_claim=_path(table, "role_claim", ("roles",)),
        grants=tuple(_grant(grant, default_quotas) for grant in table.list_of_tables("grants")),
    )
    if not settings.grants:
        raise table.error("grants", "is missing; give [[oidc.grants]] with value, role and models")
    values = [grant.value for grant in settings.grants]
    for value in values:
        if values.count(value) > 1:
            raise table.error("grants", f"has the value {shown(value)} twice; remove one")
    table.finish()
    return settings


def url_fault(url: str) -> str:
    """Returns what is wrong with the address of the keys, as a clause that follows it, or ''."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return f"must be an address such as https://example.com/keys, not {shown(url)}"
    if parts.username is not None or parts.password is not None:
        return "must not have a user name or a password; keys are public"
    if not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        return f"must be an address such as https://example.com/keys, not {shown(url)}"
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)):
        return ""
    return f"must begin with https:// (http:// for this machine alone), not {shown(url)}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _grant(table: TomlTable, default_quotas: Quotas) -> Grant:
    grant = Grant(table.text("value"), read_rights(table, default_quotas))
    table.finish()
    return grant


def _one_or_more(table: TomlTable, key: str) -> tuple[str, ...]:
    """Returns a string, or a list of strings."""
    if isinstance(table.value(key), list):
        values = table.texts(key)
        if not values or not all(value.strip() for value in values):
            raise table.error(key, "must have one string or more, and no empty one")
        return values
    return (table.text(key),)


def _path(table: TomlTable, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    if table.value(key) is None:
        return default
    path = _one_or_more(table, key)
    for claim in path:
        if not _CLAIM.fullmatch(claim):
            raise table.error(key, f"must be a claim of the token, not {shown(claim)}")
    return path


def _algorithm_fault(name: str) -> str:
    if name in ALGORITHMS:
        return ""
    why = ""
    if name.upper().startswith("HS") or name.lower() == "none":
        why = ", since everybody who can check such a token could make one"
    return f"must have some of {', '.join(ALGORITHMS)}, not {shown(name)}{why}"
