"""Pauses of the event loop, whatever a caller sends."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import gc, sys
from treadle.server.process import keep_pauses_short
before = len(gc.get_objects())
keep_pauses_short()
print(before, gc.get_freeze_count(), len(gc.get_objects()), sys.getswitchinterval())
"""


def test_a_collection_looks_at_nothing_that_was_there_at_the_start() -> None:
    # In a process of its own: what is frozen stays so.
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True)
    before, frozen, left, switch_s = done.stdout.split()
    assert int(before) > 50_000
    assert int(frozen) > int(before) / 2
    assert int(left) < int(before) / 100
    assert float(switch_s) <= 0.001
