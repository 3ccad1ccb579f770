"""`Settings` says what is measured and for how long: the cases of every section."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any

SECTIONS = (
    "check",
    "train",
    "bf16",
    "peak",
    "numpy",
    "decode",
    "sessions",
    "score",
    "int8",
    "busy",
    "start",
)
"""What `--only` chooses from, in the order measured."""

LABELS = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}

SIZES = {64: 32, 128: 32, 256: 64, 512: 64}
"""Hidden units, and the batch rows that training uses with them."""


@dataclass(frozen=True)
class Settings:
    """How long and how much."""

    threads: int = 2
    """Threads of training and scoring, ours and the peers' alike."""
    rounds: int = 5
    """Rounds of A B A B; a figure is the median of so many samples."""
    seconds: float = 0.5
    """Seconds of one sample."""
    quick: bool = False
    """Small cases only: to see that everything runs."""
    cold: bool = False
    """Also compile every kernel again, which takes a minute or two."""
    sections: tuple[str, ...] = SECTIONS
    """The sections to run."""
    earlier: str = ""
    """The interpreter of an environment with an earlier version of Treadle; empty: none."""


def usable_cores() -> int:
    """Returns how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Case:
    """One network and batch, as a worker measures it."""

    kind: str
    """What to do: train, decode, score, ..."""
    cell: str
    """rnn, gru or lstm."""
    hidden: int
    """Hidden units, H."""
    rows: int = 1
    """Sequences side by side, B."""
    steps: int = 64
    """Steps of a batch, T; tokens of one call where it decodes."""
    layers: int = 1
    """Layers, L."""
    vocabulary: int = 65
    """Tokens, V."""
    embedding: int = 64
    """Length of an embedding, E; 0 for one-hot input."""
    threads: int = 1
    """Threads that the work may use."""

    @property
    def label(self) -> str:
        """How tables and charts call it."""
        size = f"{self.layers}x{self.hidden}" if self.layers > 1 else f"{self.hidden}"
        return f"{LABELS[self.cell]} {size}"

    def as_json(self) -> dict[str, Any]:
        """Returns the case for a worker, and for the report."""
        return asdict(self)


def _sizes(settings: Settings) -> dict[int, int]:
    return {64: 32} if settings.quick else SIZES


def train_cases(settings: Settings) -> list[Case]:
    """Returns training steps of all cells and sizes, and one of two layers."""
    cases = [
        Case("train", cell, hidden, rows=rows, threads=settings.threads)
        for cell in LABELS
        for hidden, rows in _sizes(settings).items()
    ]
    if not settings.quick:
        cases.append(Case("train", "lstm", 256, rows=64, layers=2, threads=settings.threads))
    return cases


def bf16_cases(settings: Settings) -> list[Case]:
    """Returns training steps whose products are of bfloat16 numbers."""
    sizes = {64: 32} if settings.quick else {256: 64, 512: 64}
    return [
        Case("train", "lstm", hidden, rows=rows, threads=settings.threads)
        for hidden, rows in sizes.items()
    ]


def rltools_case(settings: Settings) -> Case:
    """Returns the GRU task of RLtools' benchmark: 256 classes, embedding 32."""
    return Case("train", "gru", 64, rows=32, vocabulary=256, embedding=32, threads=settings.threads)


def peak_cases(settings: Settings) -> list[Case]:
    """Returns the training steps that are compared with the processor's peak."""
    single = [case for case in train_cases(settings) if case.layers == 1]
    return [
        case
        for case in single
        if case.cell == "lstm" or (case.cell == "gru" and (settings.quick or case.hidden >= 256))
    ]


def numpy_cases(settings: Settings) -> list[Case]:
    """Returns the teaching script's shape, and a batch of an LSTM."""
    script = Case("train", "rnn", 100, rows=1, steps=25, embedding=0)
    batch = Case("train", "lstm", 64 if settings.quick else 128, rows=32, threads=settings.threads)
    return [script, batch]


def decode_cases(settings: Settings) -> list[Case]:
    """Returns cases of one session on one thread."""
    return [Case("decode", "lstm", hidden, steps=128) for hidden in _sizes(settings)]


def sessions_cases(settings: Settings) -> list[Case]:
    """Returns cases of many sessions together; `alone` is the one session to compare with."""
    sizes = (64,) if settings.quick else (128, 256, 512)
    return [Case("decode", "lstm", hidden, rows=64, steps=16) for hidden in sizes]


def alone(case: Case) -> Case:
    """Returns the case of a single session."""
    return replace(case, rows=1, steps=128)


def score_cases(settings: Settings) -> list[Case]:
    """Returns forward passes over a batch."""
    return [
        Case("score", cell, hidden, rows=64, threads=settings.threads)
        for cell in ("lstm", "gru")
        for hidden in _sizes(settings)
    ]


def int8_score_cases(settings: Settings) -> list[Case]:
    """Returns forward passes over a batch, of the sizes at which they take their time."""
    cases = score_cases(settings)
    return [case for case in cases if settings.quick or case.hidden >= 256]


def busy_case(settings: Settings) -> Case:
    """Returns what is trained while another process takes a processor."""
    size = 64 if settings.quick else 256
    return Case("train", "lstm", size, rows=64, threads=settings.threads)
