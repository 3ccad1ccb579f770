"""`TrustedClock` gives the time of day, unless the clock has jumped.

Old files are deleted by the clock, and a clock may be weeks ahead for an hour: at a start without a
network, after a machine was resumed, or by mistake. The last known time is on disk, in
`DATA_DIR/clock`, and a running server counts on from there with a clock that never jumps. It trusts
the time of day where both agree, and otherwise once the time of day has been steady for an hour.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from treadle.server.storage.files import read_small

logger = logging.getLogger(__name__)

AHEAD_S = 86_400.0
"""Seconds that the clock may be ahead of the known time: a server may have been down as long."""

BEHIND_S = 3600.0
"""Seconds that the clock may be behind."""

CONFIRM_S = 3600.0
"""Seconds for which a clock that does not agree must be steady before it is trusted."""

_STEADY_S = 300.0
"""Seconds that a steady clock may be off after CONFIRM_S."""


class TrustedClock:
    """The time of day, unless it is doubtful.

    Args:
        path: The file with the last known time.
        newest_s: The newest time in the database, in seconds since the epoch, which is trusted
            where there is no such file; 0: nothing was stored.
        clock: Returns the time of day, in seconds since the epoch.
        monotonic: Returns seconds that never jump.
    """

    def __init__(
        self,
        path: Path,
        newest_s: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._clock = clock
        self._monotonic = monotonic
        self._known_s = _read(path) or newest_s or clock()
        self._known_at = monotonic()
        self._doubted: tuple[float, float] | None = None
        """The first time of day that was doubted, and when that was by `monotonic`."""

    def now(self) -> float | None:
        """Returns the time in seconds since the epoch; None while it is doubtful, which is logged.

        Call it at intervals, since each call observes the clock.
        """
        now = self._clock()
        at = self._monotonic()
        ahead = now - self._known_s - (at - self._known_at)
        if -BEHIND_S <= ahead <= AHEAD_S:
            self._trust(now, at)
            return now
        if self._doubted is None or not self._is_steady(now, at):
            self._doubted = (now, at)
            side = "ahead of" if ahead > 0 else "behind"
            logger.warning(
                "the clock is %.1f days %s the newest time in the data directory: nothing is "
                "deleted for its age before the clock was steady for %g minutes; correct it if it "
                "is wrong",
                abs(ahead) / 86_400, side, CONFIRM_S / 60,
            )  # fmt: skip
            return None
        if at - self._doubted[1] < CONFIRM_S:
            return None
        logger.warning("the clock was steady for %g minutes and is trusted", CONFIRM_S / 60)
        self._trust(now, at)
        return now

    def _is_steady(self, now: float, at: float) -> bool:
        assert self._doubted is not None
        doubted, since = self._doubted
        return abs(now - doubted - (at - since)) <= _STEADY_S

    def _trust(self, now: float, at: float) -> None:
        self._known_s = now
        self._known_at = at
        self._doubted = None
        temporary = self._path.parent / "tmp" / self._path.name
        try:
            temporary.write_text(f"{now:.3f}\n", "ascii")
            os.replace(temporary, self._path)
        except OSError as error:  # the disk may be full; the time before is known as well
            logger.debug("the time could not be stored: %s", error)


def _read(path: Path) -> float:
    """Returns the time in a file; 0 where it cannot be read."""
    try:
        known_s = float(read_small(path))
    except (OSError, ValueError):
        return 0.0
    return known_s if math.isfinite(known_s) and known_s > 0 else 0.0
