"""Compiles every kernel, or loads it from the disk cache, before anyone waits for it."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from treadle.kernels import cache_folder
from treadle.kernels import jit as policy
from treadle.kernels.cache_folder import remove_temporary_folders
from treadle.kernels.jit import BF16_MISSING, KERNELS, TARGET, TEMPORARY_CACHE
from treadle.kernels.substring_match import longest_match_by_ranks
from treadle.model.config import (
    DataConfig,
    LimitsConfig,
    NetworkConfig,
    OptimizerConfig,
    TrainConfig,
)
from treadle.model.enums import Cell, OptimizerKind, Precision
from treadle.model.generation.novelty import NoveltyIndex
from treadle.model.model import Model
from treadle.model.online.learner import Learner
from treadle.model.scoring.scores import Details
from treadle.model.training.trainer import train

_UNFINISHED_S = 2 * 86_400.0
"""Seconds after which a file of compiled code that is not whole is what a killed process left."""


def warm() -> None:
    """Trains, score and generate with tiny models, so that every kernel is compiled and loaded."""
    config = TrainConfig(
        data=DataConfig(validation_fraction=0.4, novelty_index=True),
        network=NetworkConfig(hidden_size=2, layers=2, embedding_size=2),
        limits=LimitsConfig(max_steps=1),
    )
    corpus = b"warm " * 20  # enough for a validation part
    for kind, cell in zip(OptimizerKind, Cell, strict=True):
        # clip_value and a tiny clip_norm call the clipping kernels as well
        optimizer = OptimizerConfig(kind=kind, clip_value=1.0, clip_norm=1e-6)
        network = replace(config.network, cell=cell, embedding_size=2 * (cell is not Cell.RNN))
        model = train(corpus, replace(config, network=network, optimizer=optimizer))
        _warm_inference(model)
    some, ends = np.zeros(2, np.int32), np.arange(3)
    for text in (some.astype(np.uint8), some.astype(np.uint16), some):
        NoveltyIndex(text, some).novelty([0], model.tokenizer)
        longest_match_by_ranks(text, some, some, ends)
    if not BF16_MISSING:
        train(corpus, replace(config, optimizer=OptimizerConfig(precision=Precision.BF16)))


def _warm_inference(model: Model) -> None:
    """Generates and score in every way that has kernels of its own."""
    told: dict[str, Any] = {"ranks": True, "top_log_probabilities": 2, "max_new_tokens": 2}
    changed: dict[str, Any] = {"repetition_penalty": 2, "min_p": 0.1, "typical_p": 0.5}
    model.generate("warm", top_p=0.5, **told, **changed, forced_tokens=(0,))
    model.generate("warm", best_of=2, **told)
    model.score("warm", details=Details(ranks=True, alternatives=2))
    for _ in Learner(model).feed("warm", end=True, learn=True):
        pass


def compiled_for() -> str:
    """Returns the processor that kernels are compiled for, in LLVM's naming."""
    return TARGET.name


def kernels_ready() -> tuple[int, int]:
    """Returns how many kernels are compiled so far, and how many there are.

    Where they are loaded from the disk cache, those are counted that are called from Python.
    """
    compiled = sum(1 for kernel in KERNELS if getattr(kernel, "signatures", None))
    return compiled, len(KERNELS)


def kernel_folder() -> str:
    """Returns the folder of compiled kernels; empty where none are compiled."""
    return str(policy.config.CACHE_DIR or "")  # type: ignore[attr-defined]


def temporary_kernels() -> str:
    """Returns why compiled kernels are kept only until this process ends; empty where they stay."""
    return TEMPORARY_CACHE


def drop_temporary_kernels() -> None:
    """Removes compiled kernels that are not to outlive this process; nothing may be compiled then.

    The end of the process does so by itself, but for `os._exit`.
    """
    remove_temporary_folders()


def sweep_temporary_kernels() -> int:
    """Removes compiled kernels that processes left which were killed; return how many folders.

    These are temporary folders whose process has ended, and files of the folder of this process
    that have not been whole for days.

    Raises:
        OSError: The disk failed.
    """
    count = 0
    parent = Path(tempfile.gettempdir())
    for folder in cache_folder._abandoned(parent):
        shutil.rmtree(folder, ignore_errors=True)
        count += 1
    home = kernel_folder()
    for path in Path(home).rglob("*.tmp.*") if home else ():
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _UNFINISHED_S:
                path.unlink()
                count += 1
    return count
