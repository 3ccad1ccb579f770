"""`parse_callers` reads a callers file: who may call, with which tokens and certificates.

docs/callers.md describes the format. The `token` command reads the file here, so that this module
must not import NumPy.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from treadle.server.access.caller import Caller
from treadle.server.access.callers.access_token import ID
from treadle.server.access.oidc.settings import OidcSettings, read_oidc
from treadle.server.access.quotas import NO_QUOTAS, Quotas
from treadle.server.access.rights import read_quotas, read_rights
from treadle.server.access.toml_table import TomlError, TomlTable, shown

MAX_FILE_BYTES = 8 << 20
"""A callers file is read up to here."""

_SUBJECT = re.compile(r"([A-Za-z][A-Za-z0-9]*|[0-9.]+)=.+", re.DOTALL)
_ALTERNATIVE_NAME = re.compile(r"(DNS|URI|EMAIL|IP):.+", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NAME_FORM = "1 to 100 letters, digits, '.', '_' and '-', the first a letter or digit"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CallersFileError(ValueError):
    """A callers file cannot be used. The message names the file, the key, the fault, the remedy."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{str(path)!r}: {fault}")
        self.fault = fault
        """The message without the file."""


@dataclass(frozen=True)
class TokenRecord:
    """What the file knows of a token."""

    id: str
    """Its id."""
    sha256: bytes = field(repr=False)
    """The SHA-256 of its text."""
    created: datetime.datetime | None = None
    """When it was made."""
    expires: datetime.datetime | None = None
    """When it expires; None: never."""

    def is_expired(self, now: datetime.datetime) -> bool:
        """Returns whether it has expired at a time."""
        return self.expires is not None and self.expires <= now


@dataclass(frozen=True)
class CallerRecord:
    """One caller of the file."""

    caller: Caller
    """Its name, its rights and its quotas, without a credential."""
    tokens: tuple[TokenRecord, ...] = ()
    """Its tokens."""
    certificates: tuple[str, ...] = ()
    """Names of its client certificates, such as `CN=robot` or `URI:spiffe://...`."""


@dataclass(frozen=True)
class CallersFile:
    """Everything that a callers file says."""

    callers: Mapping[str, CallerRecord]
    """The callers by their names."""
    default_quotas: Quotas = NO_QUOTAS
    """The quotas of callers who name no others."""
    oidc: OidcSettings | None = None
    """The identity provider whose tokens are accepted, if any."""


def parse_callers(data: bytes, path: Path) -> CallersFile:
    """Returns what a callers file says.

    Args:
        data: Its content.
        path: Its path, for messages and for the files that it names.

    Raises:
        CallersFileError: It is not TOML, or a value of it cannot be used.
    """
    try:
        values = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CallersFileError(path, f"line {line} is not UTF-8; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise CallersFileError(path, f"is not TOML: {error}") from None
    except ValueError:  # a number with more digits than Python reads
        raise CallersFileError(path, "has a number with too many digits; shorten it") from None
    except RecursionError:
        raise CallersFileError(path, "is nested too deeply; use the tables of the format") from None
    try:
        return _callers(TomlTable("", values), path)
    except TomlError as error:
        raise CallersFileError(path, str(error)) from None


def name_fault(name: str) -> str:
    """Returns what is wrong with the name of a caller, as a clause that follows it, or ''."""
    return "" if _NAME.fullmatch(name) else f"must be {_NAME_FORM}, not {shown(name)}"


def _callers(file: TomlTable, path: Path) -> CallersFile:
    defaults = file.table("defaults")
    default_quotas = NO_QUOTAS
    if defaults is not None:
        default_quotas = read_quotas(defaults, NO_QUOTAS)
        defaults.finish()
    callers = {
        name: _caller(name, table, default_quotas, file) for name, table in file.tables("callers")
    }
    _check_unique(callers)
    oidc_table = file.table("oidc")
    oidc = None if oidc_table is None else read_oidc(oidc_table, path.parent, default_quotas)
    file.finish()
    return CallersFile(callers, default_quotas, oidc)


def _caller(name: str, table: TomlTable, quotas: Quotas, file: TomlTable) -> CallerRecord:
    if fault := name_fault(name):
        raise TomlError(f"the name of a caller {fault}")
    rights = read_rights(table, quotas)
    caller = Caller(name, rights.role, rights.read_models, rights.write_models, rights.quotas)
    certificates = table.texts("certificates", fault=_certificate_fault)
    tokens = tuple(_token(token) for token in table.list_of_tables("tokens"))
    table.finish()
    return CallerRecord(caller, tokens, certificates)


def _certificate_fault(name: str) -> str:
    """Returns what is wrong with a name of a certificate, of the forms in `client_certificate`."""
    if not (_SUBJECT.fullmatch(name) or _ALTERNATIVE_NAME.fullmatch(name)):
        examples = "CN=robot, DNS:robot.example.com or URI:spiffe://example.com/robot"
        return f"must have names such as {examples}, not {shown(name)}"
    if name.startswith("DNS:") and name[4:] != name[4:].lower():
        return f"must have DNS names in lower case, not {shown(name)}"
    return ""


def _token(table: TomlTable) -> TokenRecord:
    id_ = table.text("id", fault=_id_fault)
    # Not shown, since it may be a token that was written there by mistake.
    sha256 = table.text("sha256", fault=_sha256_fault)
    created = table.time("created")
    expires = table.time("expires")
    table.finish()
    return TokenRecord(id_, bytes.fromhex(sha256), created, expires)


def _id_fault(text: str) -> str:
    return "" if ID.fullmatch(text) else "must be the 16 hexadecimal digits in the token's text"


def _sha256_fault(text: str) -> str:
    if _SHA256.fullmatch(text):
        return ""
    return "must be the SHA-256 of the token's text, 64 hexadecimal digits in lower case"


def _check_unique(callers: Mapping[str, CallerRecord]) -> None:
    """Checks that no id, no hash and no certificate leads to two callers."""
    seen: dict[object, str] = {}
    for name, record in callers.items():
        keys: list[tuple[object, str]] = []
        for token in record.tokens:
            keys.append((token.id, f"the token {token.id}"))
            keys.append((token.sha256, f"the sha256 of token {token.id}"))
        keys += [(text, f"the certificate {shown(text)}") for text in record.certificates]
        for key, what in keys:
            if key in seen:
                place = f"callers {seen[key]} and {name} both have"
                if seen[key] == name:
                    place = f"caller {name} has twice"
                raise TomlError(f"{place} {what}; remove one")
            seen[key] = name
