"""The processor time and memory of a process, also where no more files may be open."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from treadle.server.resources import process_status


def test_a_process_that_nobody_can_look_at_ends_no_watch_over_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert process_status.own_bytes(os.getpid()) > 0

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(Path, "read_bytes", failing)
    monkeypatch.setattr(Path, "read_text", failing)
    assert process_status.processor_seconds(os.getpid()) == 0
    assert process_status.own_bytes(os.getpid()) == 0
