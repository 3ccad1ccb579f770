"""`routes` are the paths under `/v1/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.routing import Route

from treadle.server.http.openai import completions, embeddings, models
from treadle.server.http.openai.exchange import Endpoint, Exchange, Handler
from treadle.server.http.openai.openai_error import OpenAIError
from treadle.server.http.openai.tuning import files, jobs

if TYPE_CHECKING:
    from treadle.server.http.request_body import Bodies
    from treadle.server.rpc.in_process import InProcessService

_PATHS: dict[str, dict[str, Handler]] = {
    "/v1/models": {"GET": models.list_models},
    "/v1/models/{model}": {"GET": models.get_model, "DELETE": models.delete_model},
    "/v1/completions": {"POST": completions.complete},
    "/v1/chat/completions": {"POST": completions.refuse_chat},
    "/v1/embeddings": {"POST": embeddings.embed},
    "/v1/files": {"GET": files.list_files, "POST": files.upload_file},
    "/v1/files/{file}": {"GET": files.get_file, "DELETE": files.delete_file},
    "/v1/files/{file}/content": {"GET": files.read_file},
    "/v1/fine_tuning/jobs": {"GET": jobs.list_jobs, "POST": jobs.create_job},
    "/v1/fine_tuning/jobs/{job}": {"GET": jobs.get_job},
    "/v1/fine_tuning/jobs/{job}/events": {"GET": jobs.list_events},
    "/v1/fine_tuning/jobs/{job}/checkpoints": {"GET": jobs.list_checkpoints},
    "/v1/fine_tuning/jobs/{job}/cancel": {"POST": jobs.changes_job("CancelJob")},
    "/v1/fine_tuning/jobs/{job}/pause": {"POST": jobs.changes_job("PauseJob")},
    "/v1/fine_tuning/jobs/{job}/resume": {"POST": jobs.changes_job("ResumeJob")},
}


def routes(service: InProcessService, bodies: Bodies) -> list[Route]:
    """Returns the routes.

    Args:
        service: The RPCs.
        bodies: Reads the bodies of requests.
    """
    found = [
        Route(path, Endpoint(service, bodies, **handlers)) for path, handlers in _PATHS.items()
    ]
    anything = dict.fromkeys(("GET", "POST", "PUT", "PATCH", "DELETE"), _refuse)
    return [*found, Route("/v1/{path:path}", Endpoint(service, bodies, **anything))]


async def _refuse(exchange: Exchange) -> None:
    path = exchange.scope["path"][:100]
    served = ", ".join(path for path in _PATHS if "{" not in path)
    raise OpenAIError(404, f"nothing is served at {path}; there are {served}", code="unknown_url")
