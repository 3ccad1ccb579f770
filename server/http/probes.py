"""`routes` are the probes: `/healthz` says that the process runs, `/readyz` that it serves."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

PATHS = ("/healthz", "/readyz")
"""The paths that everybody may ask, under any name of this machine."""


def routes(is_ready: Callable[[], bool]) -> list[Route]:
    """Returns the routes.

    Args:
        is_ready: Returns whether the server reports SERVING.
    """

    async def healthz(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> PlainTextResponse:
        if is_ready():
            return PlainTextResponse("ready\n")
        return PlainTextResponse("the server is starting or ending\n", 503)

    healthz_path, readyz_path = PATHS
    return [Route(healthz_path, healthz), Route(readyz_path, readyz)]
