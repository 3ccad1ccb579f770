"""`http_app` joins the parts of the HTTP address into one ASGI app.

Its requests are answered by RPCs in this process, so that callers, rights, quotas, limits and
errors are those of gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from treadle.server.config import MalformedSettingError
from treadle.server.errors import StatusError
from treadle.server.http import metrics_endpoint, probes
from treadle.server.http.connect.routes import routes as connect_routes
from treadle.server.http.errors import HttpError, error_response
from treadle.server.http.openai.routes import routes as openai_routes
from treadle.server.http.page.routes import routes as page_routes
from treadle.server.http.request_body import Bodies
from treadle.server.http.response_headers import ResponseHeaders
from treadle.server.http.site_check import EVERY, SiteCheck
from treadle.server.http.turns import Turns
from treadle.server.http.unread_replies import UnreadReplies

if TYPE_CHECKING:
    from treadle.server.config import ServerConfig
    from treadle.server.http.metrics_page import MetricsPage
    from treadle.server.resources.memory_budget import MemoryBudget
    from treadle.server.rpc.in_process import InProcessService

_Code = grpc.StatusCode

_CODES = {404: _Code.NOT_FOUND, 405: _Code.UNIMPLEMENTED}
"""What the errors of routing are as a status of gRPC."""

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_NAME = re.compile(r"[a-z0-9._-]+")

_ASKED_HEADERS = (
    *("authorization", "content-type", "content-encoding", "x-request-id", "traceparent"),
    *("connect-protocol-version", "connect-timeout-ms", "connect-content-encoding"),
    *("connect-accept-encoding", "x-user-agent", "tracestate"),
    # Those of OpenAI's client in a browser.
    *("x-stainless-lang", "x-stainless-package-version", "x-stainless-os", "x-stainless-arch"),
    *("x-stainless-runtime", "x-stainless-runtime-version", "x-stainless-retry-count"),
    *("x-stainless-timeout", "idempotency-key"),
)
"""Headers that pages of other origins may send, where they may call at all."""

_SHOWN_HEADERS = ("x-request-id", "retry-after", "x-should-retry", "connect-content-encoding")
"""Headers of responses that such pages may read."""


def http_app(
    service: InProcessService,
    config: ServerConfig,
    budget: MemoryBudget,
    is_ready: Callable[[], bool],
    metrics: MetricsPage,
) -> Starlette:
    """Returns the app.

    Args:
        service: The RPCs.
        config: The settings of the server.
        budget: Counts the bytes of requests while they arrive.
        is_ready: Returns whether the server reports SERVING.
        metrics: Writes the metrics of the server.
    """
    bodies = Bodies(budget, config.max_message_bytes)
    routes: list[BaseRoute] = [
        *openai_routes(service, bodies),
        *probes.routes(is_ready),
        *metrics_endpoint.routes(metrics),
        *connect_routes(service, bodies),
        *page_routes(),
    ]
    return Starlette(
        routes=routes,
        middleware=_middleware(config, budget),
        exception_handlers={StatusError: _answer_status, HTTPException: _answer_routing},
    )


def listed(config: ServerConfig, setting: str, form: re.Pattern[str], what: str) -> frozenset[str]:
    """Returns the entries of a setting that is a list with commas.

    Args:
        config: The settings of the server.
        setting: The name of the setting.
        form: What an entry looks like, besides `*`.
        what: What an entry is, for messages.

    Raises:
        MalformedSettingError: An entry is something else.
    """
    entries = [entry.strip().rstrip("/").lower() for entry in getattr(config, setting).split(",")]
    for entry in filter(None, entries):
        if entry != EVERY and not form.fullmatch(entry):
            raise MalformedSettingError(setting, f"has {entry!r}, which is not {what}")
    return frozenset(filter(None, entries))


def _middleware(config: ServerConfig, budget: MemoryBudget) -> list[Middleware]:
    origins = listed(config, "http_allow_origin", _ORIGIN, "an origin, as https://app.example")
    hosts = listed(config, "http_allow_host", _NAME, "the name of a host, as treadle.example")
    if config.callers_file:  # a page without a credential may call under any name
        hosts = frozenset([EVERY])
    found = [
        Middleware(Turns),
        Middleware(ResponseHeaders),
        Middleware(UnreadReplies, budget=budget),
        Middleware(SiteCheck, origins=origins, hosts=hosts),
    ]
    if origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=sorted(origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=_ASKED_HEADERS,
                expose_headers=_SHOWN_HEADERS,
                max_age=7200,
            )
        )
    return found


async def _answer_status(request: Request, error: Exception) -> Response:
    assert isinstance(error, StatusError)
    return error_response(error)


async def _answer_routing(request: Request, error: Exception) -> Response:
    """Answers a request whose path or method does not exist."""
    assert isinstance(error, HTTPException)
    text = error.detail
    if error.status_code == 404:
        text = "there is nothing at this path"
    elif error.status_code == 405:
        text = f"the method {request.method} is not allowed here"
    code = _CODES.get(error.status_code, _Code.UNKNOWN)
    fault = HttpError(error.status_code, code, text)
    fault.headers.update(error.headers or {})
    return error_response(fault)
