"""States that requests bring."""

from __future__ import annotations

from treadle.model import Model
from treadle.model.errors import StateError
from treadle.model.network.session_state import SessionState
from treadle.server.errors import from_model


def given_state(model: Model, data: bytes, field: str, key: bytes) -> SessionState | None:
    """Returns the state that a request brings, or None where it brings none.

    The first call for a model takes long: it reads all of its weights.

    Args:
        model: What is to go on from it.
        data: The state's bytes.
        field: The field of the request that has them.
        key: Authenticates states.

    Raises:
        StatusError: The state is damaged, or another model's.
    """
    try:
        return model.read_state(data, key) if data else None
    except StateError as error:
        raise from_model(error, field) from error
