"""`KeySource` keeps the keys of an identity provider current: from a file, or from its address.

The provider is asked once in a while, and when a token names a key that is not known, but never
more often than the settings allow, whatever tokens arrive. While the provider cannot be reached,
the keys that are known stay in use.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from treadle.server.access.oidc.settings import KeySettings
from treadle.server.access.oidc.signing_keys import (
    MAX_SET_BYTES,
    KeySetError,
    SigningKey,
    SigningKeys,
    parse_keys,
)
from treadle.server.access.trusted_file import TrustedFile, TrustedFileError
from treadle.server.resources import thread_pools

logger = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 16


class KeySource:
    """The current keys of one provider. Use it on the event loop.

    Args:
        settings: Where the keys are.

    Raises:
        KeySetError: They are in a file that cannot be used.
    """

    def __init__(self, settings: KeySettings) -> None:
        self._settings = settings
        self.keys: SigningKeys | None = None
        """The keys; None: they have never been fetched."""
        self._file: TrustedFile | None = None
        self._asked_s = -math.inf
        self._fetched_s = -math.inf
        self._fetching: asyncio.Task[None] | None = None
        self._failure = ""
        if settings.jwks_file is not None:
            self._file = TrustedFile(settings.jwks_file, MAX_SET_BYTES)
            try:
                self.keys = parse_keys(self._file.read())
            except (KeySetError, TrustedFileError) as error:
                raise KeySetError(f"{str(settings.jwks_file)!r} {error}") from None

    async def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Returns the key that a token was signed with; None if the provider has no such key.

        Args:
            kid: The id that the token names, if any.
            algorithm: The algorithm that it names.
        """
        found = self._find(kid, algorithm)
        if found is None and self._file is None:
            fetching = self._fetch(self._settings.min_refresh_s)
            if fetching is not None:
                # Looking up a host has no time limit of its own.
                await asyncio.wait([fetching], timeout=2 * self._settings.timeout_s)
                found = self._find(kid, algorithm)
        return found

    def _find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        return None if self.keys is None else self.keys.find(kid, algorithm)

    async def refresh(self) -> None:
        """Reads the file again if it has changed, or begins to fetch keys that are old."""
        if self._file is None:
            age_s = time.monotonic() - self._fetched_s
            if age_s >= self._settings.refresh_s:
                self._fetch(self._settings.min_refresh_s)
            return
        try:
            data = await thread_pools.SETTINGS.run(self._file.changed)
            if data is not None:
                self._take(parse_keys(data))
            else:
                self._failure = ""
        except (KeySetError, TrustedFileError) as error:
            self._fail(f"{str(self._settings.jwks_file)!r} {error}")

    def close(self) -> None:
        """Waits no longer for the provider."""
        if self._fetching is not None:
            self._fetching.cancel()

    def _fetch(self, least_s: float) -> asyncio.Task[None] | None:
        """Begins to fetch the keys, unless that happened in the last `least_s` seconds.

        Returns:
            The task that fetches them, also one that has begun before; None: it is too early.
        """
        if self._fetching is not None:
            return self._fetching
        now_s = time.monotonic()
        if now_s - self._asked_s < least_s:
            return None
        self._asked_s = now_s
        self._fetching = asyncio.create_task(self._fetch_now())
        return self._fetching

    async def _fetch_now(self) -> None:
        settings = self._settings
        try:
            data = await thread_pools.KEYS.run(_download, settings.jwks_url, settings.timeout_s)
            self._take(parse_keys(data))
            self._fetched_s = time.monotonic()
        except (OSError, HTTPException, ValueError) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
            self._fail(f"{settings.jwks_url} {reason}")
        finally:
            self._fetching = None

    def _take(self, keys: SigningKeys) -> None:
        before = self.keys
        self.keys = keys
        if self._failure or before is None or before.fingerprints != keys.fingerprints:
            logger.info("the identity provider has %d signing keys", len(keys))
        if not len(keys):
            logger.warning("the identity provider has no usable signing key: no token is accepted")
        self._failure = ""

    def _fail(self, failure: str) -> None:
        """Logs a failure once, until it changes or is over."""
        if failure != self._failure:
            kept = "no token is accepted" if self.keys is None else "the known ones stay in use"
            logger.error("the keys of the identity provider cannot be read: %s; %s", failure, kept)
        self._failure = failure


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it could lead to http, or to a host that nobody chose."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Returns None, with which the redirection becomes an error."""
        return


def _download(url: str, timeout_s: float) -> bytes:
    """Returns the content at an address.

    Args:
        url: The address.
        timeout_s: Seconds that it may take, but for looking up the host.

    Raises:
        OSError: It cannot be reached, or takes too long.
        HTTPException: The answer is not HTTP.
        ValueError: The answer is too large.
    """
    end_s = time.monotonic() + timeout_s
    handlers: list[Any] = [_NoRedirect()]
    if urlsplit(url).scheme == "http":  # on this machine, where no proxy can help
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    headers = {"Accept": "application/json", "User-Agent": "treadle-server"}
    data = bytearray()
    request = urllib.request.Request(url, headers=headers)
    with _opened(opener, request, timeout_s) as response:
        while piece := response.read1(_PIECE_BYTES):
            data += piece
            if len(data) > MAX_SET_BYTES:
                raise ValueError(f"is larger than {MAX_SET_BYTES} bytes")
            if time.monotonic() > end_s:
                raise TimeoutError(f"did not answer within {timeout_s:g} seconds")
    return bytes(data)


def _opened(opener: urllib.request.OpenerDirector, request: Any, timeout_s: float) -> Any:
    """Returns the open answer to a request; one that is an error is closed.

    Raises:
        OSError: It is an error, or no answer came.
    """
    try:
        return opener.open(request, timeout=timeout_s)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
