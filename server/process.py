"""`end_by`, `leave_threads` and `keep_pauses_short` manage the process that a server runs in."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time

from treadle.model import drop_temporary_kernels

logger = logging.getLogger(__name__)

FAREWELL_S = 0.2
"""Seconds that a last reply needs to leave, and that a late end may take."""

_SWITCH_S = 0.001
"""Seconds for which a thread that runs Python may keep the event loop waiting. A call waits several
times, and Python's own 5 ms would add up."""


def keep_pauses_short() -> None:
    """Makes Python itself interrupt the event loop for a few milliseconds at most.

    Called once everything is imported and compiled. A full collection then looks at new objects
    only, and not at some hundred thousand that are never freed, which takes 80 ms.
    """
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()


def end_by(limit_s: float) -> None:
    """Ends the process after `limit_s` seconds, even if a disk or a thread hangs.

    What is on disk is whole at every moment: the next server continues as after a kill.
    """

    def end() -> None:
        time.sleep(limit_s)
        # In another thread: the one that hangs may hold the lock of the log.
        last_words = threading.Thread(target=_exit_late, daemon=True)
        last_words.start()
        last_words.join(FAREWELL_S)
        os._exit(0)

    threading.Thread(target=end, name="treadle-grace", daemon=True).start()


def leave_threads() -> None:
    """Ends the process if a thread still runs a kernel; Python itself would wait for it."""
    until = time.monotonic() + FAREWELL_S
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                _exit()


def _exit_late() -> None:
    logger.warning("the end took longer than the grace period: the process ends at once")
    _exit()


def _exit() -> None:
    """Ends the process without waiting for its threads."""
    drop_temporary_kernels()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)
