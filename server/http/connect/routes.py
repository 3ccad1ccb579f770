"""`routes` are those of the Connect protocol, one for each method of the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from treadle.server.http.connect.method import ConnectMethod
from treadle.server.http.errors import HttpError, error_response
from treadle.v1 import sequence_pb2

if TYPE_CHECKING:
    from treadle.server.http.request_body import Bodies
    from treadle.server.rpc.in_process import InProcessService

_SERVICE = sequence_pb2.DESCRIPTOR.services_by_name["SequenceService"]

_SHOWN = 60
"""Characters of an unknown name that a message repeats."""


def routes(service: InProcessService, bodies: Bodies) -> list[Route]:
    """Returns the routes.

    Args:
        service: The RPCs.
        bodies: Reads the bodies of requests.
    """
    prefix = f"/{_SERVICE.full_name}"
    found = [
        Route(f"{prefix}/{method.name}", ConnectMethod(service, method, bodies))
        for method in _SERVICE.methods
    ]
    return [*found, Route(f"{prefix}/{{method:path}}", _unknown, methods=["GET", "POST"])]


async def _unknown(request: Request) -> Response:
    name = request.path_params["method"]
    text = f"{_SERVICE.full_name} has no method {name[:_SHOWN]!r}"
    return error_response(HttpError(404, grpc.StatusCode.UNIMPLEMENTED, text))
