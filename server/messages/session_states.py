"""`SessionStates` reads and writes the session states of one caller."""

from __future__ import annotations

from treadle.model import Model
from treadle.model.errors import ForeignStateError, StateError
from treadle.model.network.session_state import SessionState
from treadle.server.access import state_sealer
from treadle.server.access.state_sealer import StateSealer
from treadle.server.errors import from_model

_FORMAT = b"TRS"
"""The first bytes of states of every version."""

_UNUSABLE = (
    "the state cannot be used: it is damaged, or this server did not return it to this caller, or "
    "its key is not in use any more; begin without one"
)
"""One sentence for all, so that nobody learns who made a state, and with which key."""

_OLD = (
    "the state is of a version that did not encrypt states, and nothing says whose it is: begin "
    "without one"
)

_SEALED = "the state is encrypted, and this server has no key for it: begin without one"


class SessionStates:
    """Reads and writes states of one caller; with a key, nobody else can use them.

    Args:
        sealer: Encrypts states.
        caller: The caller's name; empty for a caller without one.
    """

    def __init__(self, sealer: StateSealer, caller: str) -> None:
        self._sealer = sealer
        self._caller = caller

    def read(self, model: Model, data: bytes, field: str) -> SessionState | None:
        """Returns the state that a request carries; None if it carries none.

        The first call for a model takes long, since it reads all of the weights.

        Args:
            model: The model that continues from the state.
            data: The bytes of the state.
            field: The field of the request that holds them.

        Raises:
            StatusError: The state is damaged, or belongs to another caller or another model.
        """
        try:
            return self._read(model, data) if data else None
        except StateError as error:
            raise from_model(error, field) from error

    def write(self, model: Model, state: SessionState) -> bytes:
        """Returns a state as bytes for the caller.

        Args:
            model: The model that made the state.
            state: The state.
        """
        return self._sealer.seal(model.state_bytes(state), self._caller)

    def _read(self, model: Model, data: bytes) -> SessionState:
        sealed = data.startswith(state_sealer.MAGIC)
        if len(data) > state_sealer.OVERHEAD + SessionState.most_bytes(model.trained.shape):
            raise StateError("the state is longer than any of this model: begin without one")
        if not self._sealer.keys:
            if sealed:
                raise StateError(_SEALED)
            return model.read_state(data)
        if not sealed:
            return self._read_signed(model, data)
        state = self._sealer.open(data, self._caller)
        if state is None:
            raise StateError(_UNUSABLE)
        return model.read_state(state)

    def _read_signed(self, model: Model, data: bytes) -> SessionState:
        """Reads a state of earlier versions, which signed states and had no callers."""
        if self._caller:
            raise StateError(_OLD if data.startswith(_FORMAT) else _UNUSABLE)
        for key in self._sealer.keys:
            try:
                return model.read_state(data, key.secret)
            except ForeignStateError:
                raise
            except StateError:
                continue
        raise StateError(_UNUSABLE)
