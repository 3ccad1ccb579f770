"""Stop sequences: where a text ends, and what of it may be shown before that is known."""

from __future__ import annotations


class StopFilter:
    """Lets text through up to a stop sequence, holding back what may become one.

    The sequence that is complete first ends the text, the longer one of two that end together; so
    it does not matter how the text is cut.

    Args:
        stops: The sequences to watch for.
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
        certain, self._held = self._held[:length], self._held[length:]
        return certain
