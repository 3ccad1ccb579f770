"""`check_read` and `check_write` hold the current caller to the models that it may read and write.

They are called before anything is looked up. So neither the reply nor its time shows a caller
whether a model exists that it may not read.
"""

from __future__ import annotations

import grpc

from treadle.server.access.audit.audited_call import audit_hidden
from treadle.server.access.caller import current_caller
from treadle.server.errors import StatusError, not_found
from treadle.server.names import split


def check_read(reference: str, version: int = 0) -> None:
    """Checks that the current caller may read and use a model.

    Args:
        reference: NAME or NAME@ALIAS, as the request has it.
        version: The version in the request; 0: none.

    Raises:
        StatusError: NOT_FOUND, exactly as for a model that does not exist; INVALID_ARGUMENT: there
            is an alias and a version.
    """
    name, _ = split(reference, version)
    if not current_caller().may_read(name):
        audit_hidden()
        raise not_found(name, version)


def check_write(name: str) -> None:
    """Checks that the current caller may train, publish, name and delete versions of a model.

    Args:
        name: The name of the model, whether it exists or not.

    Raises:
        StatusError: PERMISSION_DENIED.
    """
    if not current_caller().may_write(name):
        message = (
            f"you may not train, publish, name or delete versions of model {name!r}: take a name "
            "that your credential is for, or ask an administrator"
        )
        raise StatusError(grpc.StatusCode.PERMISSION_DENIED, message)
