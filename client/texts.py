"""Texts in the making: one stream reader, and what callers see of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from treadle.client.errors import InternalError
from treadle.client.streams import Call, Stream
from treadle.v1.sequence_pb2 import GenerateResponse, GenerateResult, Token


@dataclass
class Text:
    """One generated text."""

    index: int
    """Its number among the texts asked for, from 0."""
    text: str = ""
    """Its text, so far or as a whole."""
    tokens: list[Token] = field(default_factory=list)
    """Its tokens, where log-probabilities, ranks or alternatives were asked for."""
    result: GenerateResult = field(default_factory=GenerateResult)
    """Why it ended, the seed used, the counts, and its state and novelty where asked for."""


class TextStream(Stream[GenerateResponse]):
    """The responses of a Generate call, put together text by text.

    Args:
        call: The call under way.
        address: The server's address, for messages.
        offset: The number of its first text.
    """

    def __init__(self, call: Call[GenerateResponse], address: str, offset: int = 0) -> None:
        super().__init__(call, address)
        self._offset = offset
        self._texts: dict[int, Text] = {}

    def responses(self) -> Iterator[GenerateResponse]:
        """Yields the server's messages as they are: text, tokens and, last of each, the result."""
        while True:
            try:
                response = self._receive()
            except StopIteration:
                return
            text = self._text(response.index)
            text.text += response.text
            text.tokens.extend(response.tokens)
            if response.HasField("result"):
                text.result = response.result
            yield response

    def _text(self, index: int) -> Text:
        """Finds one text of the call, which may have said nothing yet."""
        return self._texts.setdefault(index, Text(index + self._offset))


class Generation(TextStream):
    """A text in the making: iterate over its pieces, then ask for `result()`."""

    def __init__(self, call: Call[GenerateResponse], address: str) -> None:
        super().__init__(call, address)
        self._made = self._text(0)
        self._ended = False

    @property
    def text(self) -> str:
        """The text so far."""
        return self._made.text

    @property
    def tokens(self) -> list[Token]:
        """The tokens so far, where `log_probabilities`, ranks or alternatives were asked for."""
        return self._made.tokens

    def __iter__(self) -> Iterator[str]:
        """Yields pieces of text as they are made; none is empty."""
        for response in self.responses():
            if response.text:
                yield response.text

    def responses(self) -> Iterator[GenerateResponse]:
        """Yields the server's messages as they are: text, tokens and, last, the result."""
        for response in super().responses():
            self._ended |= response.HasField("result")
            yield response

    def result(self) -> GenerateResult:
        """Waits for the end and returns why it ended, the seed used and the counts.

        Raises:
            ServerError: The call failed, or was closed before its end.
        """
        for _ in self.responses():
            pass
        if not self._ended:
            raise InternalError("the generation ended without a result")
        return self._made.result


class Texts(TextStream):
    """Several texts in the making: iterate over them in the order of their numbers."""

    def __iter__(self) -> Iterator[Text]:
        """Yields whole texts, each as soon as it and all before it have ended.

        They end in an order that varies from call to call. Those that wait for an earlier one
        are held; they are no more than a call has texts.

        Raises:
            ServerError: The call failed, or ended before all of its texts did.
        """
        waiting: dict[int, Text] = {}
        following = 0
        for response in self.responses():
            if response.HasField("result"):
                waiting[response.index] = self._texts.pop(response.index)
            while following in waiting:
                yield waiting.pop(following)
                following += 1
        unfinished = len(self._texts) + len(waiting)
        if unfinished and not self._closed:
            raise InternalError(f"{unfinished} of the texts ended without a result")
