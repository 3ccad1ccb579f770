"""`Generation` and `GeneratedTexts` read the responses of a Generate call: one text or several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from treadle.client.errors import InternalError
from treadle.client.streaming import Call, ResponseStream
from treadle.v1.sequence_pb2 import GenerateResponse, GenerateResult, Token


@dataclass
class GeneratedText:
    """One generated text."""

    index: int
    """Its number among the requested texts, from 0."""
    text: str = ""
    """The text, as far as it has been generated."""
    tokens: list[Token] = field(default_factory=list)
    """Its tokens, where log-probabilities, ranks or alternatives were requested."""
    result: GenerateResult = field(default_factory=GenerateResult)
    """Why it ended, the seed, the counts, and its state and novelty where requested."""


class Generation(ResponseStream[GenerateResponse]):
    """One text while it is generated: iterate over its pieces, then call `result()`.

    Args:
        call: The call under way.
    """

    def __init__(self, call: Call[GenerateResponse]) -> None:
        super().__init__(call)
        self._generated = GeneratedText(0)
        self._ended = False

    @property
    def text(self) -> str:
        """The text so far."""
        return self._generated.text

    @property
    def tokens(self) -> list[Token]:
        """The tokens so far, where `log_probabilities`, ranks or alternatives were requested."""
        return self._generated.tokens

    def __iter__(self) -> Iterator[str]:
        """Yields pieces of the text as they are generated; none is empty."""
        for response in self.responses():
            if response.text:
                yield response.text

    def responses(self) -> Iterator[GenerateResponse]:
        """Yields the server's messages: text and tokens, and the result in the last one."""
        while True:
            try:
                response = self._receive()
            except StopIteration:
                return
            add_response(self._generated, response)
            self._ended |= response.HasField("result")
            yield response

    def result(self) -> GenerateResult:
        """Waits for the end and returns why the text ended, the seed and the counts.

        Returns:
            The end of the text: its reason, the seed and the counts.

        Raises:
            ServerError: The call failed, or was closed before its end.
        """
        for _ in self.responses():
            pass
        if not self._ended:
            raise InternalError("the generation ended without a result")
        return self._generated.result


class GeneratedTexts(ResponseStream[GenerateResponse]):
    """Several texts of one call: iterate over them in the order of their numbers.

    Args:
        call: The call under way.
        offset: The number of the first text.
    """

    def __init__(self, call: Call[GenerateResponse], offset: int = 0) -> None:
        super().__init__(call)
        self._offset = offset

    def __iter__(self) -> Iterator[GeneratedText]:
        """Yields whole texts, each as soon as it and all before it have ended.

        The order in which they end varies from call to call. A text that waits for an earlier one
        is held; at most all texts of the call are held at once.

        Raises:
            ServerError: The call failed, or ended before all of its texts did.
        """
        under_way: dict[int, GeneratedText] = {}
        waiting: dict[int, GeneratedText] = {}
        following = 0
        while True:
            try:
                response = self._receive()
            except StopIteration:
                break
            index = response.index
            text = under_way.setdefault(index, GeneratedText(index + self._offset))
            add_response(text, response)
            if response.HasField("result"):
                waiting[index] = under_way.pop(index)
            while following in waiting:
                yield waiting.pop(following)
                following += 1
        unfinished = len(under_way) + len(waiting)
        if unfinished and not self._closed:
            raise InternalError(f"{unfinished} of the texts ended without a result")


def add_response(text: GeneratedText, response: GenerateResponse) -> None:
    """Adds a response of a Generate call to the text that it belongs to."""
    text.text += response.text
    text.tokens.extend(response.tokens)
    if response.HasField("result"):
        text.result = response.result
