"""`list_models`, `get_model` and `delete_model` answer the requests to `/v1/models`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from treadle.server.http.openai.model_ids import fingerprint, model_id, read_model_id
from treadle.server.http.openai.openai_error import OpenAIError
from treadle.v1 import sequence_pb2 as pb

if TYPE_CHECKING:
    from treadle.server.http.openai.exchange import Exchange

_PAGE = 1000
_MOST = 10_000
"""The most models of a list."""


async def list_models(exchange: Exchange) -> Response:
    """Returns the response to `GET /v1/models`: the newest version of every model.

    Raises:
        StatusError: The call failed.
    """
    found = list[dict[str, Any]]()
    token = ""
    while len(found) < _MOST:
        request = pb.ListModelsRequest(page_size=_PAGE, page_token=token)
        page = await exchange.call("ListModels", request)
        found += [model_object(model, model.name) for model in page.models if not model.damage]
        token = page.next_page_token
        if not token:
            break
    return JSONResponse({"object": "list", "data": found})


async def get_model(exchange: Exchange) -> Response:
    """Returns the response to `GET /v1/models/ID`.

    Raises:
        OpenAIError: The id names the weights of a job.
        StatusError: There is no such model.
    """
    name = exchange.path["model"]
    request = pb.GetModelRequest(**_reference(name))
    found = await exchange.call("GetModel", request)
    return JSONResponse(model_object(found.model, name))


async def delete_model(exchange: Exchange) -> Response:
    """Returns the response to `DELETE /v1/models/ID`: NAME is every version, NAME@N one.

    Raises:
        OpenAIError: The id is an alias, or names the weights of a job.
        StatusError: There is no such model, or it may not be deleted.
    """
    name = exchange.path["model"]
    fields = _reference(name)
    if "@" in fields["model"]:
        text = f"{name!r} is an alias: delete a version, as NAME@N, or the model"
        raise OpenAIError(400, text, param="model")
    fields["all_versions"] = not fields["version"]
    await exchange.call("DeleteModel", pb.DeleteModelRequest(**fields))
    return JSONResponse({"id": name, "object": "model", "deleted": True})


def model_object(model: pb.Model, name: str) -> dict[str, Any]:
    """Returns a model as OpenAI's API describes it, with a few fields of our own.

    Args:
        model: The model.
        name: The id under which it was requested.
    """
    return {
        "id": name,
        "object": "model",
        "created": model.create_time.seconds,
        "owned_by": "treadle",
        "root": model_id(model.name, model.version),
        "aliases": [f"{model.name}@{alias}" for alias in model.aliases],
        "vocabulary_size": model.vocabulary_size,
        "parameters": model.parameter_count,
        "system_fingerprint": fingerprint(model),
    }


def _reference(name: str) -> dict[str, Any]:
    """Returns the fields that name a stored model."""
    reference = read_model_id(name)
    if reference.job:
        text = "the weights of a job are not a model yet: see /v1/fine_tuning/jobs"
        raise OpenAIError(400, text, param="model")
    return reference.fields()
