"""`routes` serves the page: `/` and the files under `/page/`."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from treadle.server.http.page.static_files import StaticFile, static_files

CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Whatever a model generates reaches the document as text and never as markup.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
"""What the browser lets the page do: run its own files, and talk to its own server."""

SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer with a file of the page."""


def routes() -> list[Route]:
    """Returns the routes of the page, which need no credential: the files hold no data."""
    found = static_files()

    async def index(request: Request) -> Response:
        return _answer(request, found["index.html"])

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in found:
            raise HTTPException(404, "the page has no such file")
        return _answer(request, found[name])

    return [Route("/", index), Route("/page/{name}", file)]


def _answer(request: Request, file: StaticFile) -> Response:
    """Returns a file, or 304 without it to a client that has it."""
    # The browser asks each time, so that it never mixes the files of two versions.
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": file.etag}
    if file.is_known(request.headers.get("If-None-Match", "")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
