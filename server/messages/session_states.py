"""`given_state` reads the session state that a request carries."""

from __future__ import annotations

from treadle.model import Model
from treadle.model.errors import StateError
from treadle.model.network.session_state import SessionState
from treadle.server.errors import from_model


def given_state(model: Model, data: bytes, field: str, key: bytes) -> SessionState | None:
    """Returns the session state that a request carries; None if it carries none.

    The first call for a model takes long, since it reads all of the weights.

    Args:
        model: The model that continues from the state.
        data: The bytes of the state.
        field: The field of the request that holds them.
        key: The secret that signs states; empty for none.

    Raises:
        StatusError: The state is damaged, or belongs to another model.
    """
    try:
        return model.read_state(data, key) if data else None
    except StateError as error:
        raise from_model(error, field) from error
