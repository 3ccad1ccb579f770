"""`Items` generates many texts in as many calls as that takes, each only once if requested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from treadle.client.errors import InputError
from treadle.client.options import without_alias

if TYPE_CHECKING:
    from treadle.client.generation import GeneratedText, GeneratedTexts

MAX_N = 256
"""Texts in one call."""

TRIES = 10
"""Default of `max_tries` for each requested text."""

GenerateCall = Callable[[int, int, dict[str, Any]], "GeneratedTexts"]
"""Calls Generate with a number of texts, the number of the first one, and the options."""


class Items:
    """Many generated texts: iterate over them once; `close()` or a `with` block ends it early.

    They come in the order of their numbers, so that a seed gives the same list every time: a text
    that ends early waits for those before it.

    Args:
        call: Calls Generate.
        n: The number of texts.
        unique: Leave out a text that came before.
        novel: Leave out a text that the training part of the corpus contains.
        max_tries: The most texts to generate. Default: 10 n.
        options: The options of each call.

    Raises:
        InputError: A number is out of range, or the options do not go together.
    """

    def __init__(
        self,
        call: GenerateCall,
        n: int,
        *,
        unique: bool,
        novel: bool,
        max_tries: int | None,
        options: dict[str, Any],
    ) -> None:
        if n < 1:
            raise InputError(f"n cannot be {n!r}: ask for at least one text", "n")
        if n > MAX_N and options.get("best_of"):
            why = f"a beam search gives at most {MAX_N}"
            raise InputError(f"n cannot be {n!r} with best_of: {why}", "n")
        if max_tries is not None and max_tries < 1:
            raise InputError(f"max_tries cannot be {max_tries!r}: allow at least one", "max_tries")
        if max_tries is not None and not (unique or novel):
            raise InputError(
                "max_tries has no effect where every text counts: set unique, set novel, or leave "
                "max_tries out",
                "max_tries",
            )
        self._call = call
        self._n = n
        self._unique = unique
        self._novel = novel
        self._max_tries = n * TRIES if max_tries is None else max_tries
        self._options = options | ({"novelty": True} if novel else {})
        self._may_repeat = _is_random(options) if unique or novel else n > MAX_N
        self._stack = ExitStack()
        self._seen: set[str] = set()
        self.tries = 0
        """Texts generated so far."""
        self.given = 0
        """Texts yielded so far."""
        self.seed: int | None = options.get("seed")
        """The seed of the first call; the server's, once known, where none was given."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def missing(self) -> int:
        """How many texts are still to come; at the end, how many could not be found."""
        return self._n - self.given

    def close(self) -> None:
        """Cancels the call under way; nothing more is yielded."""
        self._stack.close()
        self._max_tries = 0

    def __iter__(self) -> Iterator[GeneratedText]:
        """Yields whole texts; fewer than n where `max_tries` texts were not enough.

        Raises:
            ServerError: A call failed.
        """
        number = 0
        while self.missing and self.tries < self._max_tries and (self._may_repeat or number == 0):
            for text in self._call_once(number):
                if self.missing and self._accepts(text):
                    self.given += 1
                    yield text
            number += 1

    def _call_once(self, number: int) -> Iterator[GeneratedText]:
        """Makes the next call, for no more texts than may be needed."""
        selective = self._unique or self._novel
        count = min(self.missing * (2 if selective and number else 1), MAX_N)
        count = min(count, self._max_tries - self.tries)
        options = dict(self._options)
        if number and self.seed is not None:
            options["seed"] = later_seed(self.seed, number)
        texts = self._stack.enter_context(self._call(count, self.tries, options))
        self.tries += count
        for text in texts:
            self._fix_first(text)
            yield text
        self._stack.pop_all().close()

    def _fix_first(self, text: GeneratedText) -> None:
        """Keeps later calls to the version, the precision and the seed of the first one."""
        if self.seed is None and not self._options.get("best_of"):
            self.seed = text.result.seed
        if "job" not in self._options and not self._options.get("version"):
            self._options["model"] = without_alias(self._options["model"])
            self._options["version"] = text.result.version
        if text.result.inference_precision:  # an older server does not say it
            self._options.setdefault("inference_precision", text.result.inference_precision)

    def _accepts(self, text: GeneratedText) -> bool:
        """Returns whether a text counts: it is new, or has not come before, as requested."""
        if self._novel and not text.result.novelty.is_new:
            return False
        if self._unique and text.text in self._seen:
            return False
        self._seen.add(text.text)
        return True


def _is_random(options: dict[str, Any]) -> bool:
    """Returns whether another call can give other texts; beam search and greed cannot."""
    return not options.get("best_of") and options.get("temperature") != 0


def later_seed(seed: int, number: int) -> int:
    """Derives the seed of a later call from the first one's (SplitMix64, Steele et al. 2014).

    Args:
        seed: The seed of the first call.
        number: The number of the call; the first one is 0.

    Returns:
        A seed below 2**64.
    """
    mask = 2**64 - 1
    mixed = (seed + number * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return mixed ^ (mixed >> 31)
