"""`summarize` reduces a whole run to a few figures; None for what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from treadle.benchmarks.figures import geomean, least
from treadle.benchmarks.race import Row

COMPARED = ("train", "bf16", "numpy", "decode", "sessions", "score")
"""Sections that hold ours against rivals."""

RLTOOLS_VOCABULARY = 256
"""What distinguishes RLtools' task from the other rows of training."""


def ratios(rows: Iterable[Row], rival: str) -> list[float | None]:
    """Returns every row's ratio to one rival."""
    return [row["ratios"].get(rival) for row in rows]


def is_rltools(row: Row) -> bool:
    """Returns whether a row of training is RLtools' task."""
    return bool(row["case"]["vocabulary"] == RLTOOLS_VOCABULARY)


def _best_numpy(row: Row) -> float | None:
    """Ours over the faster of the two widths."""
    return least(row["ratios"].values())


def _median(figure: Mapping[str, Any] | None) -> float | None:
    return None if figure is None else float(figure["median"])


def summarize(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the summary of a report.

    Args:
        results: sections by name; those not run may be missing.
    """

    def rows(section: str) -> Sequence[Row]:
        return results.get(section) or []

    training = ratios([row for row in rows("train") if not is_rltools(row)], "pytorch")
    rltools = ratios(filter(is_rltools, rows("train")), "pytorch")
    together = ratios(rows("sessions"), "alone")
    start = results.get("start") or {}
    busy = results.get("busy") or {}
    return {
        "train_vs_pytorch_geomean": geomean(training),
        "train_vs_pytorch_min": least(training),
        "train_bf16_vs_pytorch_bf16_min": least(ratios(rows("bf16"), "pytorch_bf16")),
        "rltools_task_vs_pytorch": least(rltools),
        "peak_fraction_min": least(row["fraction"] for row in rows("peak")),
        "train_vs_numpy_min": least(_best_numpy(row) for row in rows("numpy")),
        "decode_vs_pytorch_min": least(ratios(rows("decode"), "pytorch")),
        "decode_vs_jax_min": least(ratios(rows("decode"), "jax")),
        "decode_vs_jax_all_cores_min": least(ratios(rows("decode"), "jax_all_cores")),
        "decode_64_vs_1_min": least(together),
        "score_vs_onnxruntime_min": least(ratios(rows("score"), "onnxruntime")),
        "busy_slowdown": (busy.get("ours") or {}).get("slowdown"),
        "busy_slowdown_pytorch": (busy.get("pytorch") or {}).get("slowdown"),
        "start_s": _median(start.get("first_token_s")),
        "warm_s": _median(start.get("warm_s")),
        "cold_s": _median(start.get("cold_s")),
    }


def losses(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns every case in which a rival was faster: section, label, rival and ratio."""
    return [
        {"section": section, "label": row["label"], "rival": rival, "ratio": ratio}
        for section in COMPARED
        for row in results.get(section) or []
        for rival, ratio in row["ratios"].items()
        if ratio is not None and ratio < 1
    ]
