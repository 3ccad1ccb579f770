"""`CallersAuthenticator` finds out who makes a call: by a token, or by a client certificate.

A token is compared in constant time, and what is answered to a wrong one does not depend on whether
its id exists. The callers file is read again when it has changed; one that cannot be used is logged
once, and the callers that were known stay.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from treadle.server.access.audit.audit_log import AuditLog
from treadle.server.access.authenticator import AuthContext, Metadata
from treadle.server.access.caller import Caller
from treadle.server.access.callers.access_token import PREFIX, read_access_token
from treadle.server.access.callers.callers_file import (
    MAX_FILE_BYTES,
    CallersFile,
    CallersFileError,
    parse_callers,
)
from treadle.server.access.callers.credential_changes import credential_changes
from treadle.server.access.client_certificate import expiry_s, names
from treadle.server.access.oidc.settings import OidcSettings
from treadle.server.access.quotas import NO_QUOTAS, Quotas
from treadle.server.access.trusted_file import TrustedFile, TrustedFileError
from treadle.server.config import SettingError
from treadle.server.errors import StatusError
from treadle.server.resources import thread_pools

if TYPE_CHECKING:
    from treadle.server.access.oidc.verifier import OidcVerifier

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at the callers file and at credentials that expire."""

_NO_CREDENTIAL = (
    "this server requires a token: send the metadata 'authorization: Bearer TOKEN', or connect "
    "with a client certificate that it knows"
)
_MALFORMED = (
    "the metadata 'authorization' is not 'Bearer TOKEN' with a token of this server, which "
    "`treadle-server token create` prints; perhaps it was cut"
)
_INVALID = (
    "the token is not valid on this server: it is mistyped, or was revoked; ask the server's "
    "operator for a new one"
)
_UNKNOWN_SHA256 = bytes(32)
"""What the hash of a token is compared with whose id is not known: no text has this hash."""


class CallersAuthenticator:
    """Accepts the callers of one file. Use it on the event loop.

    Args:
        path: The callers file.
        audit: Where changes of the file are written down; None: nowhere.

    Raises:
        SettingError: It cannot be used, or a package that it needs is missing.
    """

    def __init__(self, path: Path, audit: AuditLog | None = None) -> None:
        self._path = path
        self._audit = audit or AuditLog()
        self._file = TrustedFile(path, MAX_FILE_BYTES)
        self._looks: list[Callable[[], None]] = []
        self._credentials: dict[str, Caller] = {}
        self._tokens: dict[str, tuple[bytes, Caller]] = {}
        self._quotas: dict[str, Quotas] = {}
        self._default_quotas = NO_QUOTAS
        self._oidc: OidcVerifier | None = None
        self._failure = ""
        self._unreadable = False
        try:
            self._take(parse_callers(self._file.read(), path))
        except TrustedFileError as error:
            fault = f"names {str(path)!r}, which {error}"
            if isinstance(error.__cause__, FileNotFoundError):
                fault += "; `treadle-server token create NAME --role admin` makes the file"
            raise SettingError("callers_file", fault) from error
        except CallersFileError as error:
            raise SettingError("callers_file", f"{str(path)!r}: {error.fault}") from error
        if self._file.is_open_to_others():
            logger.warning(
                "every user of this machine may read who may call, in %s: run chmod o-r on it, or "
                "mount it with mode 0400",
                path,
            )
        if not self._credentials and self._oidc is None:
            logger.warning("nobody can call this server: %s has no token", path)

    async def authenticate(self, metadata: Metadata, auth_context: AuthContext) -> Caller:
        """Returns the caller: that of the token, or without one that of the client certificate.

        Args:
            metadata: The metadata of the call.
            auth_context: What TLS knows of the client.

        Raises:
            StatusError: UNAUTHENTICATED: there is no credential, or it is not valid. For tokens of
                an identity provider see `OidcVerifier.authenticate`.
        """
        headers = [value for key, value in metadata if key == "authorization"]
        if not headers:
            return self._by_certificate(auth_context)
        if len(headers) > 1:
            raise _refused("the call has the metadata 'authorization' more than once: send it once")
        scheme, _, text = str(headers[0]).partition(" ")
        if scheme.lower() != "bearer":
            raise _refused(_MALFORMED)
        if self._oidc is not None and not text.startswith(PREFIX):
            return await self._oidc.authenticate(text)
        return self._by_token(text)

    def _by_token(self, text: str) -> Caller:
        token = read_access_token(text)
        if token is None:
            raise _refused(_MALFORMED)
        sha256, caller = self._tokens.get(token.id, (_UNKNOWN_SHA256, None))
        if not hmac.compare_digest(token.sha256, sha256) or caller is None:
            raise _refused(_INVALID)
        if caller.valid_until_s <= time.time():  # said to the owner alone
            raise _refused("the token has expired; ask the server's operator for a new one")
        return caller

    def _by_certificate(self, auth_context: AuthContext) -> Caller:
        found = names(auth_context) if auth_context else ()
        if not found:
            raise _refused(_NO_CREDENTIAL)
        known = [self._credentials.get(f"certificate:{name}") for name in found]
        callers = [caller for caller in known if caller is not None]
        if not callers:
            raise _refused(
                "the client certificate is of no caller of this server: send a token, or ask the "
                "server's operator to add one of the names in the certificate"
            )
        if len({caller.name for caller in callers}) > 1:
            raise _refused("the client certificate has names of several callers: send a token")
        until_s = expiry_s(auth_context)
        if until_s <= time.time():  # TLS has checked it when the connection began
            raise _refused("the client certificate has expired: connect with a new one")
        return replace(callers[0], valid_until_s=until_s)

    def is_valid(self, caller: Caller) -> bool:
        """Returns whether a credential is still accepted, and gives no fewer rights than then.

        Args:
            caller: A caller that `authenticate` returned; `ANONYMOUS` while it has not yet.
        """
        if not caller.credential_id:
            return True
        if caller.credential_id.startswith("key:"):
            return self._oidc is not None and self._oidc.is_valid(caller)
        known = self._credentials.get(caller.credential_id)
        if known is None:
            return False
        # The file may have given a token another end by now; a certificate has its own.
        is_certificate = caller.credential_id.startswith("certificate:")
        until_s = caller.valid_until_s if is_certificate else known.valid_until_s
        return (
            time.time() < until_s
            and known.name == caller.name
            and known.role >= caller.role
            and (known.is_admin or _includes(known, caller))
        )

    def quotas_of(self, name: str) -> Quotas | None:
        """Returns the quotas of a caller by its name; those by default where it is not known."""
        quotas = self._quotas.get(name)
        if quotas is None and self._oidc is not None:
            quotas = self._oidc.quotas_of(name)
        return self._default_quotas if quotas is None else quotas

    def on_change(self, look: Callable[[], None]) -> None:
        """Calls `look` on the event loop, at least every few seconds.

        Args:
            look: Ends the calls for which `is_valid` says no.
        """
        self._looks.append(look)

    async def watch(self) -> None:
        """Looks for changes until it is cancelled."""
        while True:
            try:
                await self.look()
            except Exception:  # without its looks, no credential could be revoked
                logger.exception("looking for changed credentials failed")
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Takes over what has changed in files, and has calls ended that may not continue."""
        await self._reload()
        if self._oidc is not None:
            await self._oidc.source.refresh()
        for look in self._looks:
            look()

    def close(self) -> None:
        """Waits no longer for an identity provider."""
        if self._oidc is not None:
            self._oidc.source.close()

    async def _reload(self) -> None:
        """Reads the file again if it has changed."""
        try:
            file = await thread_pools.SETTINGS.run(self._changed)
            if file is None:
                if self._unreadable:
                    self._failure = ""
                return
            before = self._credentials
            self._take(file)
        except (CallersFileError, SettingError, TrustedFileError) as error:
            failure = str(error)
            if isinstance(error, TrustedFileError):
                failure = f"{str(self._path)!r} {error}"
            if failure != self._failure:
                logger.error("the callers file cannot be used: %s; its callers stay", failure)
            self._failure = failure
            self._unreadable = isinstance(error, TrustedFileError)
            return
        self._failure = ""
        for entry in credential_changes(before, self._credentials):
            self._audit.write(entry)
        logger.info("the callers file was read again: it has %d callers", len(self._quotas))

    def _changed(self) -> CallersFile | None:
        """Returns what the file says if it has changed; a large one takes a while."""
        data = self._file.changed()
        return None if data is None else parse_callers(data, self._path)

    def _take(self, file: CallersFile) -> None:
        """Takes over what a file says, wholly or not at all."""
        before = self._oidc
        self._oidc = None if file.oidc is None else _verifier(file.oidc, before)
        if before is not None and (self._oidc is None or self._oidc.source is not before.source):
            before.source.close()
        self._default_quotas = file.default_quotas
        self._credentials = {}
        self._tokens = {}
        self._quotas = {}
        for name, record in file.callers.items():
            self._quotas[name] = record.caller.quotas
            for token in record.tokens:
                until_s = math.inf if token.expires is None else token.expires.timestamp()
                credential = f"token:{token.id}"
                caller = replace(record.caller, credential_id=credential, valid_until_s=until_s)
                self._credentials[credential] = caller
                self._tokens[token.id] = (token.sha256, caller)
            for certificate in record.certificates:
                credential = f"certificate:{certificate}"
                self._credentials[credential] = replace(record.caller, credential_id=credential)


def _includes(known: Caller, caller: Caller) -> bool:
    """Returns whether a caller may still read and write all that it could."""
    return set(caller.read_models) <= set(known.read_models) and (
        set(caller.write_models) <= set(known.write_models)
    )


def _verifier(settings: OidcSettings, before: OidcVerifier | None) -> OidcVerifier:
    """Returns what accepts the tokens of an identity provider.

    Args:
        settings: Whose tokens.
        before: What accepted them until now. Its keys stay in use if they are from the same place.

    Raises:
        SettingError: PyJWT is not installed, or the provider's keys are in a file that cannot be
            used.
    """
    try:
        from treadle.server.access.oidc.key_source import KeySource
        from treadle.server.access.oidc.signing_keys import KeySetError
        from treadle.server.access.oidc.verifier import OidcVerifier
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "jwt":
            raise
        fault = (
            "has [oidc], which requires PyJWT: pip install '.[server,oidc]' in a checkout of "
            "Treadle"
        )
        raise SettingError("callers_file", fault) from error
    if before is not None and before.settings == settings:
        return before
    if before is not None and before.settings.keys == settings.keys:
        return OidcVerifier(settings, before.source)
    try:
        return OidcVerifier(settings, KeySource(settings.keys))
    except KeySetError as error:
        raise SettingError("callers_file", f"oidc.jwks_file: {error}") from error


def _refused(message: str) -> StatusError:
    return StatusError(grpc.StatusCode.UNAUTHENTICATED, message)
