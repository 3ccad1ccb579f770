"""The note that every kernel is on disk, which spares later processes a question."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from treadle.model import kernel_cache


@pytest.mark.parametrize("is_written", [True, False])
def test_it_is_noted_that_all_are_compiled_only_where_all_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    def kernel(state: str, signatures: tuple[int, ...], written: bool) -> SimpleNamespace:
        cache = SimpleNamespace(is_filled=lambda: written)
        return SimpleNamespace(state=state, signatures=signatures, _cache=cache)

    kernels = [
        kernel("a", (1,), True),
        kernel("b", (), False),  # not needed on this machine
        kernel("", (1,), False),  # never kept
        kernel("c", (1,), is_written),
    ]
    monkeypatch.setattr(kernel_cache, "KERNELS", kernels)
    monkeypatch.setattr(kernel_cache, "PYTHON_MODE", False)
    monkeypatch.setattr(kernel_cache, "kernel_folder", lambda: str(tmp_path))
    assert not kernel_cache.all_compiled()
    kernel_cache.note_all_compiled()
    assert kernel_cache.all_compiled() == is_written


def test_where_kernels_are_removed_it_is_not_noted_that_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cache, "PYTHON_MODE", False)
    monkeypatch.setattr(kernel_cache, "kernel_folder", lambda: str(tmp_path))
    kernel_cache._note().touch()
    (tmp_path / "new-1").mkdir()
    kernel_cache.sweep_temporary_kernels()
    assert kernel_cache.all_compiled()
    old = tmp_path / "old-1"
    old.mkdir()
    os.utime(old, (0, 0))
    assert kernel_cache.sweep_temporary_kernels() >= 1
    assert not old.exists()
    assert not kernel_cache.all_compiled()
