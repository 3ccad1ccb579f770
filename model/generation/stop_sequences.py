"""`StopFilter` ends a text at a stop sequence, and holds back text that may become one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.model.config import SamplingConfig
    from treadle.model.tokenizers.base import Tokenizer


class StopFilter:
    """Lets text through up to a stop sequence.

    The sequence that is complete first ends the text, the longer one of two that end together. So
    it does not matter how the text is cut.

    Args:
        stops: The stop sequences.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = ""
        """The sequence that ended the text."""

    @property
    def holds(self) -> bool:
        """Whether some text is held back."""
        return bool(self._held)

    def push(self, text: str) -> str:
        """Takes more text and returns what is certain; sets `found` at the first stop."""
        if not self._stops:
            return text
        self._held += text
        places = [(self._held.find(stop), stop) for stop in self._stops]
        hits = [(place + len(stop), place, stop) for place, stop in places if place >= 0]
        if hits:
            _, place, self.found = min(hits)
            return self._release(place)
        return self._release(len(self._held) - self._undecided())

    def flush(self) -> str:
        """Returns what is still held back, at the end of the text."""
        return self._release(len(self._held))

    def _undecided(self) -> int:
        """Returns the length of the longest end of the held text that begins a stop sequence."""
        longest = min(len(self._held), max((len(stop) - 1 for stop in self._stops), default=0))
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, length: int) -> str:
        certain = self._held[:length]
        self._held = self._held[length:]
        return certain


@dataclass(frozen=True)
class StoppedText:
    """The text of some tokens, up to a stop sequence."""

    text: str
    """The text."""
    stop: str
    """The stop sequence that ends it, or an empty text."""
    kept: int
    """Tokens before the first that has a part of the stop sequence."""
    held: bytes
    """The bytes of an unfinished character after those tokens, for the stream that continues."""


def stopped_text(
    tokenizer: Tokenizer, held: bytes, ids: list[int], sampling: SamplingConfig, flush: bool
) -> StoppedText:
    """Turns all tokens of a text into text.

    Args:
        tokenizer: The model's tokenizer.
        held: The bytes of an unfinished character before the tokens.
        ids: The tokens, without an end token.
        sampling: The stop sequences, and the number of first tokens that none of them ends.
        flush: Whether an unfinished character at the end is shown as U+FFFD.

    Returns:
        The text up to its stop, and where it ends.
    """
    stream = tokenizer.stream(held)
    texts = []
    helds = [held]
    for token in ids:
        texts.append(stream.push([token]))
        helds.append(stream.held)
    exempt = min(len(ids), sampling.min_new_tokens)
    stops = StopFilter(sampling.stop_sequences)
    rest = "".join(texts[exempt:]) + (stream.flush() if flush else "")
    text = "".join(texts[:exempt]) + stops.push(rest)
    if not stops.found:
        return StoppedText(text + stops.flush(), "", len(ids), helds[-1])
    kept = 0
    reach = 0
    while kept < len(ids) and reach + len(texts[kept]) <= len(text):
        reach += len(texts[kept])
        kept += 1
    # A tokenizer that puts blanks between tokens holds back a blank, not part of a character.
    if not tokenizer.joins_with_spaces:
        while kept > exempt and helds[kept] and reach == len(text):
            kept -= 1
            reach -= len(texts[kept])
    return StoppedText(text, stops.found, kept, helds[kept])
