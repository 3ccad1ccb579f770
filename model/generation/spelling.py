"""A whole text from its tokens: where a stop sequence ends it, and which tokens are before that."""

from __future__ import annotations

from dataclasses import dataclass

from treadle.model.config import SamplingConfig
from treadle.model.generation.stop_sequences import StopFilter
from treadle.model.tokenizers.base import Tokenizer
from treadle.model.tokenizers.whitespace import WhitespaceTokenizer


@dataclass(frozen=True)
class Spelling:
    """What tokens spell."""

    text: str
    """The text, up to a stop sequence."""
    stop: str
    """The stop sequence that ends it, or an empty text."""
    kept: int
    """Tokens before the first that has a part of the stop sequence."""
    held: bytes
    """What a text stream that goes on after those has to know."""


def spell(
    tokenizer: Tokenizer, held: bytes, ids: list[int], sampling: SamplingConfig, flush: bool
) -> Spelling:
    """Turn a text's tokens into text.

    Args:
        tokenizer: of the model.
        held: what the text stream held back where they begin.
        ids: the tokens, without an end token.
        sampling: the stop sequences, and how many tokens none of them ends.
        flush: whether half a character at the end is shown as U+FFFD.
    """
    stream, texts, helds = tokenizer.stream(held), [], [held]
    for token in ids:
        texts.append(stream.push([token]))
        helds.append(stream.held)
    exempt = min(len(ids), sampling.min_new_tokens)
    free, stops = "".join(texts[:exempt]), StopFilter(sampling.stop_sequences)
    rest = "".join(texts[exempt:]) + (stream.flush() if flush else "")
    text = free + stops.push(rest)
    if not stops.found:
        return Spelling(text + stops.flush(), "", len(ids), helds[-1])
    kept, reach = 0, 0
    while kept < len(ids) and reach + len(texts[kept]) <= len(text):
        reach += len(texts[kept])
        kept += 1
    # What is held back before a blank is not a part of a character.
    if not isinstance(tokenizer, WhitespaceTokenizer):
        while kept > exempt and helds[kept] and reach == len(text):
            kept -= 1
            reach -= len(texts[kept])
    return Spelling(text, stops.found, kept, helds[kept])
