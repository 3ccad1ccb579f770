"""`QuotaNotice` says why a call is silent: its quota of tokens is used up, and the server waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from treadle.client.cli.display.notices import print_notice
from treadle.client.errors import TreadleError

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import GetServerInfoResponse

SILENCE_S = 3.0
"""Seconds without a message before the server is asked about the quota."""

Item = TypeVar("Item")


class QuotaNotice:
    """Watches over the messages of a call, in a `with` block.

    A call with more tokens than its quota allows is not refused: it continues as the quota is
    filled again, a minute's tokens in a minute. Once no message has arrived for SILENCE_S, the
    server is asked, and a line on standard error says so if that is the reason.

    Args:
        ask: Asks the server about itself and the caller.
        on_terminal: Whether the line may stand behind text without a line's end.
    """

    def __init__(
        self, ask: Callable[[], GetServerInfoResponse], *, on_terminal: bool = False
    ) -> None:
        self._ask = ask
        self._before = "\n" if on_terminal else ""
        self._arrived = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over = True
        self._arrived.set()

    def over(self, messages: Iterable[Item]) -> Iterator[Item]:
        """Yields messages, and notes that they arrive."""
        for message in messages:
            self._arrived.set()
            yield message

    def _watch(self) -> None:
        """Waits for silence, and prints at most one line."""
        while not self._is_over:
            if self._arrived.wait(SILENCE_S):
                self._arrived.clear()
                continue
            if quota := self._used_up_quota():
                if not self._is_over:
                    print_notice(
                        f"the quota of {quota:,} tokens per minute is used up: the text continues "
                        "as the quota is filled again (`treadle info` shows it)",
                        before=self._before,
                    )
                return

    def _used_up_quota(self) -> int:
        """Returns the quota of tokens per minute that is used up; 0: it is not."""
        try:
            info = self._ask()
        except (TreadleError, ValueError):  # ValueError: the channel is closed
            return 0
        caller = info.caller
        limited = info.HasField("caller") and caller.quotas.HasField("tokens_per_minute")
        if not limited or caller.use.tokens_left > 0:
            return 0
        return int(caller.quotas.tokens_per_minute)
