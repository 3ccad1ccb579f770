"""`SiteCheck` refuses what web pages of other sites send through a browser on this machine.

A browser sends requests to 127.0.0.1, or into a company's network, for any page that it shows. Such
a page cannot read the answers, but it can have jobs trained or models deleted. It announces itself
in the headers `Origin` and `Sec-Fetch-Site`, which it cannot forge.

A page whose own name leads to this machine (DNS rebinding) could read the answers as well. It shows
in the header `Host`: nobody can make an address or `localhost` lead elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

import grpc
from starlette.types import ASGIApp, Receive, Scope, Send

from treadle.server.http.errors import HttpError, error_response
from treadle.server.http.probes import PATHS

_Code = grpc.StatusCode

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")

EVERY = "*"
"""Stands for every name or origin."""


class SiteCheck:
    """Checks each request before an app gets it.

    Args:
        app: The app.
        origins: Origins whose pages may call, such as `https://app.example`; `*`: all.
        hosts: Names under which the server may be called, besides addresses, `localhost` and names
            without a dot; `*`: any. Needed where no credential is.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str], hosts: Collection[str]) -> None:
        self._app = app
        self._origins = origins
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "http" and scope["path"] not in PATHS:
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            fault = self._fault(scope["method"], headers)
            if fault is not None:
                await error_response(fault)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _fault(self, method: str, headers: dict[bytes, str]) -> HttpError | None:
        host = headers.get(b"host", "")
        if not self._is_own(host):
            text = (
                "the header Host names this server in a way that it does not know: call it by its "
                "address or as localhost, or start it with --http-allow-host"
            )
            return HttpError(421, _Code.PERMISSION_DENIED, text)
        if self._is_of_other_site(method, host, headers):
            text = (
                "the request comes from a web page of another site: start the server with "
                "--http-allow-origin to let that page call"
            )
            return HttpError(403, _Code.PERMISSION_DENIED, text)
        return None

    def _is_own(self, host: str) -> bool:
        """Returns whether a host is this server, whatever the page that asks is."""
        if EVERY in self._hosts or not host:  # HTTP/1.0 has none, and no browser speaks it
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match[1].strip("[]").lower().rstrip(".")
        if "." not in name or name.endswith(".localhost") or name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _is_of_other_site(self, method: str, host: str, headers: dict[bytes, str]) -> bool:
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site", "")
        if origin is None:
            # A link that somebody follows, and programs, which are no browsers.
            follows = method in ("GET", "HEAD") and headers.get(b"sec-fetch-mode") == "navigate"
            return site in ("cross-site", "same-site") and not follows
        if site == "same-origin" or EVERY in self._origins or origin in self._origins:
            return False
        return origin.partition("://")[2].lower() != host.lower()
