"""Random changes to bytes and to JSON values, all of them drawn from one seed: `Mutator`."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_NUMBERS = (
    0,
    1,
    2,
    255,
    256,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    10**6,
    10**30,
    -1,
    -2,
    -(2**31),
    -(2**63),
    0.5,
    -0.0,
    1e-320,
    1e308,
)
_TEXTS = (
    "",
    " ",
    "\n",
    "\0",
    "a",
    "abc",
    "\ufffd",
    "\ud800",
    "\U0010ffff",
    "é",
    "x" * 3000,
    "1",
    "null",
    "__metadata__",
    "F32",
    "F64",
    "I32",
    "U8",
    "BF16",
    "F16",
    "BOOL",
    "text",
    "lines",
    "words",
    "lstm",
    "gru",
    "rnn",
    "subwords",
    "bytes",
    "events",
    "whitespace",
    "characters",
    "error",
    "unknown",
    "skip",
)
_CONSTANTS: tuple[Any, ...] = (None, True, False, [], {}, float("nan"), float("inf"), [[]], [{}])


class Mutator:
    """Draws changes.

    Args:
        seed: The same one gives the same changes.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self) -> Any:
        """Returns a value that is at the edge of some range, or of another type."""
        return copy.deepcopy(
            self.random.choice(
                (
                    self.random.choice(_NUMBERS),
                    self.random.choice(_TEXTS),
                    self.random.choice(_CONSTANTS),
                    self.random.randrange(-300, 300),
                )
            )
        )

    def json(self, content: Any, times: int = 1) -> Any:
        """Returns JSON values of which some were changed, left out, doubled or moved.

        Args:
            content: What `json.loads` returned; not changed.
            times: How many changes.
        """
        content = copy.deepcopy(content)
        for _ in range(times):
            places = list(_places(content))
            if not places:
                return self.value()
            holder, key = self.random.choice(places)
            self._change(holder, key)
        return content

    def _change(self, holder: Any, key: Any) -> None:
        old = holder[key]
        choice = self.random.randrange(8)
        if choice == 0:
            del holder[key]
        elif choice == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(old))
        elif choice == 1:
            holder[self.random.choice(_TEXTS)] = copy.deepcopy(old)
        elif choice == 2 and len(holder) > 1:  # two values change places
            other = self.random.choice(
                list(holder) if isinstance(holder, dict) else range(len(holder))
            )
            holder[key], holder[other] = holder[other], old
        elif choice == 3 and isinstance(old, (int, float)) and not isinstance(old, bool):
            holder[key] = old + self.random.choice((-1, 1, 2, -2, 256, -old, old))
        elif choice == 4 and isinstance(old, str):
            holder[key] = old + self.random.choice(_TEXTS)
        elif choice == 5 and isinstance(old, list):
            holder[key] = old * 2 if self.random.randrange(2) else old[::-1]
        else:
            holder[key] = self.value()

    def dumped(self, content: Any) -> str:
        """Returns JSON text, now and then with a name that is there twice."""
        text = json.dumps(content, ensure_ascii=self.random.randrange(2) == 0)
        if isinstance(content, dict) and content and self.random.randrange(8) == 0:
            name = self.random.choice(list(content))
            again = json.dumps({name: self.json({name: content[name]}).get(name)})
            text = (
                f"{{{again[1:-1]},{text[1:]}"
                if self.random.randrange(2)
                else (f"{text[:-1]},{again[1:-1]}}}")
            )
        return text

    def bytes(self, data: bytes, times: int = 1) -> bytes:
        """Returns bytes of which some were changed, left out, doubled or added."""
        out = bytearray(data)
        for _ in range(times):
            place = self.random.randrange(len(out) + 1)
            choice = self.random.randrange(8)
            if choice == 0:
                del out[place:]
            elif choice == 1:
                del out[place : place + self.random.choice((1, 2, 4, 8, 100))]
            elif choice == 2:
                out[place:place] = self.random.randbytes(self.random.choice((1, 2, 4, 8, 100)))
            elif choice == 3:
                out += self.random.randbytes(self.random.choice((1, 2, 4, 8, 100)))
            elif choice == 4:
                size = self.random.choice((4, 8))
                number = int(self.random.choice(_NUMBERS)) % (1 << (8 * size))
                out[place : place + size] = number.to_bytes(size, "little")
            elif choice == 5:
                out[place:place] = out[place : place + self.random.choice((1, 8, 64))]
            elif out:
                at = min(place, len(out) - 1)
                out[at] ^= 1 << self.random.randrange(8) if choice == 6 else 0xFF
        return bytes(out)


def _places(content: Any) -> Any:
    """Yields every place of a value within others: what holds it, and its name or index."""
    if isinstance(content, dict):
        items: Any = list(content.items())
    elif isinstance(content, list):
        items = list(enumerate(content))
    else:
        return
    # Of a vocabulary only some: else no change would ever meet anything next to it.
    step = max(1, len(items) // 16)
    for key, value in items[::step]:
        yield content, key
        yield from _places(value)
