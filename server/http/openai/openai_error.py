"""`OpenAIError` is an error as OpenAI's clients expect it: a status and one JSON object."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""The type of an error by its status; others are of the request or of the server."""

_CODES = {401: "invalid_api_key", 403: "permission_denied", 429: "rate_limit_exceeded"}
"""The code of an error by its status, where nothing more is known."""


class OpenAIError(Exception):
    """Ends a request with an error.

    Args:
        status: The HTTP status.
        message: One sentence for people.
        param: The field of the request that is at fault; None: no field is.
        code: A word for programs; None: the status says enough.
        headers: Headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = _CODES.get(status) if code is None else code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Returns the error as JSON."""
        if self.status >= 500:
            kind = "server_error"
        else:
            kind = _TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False).encode()

    def response(self) -> Response:
        """Returns the response that holds the error."""
        return Response(
            self.body(), self.status, media_type="application/json", headers=self.headers
        )


def invalid(param: str, message: str) -> OpenAIError:
    """Returns 400 for a field of the request."""
    return OpenAIError(400, message, param=param)
