"""`GenerationMetrics` counts the tokens of a Generate call, and measures when they come.

Its spans are `queue`, `prefill` and `decode`; the last has an event for each message of tokens.
"""

from __future__ import annotations

import time

from treadle.server.telemetry import metrics, tracing
from treadle.server.telemetry.tracing import TraceSpan


class GenerationMetrics:
    """The metrics of one call, from its creation on.

    They are counted once for each message and not for each token.
    """

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._texts: dict[int, _Text] = {}
        self._decoding: TraceSpan | None = None
        self._messages = 0

    def prompt(self, tokens: int, queued_s: float, began_s: float) -> None:
        """Counts the tokens of the prompt, once they are read.

        Args:
            tokens: The tokens.
            queued_s: When the call began to wait for its first turn, by `time.monotonic`.
            began_s: When it got that.
        """
        metrics.PREFILL_TOKENS.inc(tokens)
        if tracing.is_on():
            tracing.add("queue", queued_s, began_s)
            tracing.add("prefill", began_s, time.monotonic(), prompt_tokens=tokens)
            self._decoding = tracing.begin("decode")

    def end(self) -> None:
        """Ends the trace of the call, at its end, whatever that is."""
        if self._decoding is not None:
            tokens = sum(text.tokens for text in self._texts.values())
            texts = len(self._texts)
            self._decoding.set(new_tokens=tokens, texts=texts, messages=self._messages)
            self._decoding.end()
            self._decoding = None

    def text(self, index: int, tokens: int, is_over: bool) -> None:
        """Counts new tokens of a text.

        Args:
            index: The number of the text.
            tokens: All its new tokens up to now.
            is_over: Whether these are all.
        """
        now_s = time.perf_counter()
        if self._decoding is not None:
            self._messages += 1
            self._decoding.event("tokens", text=index, new_tokens=tokens)
        text = self._texts.get(index)
        if text is None:
            if not tokens:
                return
            text = self._texts[index] = _Text(now_s, tokens)
            metrics.FIRST_TOKEN_SECONDS.observe(now_s - self._began_s)
            metrics.DECODE_TOKENS.inc(tokens)
        elif tokens > text.tokens:
            metrics.DECODE_TOKENS.inc(tokens - text.tokens)
            text.tokens = tokens
        if is_over and text.tokens > text.first_tokens:
            later = text.tokens - text.first_tokens
            metrics.TOKEN_SECONDS.observe((now_s - text.first_s) / later)


class _Text:
    """What is known of one text.

    Args:
        first_s: When its first message came.
        tokens: The tokens of that message, which came together.
    """

    def __init__(self, first_s: float, tokens: int) -> None:
        self.first_s = first_s
        self.first_tokens = tokens
        self.tokens = tokens
