"""What all tests share: the order of their files, and signals with their usual meaning."""

from __future__ import annotations

import signal
from types import FrameType

import pytest

SLOW_FILES = (
    "tests/exactness/test_processors.py",
    "tests/exactness/test_int8.py",
    "tests/server/test_durability.py",
    "tests/client/test_cases.py",
    "tests/server/test_training.py",
    "tests/server/test_page.py",
    "tests/docs/test_readme.py",
    "tests/benchmarks/test_bench.py",
    "tests/docs/test_pages.py",
    "tests/server/test_service.py",
    "tests/server/test_training_process.py",
    "tests/server/test_shutdown.py",
    "tests/server/test_start.py",
    "tests/server/test_tls.py",
    "tests/server/test_at_once.py",
    "tests/server/test_generating.py",
    "tests/server/test_job_calls.py",
    "tests/client/test_end_to_end.py",
    "tests/server/test_stopping.py",
    "tests/server/test_warmup.py",
    "tests/server/test_damage.py",
    "tests/server/test_open_streams.py",
    "tests/server/test_any_field.py",
    "tests/client/test_python_examples.py",
    "tests/server/test_left_behind.py",
    "tests/fuzz/test_fuzz.py",
)
"""The files that take longest, slowest first.

Each file runs in one of the processes of `make test`. A slow one that begins last would leave the
other processes idle.
"""


def pytest_configure() -> None:
    """Lets Ctrl-C and hang-ups reach the programs that tests start.

    A shell starts background commands with SIGINT ignored, and `nohup` ignores SIGHUP. Programs
    inherit that. They do not inherit a handler, so this process gets one that does nothing.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _do_nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Handles a signal that the caller wants ignored."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the tests of slow files to the front, the order within a file kept."""
    places = {file: place for place, file in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
