"""`routes` are the paths under `/v1/`, those first that are asked for most often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Mount, Route

from treadle.server.http.openai import completions, embeddings, models
from treadle.server.http.openai.exchange import Endpoint, Exchange, Handler
from treadle.server.http.openai.openai_error import OpenAIError
from treadle.server.http.openai.tuning import files, jobs

if TYPE_CHECKING:
    from treadle.server.http.request_body import Bodies
    from treadle.server.rpc.in_process import InProcessService

_PREFIX = "/v1"
_PATHS: dict[str, dict[str, Handler]] = {
    "/completions": {"POST": completions.complete},
    "/models": {"GET": models.list_models},
    "/models/{model}": {"GET": models.get_model, "DELETE": models.delete_model},
    "/chat/completions": {"POST": completions.refuse_chat},
    "/embeddings": {"POST": embeddings.embed},
    "/files": {"GET": files.list_files, "POST": files.upload_file},
    "/files/{file}": {"GET": files.get_file, "DELETE": files.delete_file},
    "/files/{file}/content": {"GET": files.read_file},
    "/fine_tuning/jobs": {"GET": jobs.list_jobs, "POST": jobs.create_job},
    "/fine_tuning/jobs/{job}": {"GET": jobs.get_job},
    "/fine_tuning/jobs/{job}/events": {"GET": jobs.list_events},
    "/fine_tuning/jobs/{job}/checkpoints": {"GET": jobs.list_checkpoints},
    "/fine_tuning/jobs/{job}/cancel": {"POST": jobs.changes_job("CancelJob")},
    "/fine_tuning/jobs/{job}/pause": {"POST": jobs.changes_job("PauseJob")},
    "/fine_tuning/jobs/{job}/resume": {"POST": jobs.changes_job("ResumeJob")},
}


def routes(service: InProcessService, bodies: Bodies) -> list[Mount]:
    """Returns the routes.

    Args:
        service: The RPCs.
        bodies: Reads the bodies of requests.
    """
    found = [
        Route(path, Endpoint(service, bodies, **handlers)) for path, handlers in _PATHS.items()
    ]
    anything = dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE"), _refuse)
    found.append(Route("/{path:path}", Endpoint(service, bodies, **anything)))
    # One path to compare for the requests to everything else.
    return [Mount(_PREFIX, routes=found)]


async def _refuse(exchange: Exchange) -> None:
    path = exchange.scope["path"][:100]
    served = ", ".join(_PREFIX + path for path in _PATHS if "{" not in path)
    raise OpenAIError(404, f"nothing is served at {path}; there are {served}", code="unknown_url")
