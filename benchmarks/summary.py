"""`summarize` reduces a whole run to a few figures; None for what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from treadle.benchmarks.figures import geomean, least
from treadle.benchmarks.race import Row

COMPARED = ("train", "bf16", "numpy", "decode", "sessions", "score", "int8")
"""Sections that hold ours against rivals."""

LARGE = 256
"""Hidden units from which on a network is near the processor's limit."""

RLTOOLS_VOCABULARY = 256
"""What distinguishes RLtools' task from the other rows of training."""


def rows_of(results: Mapping[str, Any], section: str, part: str = "") -> list[Row]:
    """Returns the rows of a section, or of one of its parts; none where it was not run.

    Args:
        results: Sections by name.
        section: A section that compares.
        part: One of the section's parts; empty: all of them.
    """
    found = results.get(section) or []
    if isinstance(found, Mapping):
        return [row for name, rows in found.items() if part in ("", name) for row in rows]
    return list(found)


def ratios(rows: Iterable[Row], rival: str) -> list[float | None]:
    """Returns every row's ratio to one rival."""
    return [row["ratios"].get(rival) for row in rows]


def is_rltools(row: Row) -> bool:
    """Returns whether a row of training is RLtools' task."""
    return bool(row["case"]["vocabulary"] == RLTOOLS_VOCABULARY)


def _best_numpy(row: Row) -> float | None:
    """Ours over the faster of the two widths."""
    return least(row["ratios"].values())


def _hidden(row: Row) -> int:
    return int(row["case"]["hidden"])


def _median(figure: Mapping[str, Any] | None) -> float | None:
    return None if figure is None else float(figure["median"])


def summarize(results: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the summary of a report.

    Args:
        results: sections by name; those not run may be missing.
    """

    def rows(section: str, part: str = "") -> list[Row]:
        return rows_of(results, section, part)

    training = ratios([row for row in rows("train") if not is_rltools(row)], "pytorch")
    rltools = ratios(filter(is_rltools, rows("train")), "pytorch")
    together = ratios(rows("sessions"), "alone")
    int8_scored = rows("int8", "score")
    int8_lstm = [row for row in int8_scored if row["case"]["cell"] == "lstm"]
    peak = rows("peak")
    start = results.get("start") or {}
    busy = results.get("busy") or {}
    return {
        "train_vs_pytorch_geomean": geomean(training),
        "train_vs_pytorch_min": least(training),
        "train_bf16_vs_pytorch_bf16_min": least(ratios(rows("bf16"), "pytorch_bf16")),
        "rltools_task_vs_pytorch": least(rltools),
        "peak_fraction_min": least(row["fraction"] for row in peak if _hidden(row) >= LARGE),
        "peak_fraction_lstm_64": least(row["fraction"] for row in peak if _hidden(row) == 64),
        "peak_fraction_lstm_128": least(row["fraction"] for row in peak if _hidden(row) == 128),
        "train_vs_numpy_min": least(_best_numpy(row) for row in rows("numpy")),
        "decode_vs_pytorch_min": least(ratios(rows("decode"), "pytorch")),
        "decode_vs_jax_min": least(ratios(rows("decode"), "jax")),
        "decode_vs_earlier_min": least(ratios(rows("decode"), "earlier")),
        "decode_vs_jax_all_cores_min": least(ratios(rows("decode"), "jax_all_cores")),
        "decode_64_vs_1_min": least(together),
        "score_vs_onnxruntime_min": least(ratios(rows("score"), "onnxruntime")),
        "int8_decode_vs_jax_min": least(ratios(rows("int8", "decode"), "jax")),
        "int8_decode_vs_fp32_min": least(ratios(rows("int8", "decode"), "fp32")),
        "int8_decode_vs_earlier_fp32_min": least(ratios(rows("int8", "decode"), "earlier")),
        "int8_decode_vs_pytorch_int8_min": least(ratios(rows("int8", "decode"), "pytorch_int8")),
        "int8_64_vs_fp32_min": least(ratios(rows("int8", "sessions"), "fp32")),
        "int8_64_vs_pytorch_int8_min": least(ratios(rows("int8", "sessions"), "pytorch_int8")),
        "int8_score_lstm_vs_onnxruntime_min": least(ratios(int8_lstm, "onnxruntime")),
        "int8_score_vs_onnxruntime_min": least(ratios(int8_scored, "onnxruntime")),
        "int8_score_vs_onnxruntime_int8_min": least(ratios(int8_scored, "onnxruntime_int8")),
        "int8_score_vs_pytorch_int8_min": least(ratios(int8_scored, "pytorch_int8")),
        "int8_score_vs_fp32_min": least(ratios(int8_scored, "fp32")),
        "busy_slowdown": (busy.get("ours") or {}).get("slowdown"),
        "busy_slowdown_pytorch": (busy.get("pytorch") or {}).get("slowdown"),
        "start_s": _median(start.get("first_token_s")),
        "warm_s": _median(start.get("warm_s")),
        "cold_s": _median(start.get("cold_s")),
        "cold_cpu_s": _median(start.get("cold_cpu_s")),
        "serving_s": _median(start.get("serving_s")),
        "trained_s": _median(start.get("trained_s")),
    }


def losses(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns every case in which a rival was faster: section, label, rival and ratio."""
    return [
        {"section": section, "label": row["label"], "rival": rival, "ratio": ratio}
        for section in COMPARED
        for row in rows_of(results, section)
        for rival, ratio in row["ratios"].items()
        if ratio is not None and ratio < 1
    ]
