"""A conversation with one model, whose whole memory is a few kilobytes in the caller's hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Unpack

from treadle.client.errors import CancelledError, InputError, InternalError
from treadle.client.options import GenerateOptions, pinned
from treadle.v1.sequence_pb2 import GenerateResult

if TYPE_CHECKING:
    from treadle.client.generating import Generating
    from treadle.client.texts import Generation


class Session:
    """Sends prompt after prompt, each going on from exactly where the last reply ended.

    The server keeps nothing of it. `state` and `version` may be stored, for ever and anywhere,
    and given to `client.session(model, state=..., version=...)` later.

    Args:
        client: The client to ask.
        model: The model's name, or NAME@ALIAS.
        options: Options of every reply: `state`, `version`, `temperature`, ...

    Raises:
        InputError: No model is named, or a job is: its weights change, and a state would be lost.
    """

    def __init__(self, client: Generating, model: str, options: GenerateOptions) -> None:
        if not model or options.get("job"):
            raise InputError("a session needs a stored model: its state is bound to the weights")
        self._client = client
        self._options: dict[str, Any] = {**options}
        self.model = model
        """The model's name, or NAME@ALIAS until a reply has told the version."""
        self.state: bytes = self._options.pop("state", b"")
        """The memory so far; empty at the beginning."""
        self.version: int = self._options.pop("version", 0)
        """The version whose memory it is; 0 until the first reply, unless it was given."""
        self.result: GenerateResult | None = None
        """What the last reply came to."""
        self._reply: Generation | None = None

    def send(self, prompt: str = "", **options: Unpack[GenerateOptions]) -> str:
        """Reads a prompt, and returns the reply.

        Args:
            prompt: What comes next; empty only goes on.
            **options: Options of this reply, on top of the session's.

        Returns:
            The new text. The memory holds the prompt and the new text from now on, but not the
            stop sequence or end token that ended it.

        Raises:
            InputError: An option is wrong.
            ServerError: The call failed; the memory is as it was.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str = "", **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """Reads a prompt, and yields the reply in pieces as it is made; see `send`.

        The memory moves on when the last piece has been taken; a reply that is left early leaves
        it as it was.

        Raises:
            InputError: An option is wrong.
            CancelledError: `stop` was called; the memory is as it was.
            ServerError: The call failed; the memory is as it was.
        """
        asked: Any = {**self._options, **options, "return_state": True}
        asked.setdefault("state", self.state)
        asked.setdefault("version", self.version)
        with self._client.generate(self._name(), prompt, **asked) as generation:
            self._reply = generation
            try:
                yield from generation
                result = generation.result()
            except InternalError:
                if generation.closed:
                    raise CancelledError("the reply was stopped", code="CANCELLED") from None
                raise
            finally:
                self._reply = None
        self.result, self.state, self.version = result, result.state, result.version

    def stop(self) -> None:
        """Ends the reply under way, from another thread: it raises a CancelledError.

        The memory is then as it was before that reply. Nothing where none is under way.
        """
        reply = self._reply
        if reply is not None:
            reply.close()

    def read(self, text: str) -> None:
        """Reads a text without a reply.

        Raises:
            ServerError: The call failed; the memory is as it was.
        """
        self.send(text, max_new_tokens=0)

    def fork(self) -> Session:
        """Makes a second session that goes on from here on its own."""
        options: Any = {**self._options, "state": self.state, "version": self.version}
        twin = Session(self._client, self.model, options)
        twin.result = self.result
        return twin

    def _name(self) -> str:
        """Names the model: an alias may move, so the number is what counts once it is known."""
        return pinned(self.model) if self.version else self.model
