"""`Workers` starts the rivals, each in the best of its settings, found by trying.

Each environment is a child process of its own, since allocators and thread pools read theirs
once, at start.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from treadle.benchmarks.processes import Worker, python
from treadle.benchmarks.settings import Case, Settings

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Keeps glibc from handing large blocks back to the system after every training step."""

EARLIER = "earlier"
"""The name of an earlier version of Treadle among the rivals."""

INT8_ENGINES = ("fbgemm", "onednn")
"""PyTorch's libraries for int8 products on x86; its own default is one of the two, by case."""

XLA_ONE_THREAD = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}


@dataclass(frozen=True)
class Entrant:
    """Something to be timed: a worker with a case and the settings to run it in."""

    worker: Worker
    case: Case
    way: str = ""
    """The settings in words."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The same for the worker."""


def cores_in_use(count: int) -> str:
    """Returns the first `count` processors of this process, as `0,1`; empty: do not care."""
    if not hasattr(os, "sched_getaffinity"):
        return ""
    return ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:count])


class Workers:
    """All child processes of a run; none starts before it is asked."""

    def __init__(self, settings: Settings) -> None:
        """Describe them."""
        self._all: dict[str, Worker] = {}
        one = cores_in_use(1)
        some = cores_in_use(settings.threads)
        self.ours = self._add("treadle", "ours")
        self.ours_again = self._add("treadle, again", "ours")
        self.ours_held = self._add("treadle, held", "ours", {"TREADLE_BENCH_CORES": some})
        self.numpy = {
            threads: self._add(
                f"numpy, {threads}", "numpy_reference", {"OPENBLAS_NUM_THREADS": str(threads)}
            )
            for threads in {1, settings.threads}
        }
        self.pytorch = {
            "malloc default": self._add("pytorch", "pytorch"),
            "malloc tuned": self._add("pytorch, tuned", "pytorch", MALLOC),
        }
        self.pytorch_held = self._add(
            "pytorch, held", "pytorch", {**MALLOC, "TREADLE_BENCH_CORES": some}
        )
        self.jax_one_core = self._add(
            "jax", "jax_scan", {**XLA_ONE_THREAD, "TREADLE_BENCH_CORES": one}
        )
        self.jax_all_cores = {
            "": self._add("jax, all cores", "jax_scan"),
            ", no Eigen threads": self._add("jax, all cores again", "jax_scan", XLA_ONE_THREAD),
        }
        self.onnxruntime = self._add("onnxruntime", "onnx_runtime")
        self.onnxruntime_int8 = self._add("onnxruntime, int8", "onnx_runtime")
        self.pytorch_int8 = self._add("pytorch, int8", "pytorch_int8")
        self.earlier: Worker | None = None
        """An earlier version of Treadle, if one is given."""
        if settings.earlier:
            self.earlier = self._add("treadle before", "ours", interpreter=settings.earlier)

    def _add(
        self,
        name: str,
        module: str,
        environment: Mapping[str, str] | None = None,
        interpreter: str = "",
    ) -> Worker:
        command = python("-m", "treadle.benchmarks.workers.start", module)
        if interpreter:
            command[0] = interpreter
        self._all[name] = Worker(name, command, environment)
        return self._all[name]

    def versions(self) -> dict[str, str]:
        """Returns the version of every package that was measured."""
        return {name: w.version for name, w in self._all.items() if w.version and "," not in name}

    def close(self) -> None:
        """Ends all child processes."""
        for worker in self._all.values():
            worker.close()


def _counts(threads: int) -> list[int]:
    return sorted({1, threads}, reverse=True)


def _plural(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


def pytorch_training(workers: Workers, case: Case, autocast: bool = False) -> list[Entrant]:
    """Tries one and more threads, Adam fused and not, glibc's allocator as it is and tuned.

    Args:
        workers: all of them.
        case: of training.
        autocast: whether products are of bfloat16 numbers.

    Returns:
        The entrants.
    """
    return [
        Entrant(
            worker,
            case,
            f"{_plural(threads)}, {malloc}, {'fused' if fused else 'default'} Adam",
            {"threads": threads, "fused": fused, "autocast": autocast},
        )
        for malloc, worker in workers.pytorch.items()
        for threads in _counts(case.threads)
        for fused in (True, False)
    ]


def pytorch_decoding(workers: Workers, case: Case) -> list[Entrant]:
    """Tries the four ways to write the loop, on one thread."""
    ways = {"module": "nn.LSTM", "cell": "nn.LSTMCell", "hand": "by hand", "script": "jit.script"}
    worker = workers.pytorch["malloc default"]
    return [Entrant(worker, case, words, {"way": way, "threads": 1}) for way, words in ways.items()]


def jax_decoding(worker: Worker, case: Case, flags: str = "") -> list[Entrant]:
    """Tries both layouts of the weights, the loop unrolled or not."""
    return [
        Entrant(
            worker,
            case,
            f"{'W h' if transposed else 'h W'}, unroll {unroll}{flags}",
            {"transposed": transposed, "unroll": unroll},
        )
        for transposed in (True, False)
        for unroll in (1, 4)
    ]


def jax_decoding_all_cores(workers: Workers, case: Case) -> list[Entrant]:
    """Tries the same with all the processors that it can take."""
    return [
        entrant
        for flags, worker in workers.jax_all_cores.items()
        for entrant in jax_decoding(worker, case, flags)
    ]


def pytorch_int8_decoding(workers: Workers, case: Case) -> list[Entrant]:
    """Tries the same four ways with int8 weights, and both libraries for their products."""
    ways = {"module": "nn.LSTM", "cell": "nn.LSTMCell", "hand": "by hand", "script": "jit.script"}
    return [
        Entrant(
            workers.pytorch_int8,
            case,
            f"{words}, {engine}",
            {"way": way, "engine": engine, "threads": 1, "int8": True},
        )
        for engine in INT8_ENGINES
        for way, words in ways.items()
    ]


def pytorch_int8_scoring(workers: Workers, case: Case) -> list[Entrant]:
    """Tries one and more threads, and both libraries for int8 products."""
    return [
        Entrant(
            workers.pytorch_int8,
            case,
            f"{_plural(threads)}, {engine}",
            {"engine": engine, "threads": threads, "int8": True},
        )
        for engine in INT8_ENGINES
        for threads in _counts(case.threads)
    ]


def onnxruntime_int8_scoring(workers: Workers, case: Case) -> list[Entrant]:
    """Tries signed and unsigned weights, with steps a matrix or a column, one and more threads."""
    return [
        Entrant(
            workers.onnxruntime_int8,
            case,
            f"{_plural(threads)}, {'signed' if signed else 'unsigned'}, "
            f"steps {'a column' if per_channel else 'a matrix'}",
            {"threads": threads, "signed": signed, "per_channel": per_channel, "int8": True},
        )
        for signed, per_channel in itertools.product((True, False), repeat=2)
        for threads in _counts(case.threads)
    ]


def earlier(workers: Workers, case: Case) -> dict[str, list[Entrant]]:
    """Returns an earlier version of Treadle as a rival, if one is given."""
    return {} if workers.earlier is None else {EARLIER: [Entrant(workers.earlier, case)]}


def onnxruntime_scoring(workers: Workers, case: Case) -> list[Entrant]:
    """Tries one and more threads within an operator."""
    return [
        Entrant(workers.onnxruntime, case, _plural(threads), {"threads": threads})
        for threads in _counts(case.threads)
    ]


def numpy_training(workers: Workers, case: Case, dtype: str) -> list[Entrant]:
    """Tries the reference with one and more BLAS threads."""
    return [
        Entrant(worker, case, f"{dtype}, BLAS with {_plural(threads)}", {"dtype": dtype})
        for threads, worker in workers.numpy.items()
    ]
