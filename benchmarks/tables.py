"""`section_text` prints the report as text: a table per section, as wide as a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treadle.benchmarks.race import Row
from treadle.benchmarks.summary import is_rltools

RIVALS = {
    "pytorch": "PyTorch",
    "pytorch_bf16": "PyTorch bf16",
    "fp32": "float32",
    "jax": "JAX, one core",
    "jax_all_cores": "JAX, all cores",
    "onnxruntime": "ONNX Runtime",
    "onnxruntime_int8": "ONNX Runtime int8",
    "pytorch_int8": "PyTorch int8",
    "earlier": "Treadle before",
    "numpy_float32": "NumPy float32",
    "numpy_float64": "NumPy float64",
    "alone": "one session",
}

TITLES = {
    "train": "Training step (forward, BPTT, clip, Adam), tokens a second",
    "bf16": "Training step with products of bfloat16 numbers, tokens a second",
    "numpy": "Training step against the NumPy reference, tokens a second",
    "decode": "Decoding, one session, one thread, sampling inside, tokens a second",
    "sessions": "Decoding 64 sessions together, one thread, tokens a second of all",
    "score": "Scoring a batch (rivals: to logits only), tokens a second",
}

INT8_TITLES = {
    "decode": "Decoding with int8 weights, one session, one thread, tokens a second",
    "sessions": "Decoding 64 sessions together with int8 weights, one thread, tokens a second",
    "score": "Scoring a batch with int8 weights (rivals: to logits only), tokens a second",
}

NOT_MEASURED = "-"

BUSY_LOAD = 0.5
"""Load average from which on a table says that it was not alone."""


def lined_up(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table: the first column and the last to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    last = len(widths) - 1

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(line(row) for row in rows)


def rate(figure: Mapping[str, Any] | None) -> str:
    """Returns a median and its spread, as `41,300 ±4%`."""
    if figure is None:
        return NOT_MEASURED
    return f"{figure['median']:,.0f} ±{50 * figure['spread']:.0f}%"


def times(value: float | None) -> str:
    """Returns a ratio, as `3.25x`."""
    return NOT_MEASURED if value is None else f"{value:.2f}x"


def _name(row: Row) -> str:
    case = row["case"]
    task = " (RLtools' task)" if is_rltools(row) else ""
    return f"{row['label']} B{case['rows']} T{case['steps']}{task}"


def comparison(title: str, rows: Sequence[Row]) -> str:
    """Returns a section that holds ours against rivals."""
    rivals = list(rows[0]["rivals"])
    head = ["", "Treadle"]
    for rival in rivals:
        head += [RIVALS[rival], "ratio"]
    lines = [[*head, "setting of the rival that was its best"]]
    for row in rows:
        line = [_name(row), rate(row["ours"])]
        for rival in rivals:
            line += [rate(row["rivals"][rival]), times(row["ratios"][rival])]
        ways = [figure["way"] for figure in row["rivals"].values() if figure and "way" in figure]
        lines.append([*line, "; ".join(ways)])
    return f"{title}\n\n{lined_up(lines)}{_notes(rows)}"


def _notes(rows: Sequence[Row]) -> str:
    """Each note once."""
    notes = dict.fromkeys(note for row in rows for note in row["notes"])
    return "".join(f"\n  note: {note}" for note in notes)


def peak(rows: Sequence[Row]) -> str:
    """Returns the section on the processor's peak."""
    lines = [["", "GFLOP/s", "peak", "fraction", ""]]
    for row in rows:
        useful = NOT_MEASURED
        most = NOT_MEASURED
        if row["ours"]:
            useful = f"{row['ours']['median'] * row['flops_per_token'] / 1e9:.0f}"
        if row["peak_flops"]:
            most = f"{row['peak_flops']['median'] / 1e9:.0f}"
        fraction = NOT_MEASURED if row["fraction"] is None else f"{row['fraction']:.1%}"
        lines.append([_name(row), useful, most, fraction, f"{row['case']['threads']} threads"])
    title = "Useful multiply-adds of a whole training step, of this processor's measured peak"
    return f"{title}\n\n{lined_up(lines)}{_notes(rows)}"


def busy(section: Mapping[str, Any]) -> str:
    """Returns the section on a processor shared with another program."""
    title = "Training while another program takes one processor, tokens a second"
    if "label" not in section:
        return f"{title}\n{_notes([dict(section)])}"
    lines = [["", "alone", "disturbed", "slower by", ""]]
    for name, called in (("ours", "Treadle"), ("pytorch", "PyTorch")):
        figures = section[name]
        slower = times(figures["slowdown"])
        line = [f"{section['label']} {called}", rate(figures["quiet"]), rate(figures["busy"])]
        lines.append([*line, slower, ""])
    return f"{title}\n\n{lined_up(lines)}{_notes([dict(section)])}"


def int8(section: Mapping[str, Sequence[Row]]) -> str:
    """Returns the section on int8 weights: a table a part."""
    return "\n\n".join(comparison(INT8_TITLES[part], rows) for part, rows in section.items())


def start(section: Mapping[str, Any]) -> str:
    """Returns the section on fresh processes."""
    names = {
        "first_token_s": "import, load a model, first token",
        "warm_s": "import, warm(): kernels from the disk cache",
        "cold_s": "import, warm(): every kernel compiled",
        "cold_cpu_s": "the same, processor time",
        "serving_s": "a server without compiled kernels: SERVING",
        "trained_s": "a server without compiled kernels: a tiny training done",
    }
    lines = [
        [words, f"{section[name]['median']:.2f} s", ""]
        for name, words in names.items()
        if section.get(name)
    ]
    return f"A fresh process, seconds\n\n{lined_up(lines)}"


def checks(section: Mapping[str, Any]) -> str:
    """Returns what the checks found."""
    gradient = max(section["gradient_error"].values())
    kernel = max(section["kernel_error"].values())
    targets = " and ".join(section["same_bits_processors"])
    return (
        "Checks passed\n\n"
        f"gradients of the float64 reference, by finite differences   off by {gradient:.1e}\n"
        f"compiled kernels' loss and gradients, by the reference      off by {kernel:.1e}\n"
        f"weights after 200 steps with 1, 2, 3 threads, for {targets}: the same bits"
    )


def machine(section: Mapping[str, Any]) -> str:
    """Returns what is measured on, and a warning where others use it."""
    load = section["load_average"]
    busy = load is not None and load > BUSY_LOAD
    return (
        "Machine\n\n"
        f"{section['processor']}, {section['usable_cores']} processors, kernels compiled for "
        f"{section['compiled_for']}\n"
        f"{section['system']}, Python {section['python']}, NumPy {section['numpy']}, "
        f"Numba {section['numba']}"
        + (f"\n  note: other programs are running (load {load}): figures mean less" if busy else "")
    )


_OTHERS: dict[str, Callable[[Any], str]] = {
    "machine": machine,
    "check": checks,
    "peak": peak,
    "int8": int8,
    "busy": busy,
    "start": start,
}


def section_text(name: str, section: Any) -> str:
    """Returns one section of the report as text."""
    if name in TITLES:
        return comparison(TITLES[name], section)
    return _OTHERS[name](section)


def losses_text(losses: Sequence[Mapping[str, Any]]) -> str:
    """Returns the cases in which a rival was faster; empty if there is no such case."""
    lines = [
        [f"{loss['section']} {loss['label']}", times(loss["ratio"]), RIVALS[loss["rival"]]]
        for loss in losses
    ]
    return f"Where a rival is faster\n\n{lined_up(lines)}" if lines else ""


def summary_text(summary: Mapping[str, float | None]) -> str:
    """Returns the summary as text, what was not measured left out."""
    lines = [[name, f"{value:.3g}", ""] for name, value in summary.items() if value is not None]
    return f"Summary\n\n{lined_up(lines)}" if lines else ""
