"""`Session` is a conversation with one model whose memory, a few kilobytes, the caller keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from treadle.client.errors import CancelledError, InputError, InternalError, ServerError
from treadle.client.options import GenerateOptions, without_alias
from treadle.client.replicas.retry import RECONNECT_S, ignore
from treadle.v1.sequence_pb2 import GenerateResult

if TYPE_CHECKING:
    from treadle.client.generation import Generation


class Generator(Protocol):
    """The part of a `Client` that a session uses."""

    def generate(
        self,
        model: str = "",
        prompt: str = "",
        *,
        reconnect_s: float = ...,
        on_break: Callable[[ServerError], None] = ...,
        **options: Unpack[GenerateOptions],
    ) -> Generation:
        """Continues a prompt."""


class Session:
    """Sends prompt after prompt; each continues from exactly where the last reply ended.

    The server keeps nothing of it. `state` and `version` may be stored anywhere, for any time,
    and given to `client.session(model, state=..., version=...)` later.

    Args:
        client: The client.
        model: The model's name, or NAME@ALIAS.
        options: Options of every reply: `state`, `version`, `temperature`, ...
        reconnect_s: How long to try to reconnect where the connection breaks within a reply, in
            seconds; the reply then continues to the same bytes.
        on_break: Called with the error of a broken connection, before it is made again.

    Raises:
        InputError: No model is named, or a job is: its weights change, and a state would be lost.
    """

    def __init__(
        self,
        client: Generator,
        model: str,
        options: GenerateOptions,
        reconnect_s: float = RECONNECT_S,
        on_break: Callable[[ServerError], None] = ignore,
    ) -> None:
        if not model or options.get("job"):
            raise InputError("a session needs a stored model: its state is bound to the weights")
        self._client = client
        self._reconnect_s = reconnect_s
        self._on_break = on_break
        self._options: dict[str, Any] = {**options}
        self.model = model
        """The model's name, or NAME@ALIAS."""
        self.state: bytes = self._options.pop("state", b"")
        """The memory so far; empty at the beginning."""
        self.version: int = self._options.pop("version", 0)
        """The version that the state belongs to; 0 until the first reply, unless it was given."""
        self.result: GenerateResult | None = None
        """The result of the last reply."""
        self._reply: Generation | None = None

    def send(self, prompt: str = "", **options: Unpack[GenerateOptions]) -> str:
        """Reads a prompt and returns the reply.

        Args:
            prompt: The text to continue from, after everything before; may be empty.
            **options: Options of this reply, on top of the session's.

        Returns:
            The new text. The memory then holds the prompt and the new text, but not the
            stop sequence or end token that ended it.

        Raises:
            InputError: An option is wrong.
            ServerError: The call failed; the memory is unchanged.
        """
        return "".join(self.stream(prompt, **options))

    def stream(self, prompt: str = "", **options: Unpack[GenerateOptions]) -> Iterator[str]:
        """Reads a prompt and yields the reply in pieces as it is generated; see `send`.

        The memory changes when the last piece has been taken; a reply that is left early leaves
        it unchanged.

        Yields:
            The pieces of the reply.

        Raises:
            InputError: An option is wrong.
            CancelledError: `stop` was called; the memory is unchanged.
            ServerError: The call failed; the memory is unchanged.
        """
        asked: Any = {**self._options, **options, "return_state": True}
        asked.setdefault("state", self.state)
        asked.setdefault("version", self.version)
        # An alias may move, so the version counts once it is known.
        model = without_alias(self.model) if self.version else self.model
        asked |= {"reconnect_s": self._reconnect_s, "on_break": self._on_break}
        with self._client.generate(model, prompt, **asked) as generation:
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
        self.result = result
        self.state = result.state
        self.version = result.version

    def stop(self) -> None:
        """Ends the reply under way, from another thread: it raises a CancelledError.

        The memory is then what it was before that reply. Does nothing between replies.
        """
        reply = self._reply
        if reply is not None:
            reply.close()

    def read(self, text: str) -> None:
        """Reads a text without a reply.

        Raises:
            ServerError: The call failed; the memory is unchanged.
        """
        self.send(text, max_new_tokens=0)

    def fork(self) -> Session:
        """Returns a second session that continues from here on its own."""
        options: Any = {**self._options, "state": self.state, "version": self.version}
        twin = Session(self._client, self.model, options, self._reconnect_s, self._on_break)
        twin.result = self.result
        return twin
