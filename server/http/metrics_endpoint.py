"""`routes` is `/metrics`, which Prometheus scrapes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from treadle.server.http.caller_origin import origin_of
from treadle.server.http.metrics_page import PATH, MetricsPage


def routes(page: MetricsPage) -> list[Route]:
    """Returns the route.

    Args:
        page: Writes the metrics.
    """

    async def metrics(request: Request) -> Response:
        data, content_type = await page.read(origin_of(request), request.headers.get("accept", ""))
        return Response(data, headers={"content-type": content_type})

    return [Route(PATH, metrics, methods=["GET"])]
