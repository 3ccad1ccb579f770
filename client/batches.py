"""Splits many texts into requests that stay well below any message limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_TEXTS = 1000
"""Texts in one request."""

MAX_CHARACTERS = 64 * 1024
"""Code points in one request of several texts; one longer text goes alone. With every token
told, the reply is some twenty times as large."""


def batches(texts: Iterable[str], max_texts: int = MAX_TEXTS) -> Iterator[list[str]]:
    """Gathers texts into batches, in order, reading no further than the batch at hand.

    Args:
        texts: Any number of texts.
        max_texts: The most texts in a batch.

    Yields:
        Lists that are never empty. What came before an error is yielded before it is raised.
    """
    batch: list[str] = []
    characters = 0
    found = iter(texts)
    while True:
        try:
            text = next(found)
        except StopIteration:
            break
        except Exception:
            if batch:
                yield batch
            raise
        if batch and (len(batch) == max_texts or characters + len(text) > MAX_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
