"""`GenerationMetrics` counts the tokens of one Generate call, and measures when they come."""

from __future__ import annotations

import time

from treadle.server.telemetry import metrics


class GenerationMetrics:
    """The metrics of one call, from its creation on.

    They are counted once for each message and not for each token.
    """

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._texts: dict[int, _Text] = {}

    def prompt(self, tokens: int) -> None:
        """Counts the tokens of the prompt, once they are read."""
        metrics.PREFILL_TOKENS.inc(tokens)

    def text(self, index: int, tokens: int, is_over: bool) -> None:
        """Counts new tokens of a text.

        Args:
            index: The number of the text.
            tokens: All its new tokens up to now.
            is_over: Whether these are all.
        """
        now_s = time.perf_counter()
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
