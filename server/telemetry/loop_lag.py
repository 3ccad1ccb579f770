"""`measure_loop_lag` measures how late the event loop runs what is due."""

from __future__ import annotations

import asyncio

from treadle.server.telemetry import metrics

_INTERVAL_S = 0.25
"""Seconds between two measurements."""


async def measure_loop_lag() -> None:
    """Measures until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + _INTERVAL_S
        await asyncio.sleep(_INTERVAL_S)
        metrics.LOOP_LAG_SECONDS.observe(max(0.0, loop.time() - due_s))
