"""`PERMISSIONS` is the one table of the least role for each RPC."""

from __future__ import annotations

import grpc

from treadle.server.access.caller import Caller, Role
from treadle.server.errors import StatusError

PERMISSIONS = {
    "Train": Role.TRAINER,
    "WatchJob": Role.READER,
    "GetJob": Role.READER,
    "ListJobs": Role.READER,
    "CancelJob": Role.TRAINER,
    "PauseJob": Role.TRAINER,
    "ResumeJob": Role.TRAINER,
    "DeleteJob": Role.TRAINER,
    "Generate": Role.USER,
    "Score": Role.USER,
    "ScoreStream": Role.USER,
    "LearnStream": Role.TRAINER,
    "Embed": Role.USER,
    "ListModels": Role.READER,
    "GetModel": Role.READER,
    "DeleteModel": Role.TRAINER,
    "SetAlias": Role.TRAINER,
    "DeleteAlias": Role.TRAINER,
    "ExportModel": Role.TRAINER,
    "ImportModel": Role.TRAINER,
    "UploadFile": Role.TRAINER,
    "ListFiles": Role.READER,
    "GetFile": Role.READER,
    "ReadFile": Role.READER,
    "DeleteFile": Role.TRAINER,
    "GetServerInfo": Role.READER,
}
"""The least role for each method of the service."""


def check_permission(caller: Caller, method: str) -> None:
    """Checks that a caller may call a method at all.

    Args:
        caller: The caller.
        method: The method's name, such as `Train`.

    Raises:
        StatusError: PERMISSION_DENIED.
    """
    least = PERMISSIONS[method]
    if caller.role < least:
        message = f"{method} requires the role {least.title}; you have the role {caller.role.title}"
        raise StatusError(grpc.StatusCode.PERMISSION_DENIED, message)
