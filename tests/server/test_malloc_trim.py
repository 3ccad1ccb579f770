"""Memory goes back to the system after a burst."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from treadle.server.resources.malloc_trim import Heap, MallocTrimmer

MIB = 1 << 20


class FakeHeap:
    """Heaps of which a test says what they hold."""

    def __init__(self) -> None:
        self.held = 100 * MIB
        self.spare = 0
        self.returns = 0

    def waste(self) -> int:
        return self.held + self.spare

    def return_free_pages(self) -> None:
        self.returns += 1
        self.spare = 0


def test_it_returns_what_is_worth_it_and_not_again_what_never_goes() -> None:
    heap: Any = FakeHeap()
    memory = MallocTrimmer(heap)
    heap.spare = 31 * MIB
    assert not memory.look()
    heap.spare = 33 * MIB
    assert memory.look()
    assert heap.spare == 0
    heap.held += 50 * MIB  # compiled code, say: one try shows that it stays
    assert memory.look()
    assert not memory.look()
    assert heap.returns == 2
    heap.held -= 60 * MIB
    assert not memory.look()
    heap.spare = 33 * MIB
    assert memory.look()
    memory.close()


BURST = """
from pathlib import Path
from treadle.server.resources.malloc_trim import Heap, MallocTrimmer

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

memory = MallocTrimmer(Heap())
blocks = [bytes(60_000) for _ in range(2000)]
pinned = bytes(60_000)  # the heap cannot simply be cut off
full = resident()
del blocks
kept = resident()
assert memory.look()
print(full, kept, resident(), len(pinned))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do it themselves")
def test_a_burst_leaves_no_memory_behind() -> None:
    try:
        Heap()
    except (OSError, AttributeError):
        pytest.skip("this C library is no glibc 2.33 or newer")
    command = [sys.executable, "-c", BURST]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    full, kept, after, _ = map(int, done.stdout.split())
    assert kept > full - 20 * MIB  # without us it stays
    assert after < full - 80 * MIB


def test_the_thread_ends_with_the_server() -> None:
    memory = MallocTrimmer.begin()
    if memory is None:
        pytest.skip("this C library is no glibc 2.33 or newer")
    memory.close()
    assert not memory._thread.is_alive()
