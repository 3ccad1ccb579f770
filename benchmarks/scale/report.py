"""`report` prints what the model says, as tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from treadle.benchmarks.scale.comparison import NOTABLE, Comparison
from treadle.benchmarks.scale.constants import Measured, described
from treadle.benchmarks.scale.formulas import Formulas
from treadle.benchmarks.scale.limits import limits, machines_then
from treadle.benchmarks.scale.workload import Workload
from treadle.benchmarks.tables import NOT_MEASURED, lined_up, times

FLEETS = (100, 1_000, 10_000)
SESSIONS = (1e4, 1e5, 1e6)
RANKS = (1, 2, 4, 8, 16, 32)
_GBIT = 1e9 / 8
_MESSAGE_S = 30e-6
"""Seconds of a message between two machines of one rack, by TCP."""
_BATCHES = ((256, 10), (1024, 10), (1024, 100))
"""Rows of a batch, and Gbit/s of the network."""
_DAY_S = 86_400.0


def figure(value: float, unit: str = "") -> str:
    """Returns a figure in three digits, with the prefix of its unit."""
    if math.isnan(value):
        return NOT_MEASURED
    if math.isinf(value):
        return "never"
    if unit == "s":
        if value >= 3600:
            return f"{value / 3600:.3g} h"
        for factor, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
            if value >= factor:
                return f"{value / factor:.3g} {name}"
        return f"{value * 1e9:.3g} ns"
    if unit == "bytes":
        for factor, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if value >= factor:
                return f"{value / factor:.3g} {name}"
        return f"{value:.0f} B"
    digits = 0 if value >= 100 or value == round(value) else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def constants_text(measured: Measured) -> str:
    """Returns the constants, and where they are from."""
    rows = [
        [text, figure(getattr(measured.constants, name), unit), ""]
        for name, (text, unit) in described().items()
    ]
    machine = measured.machine
    where = f"{machine['processor']}, {machine['usable_cores']} cores, {measured.date}"
    return f"Measured: {where}\n\n{lined_up(rows)}"


def sessions_text(formulas: Formulas) -> str:
    """Returns what sessions need."""
    head = ["sessions", "texts/s", "tokens/s", "machines", "busiest part", "states", "their way"]
    rows = [[*head, "a replica's connections, by sessions of a client: 100, 1"]]
    for sessions in SESSIONS:
        workload = dataclasses.replace(formulas.workload, sessions=sessions)
        many = Formulas(formulas.constants, workload)
        loop = many.loop_texts_per_s() < many.kernel_texts_per_s()
        memory = [
            figure(sessions / each * formulas.constants.connection_bytes, "bytes")
            for each in (100, 1)
        ]
        rows.append(
            [
                figure(sessions),
                figure(many.texts_per_s()),
                figure(many.texts_per_s() * workload.new_tokens),
                figure(many.machines_for_sessions()),
                "event loop" if loop else "kernels",
                figure(sessions * formulas.constants.state_bytes, "bytes"),
                f"{figure(many.state_bytes_per_s(), 'bytes')}/s",
                ", ".join(memory),
            ]
        )
    workload = formulas.workload
    each = (
        f"A text takes {figure(formulas.loop_s_per_text(), 's')} of the event loop and "
        f"{figure(formulas.kernel_s_per_text(), 's')} of a core in kernels; a replica of "
        f"{workload.cores:.0f} cores serves {figure(formulas.replica_texts_per_s())} texts/s "
        f"at {workload.utilization:.0%}."
    )
    asks = (
        f"Sessions: {workload.new_tokens:.0f} tokens after {workload.prompt_tokens:.0f}, each "
        f"{workload.period_s:.0f} s"
    )
    return f"{asks}\n\n{lined_up(rows)}\n\n{each}"


def limits_text(formulas: Formulas) -> str:
    """Returns what breaks first, and what to do then."""
    head = ["", "full at", *(f"at {fleet:,}" for fleet in FLEETS), "then", "what to do"]
    rows = [head]
    notes = []
    for limit in limits(formulas):
        later = machines_then(formulas, limit)
        used = [limit.use(fleet) for fleet in FLEETS]
        rows.append(
            [
                limit.name,
                figure(limit.machines()),
                *(NOT_MEASURED if math.isnan(part) else f"{part:,.1%}" for part in used),
                "" if math.isinf(later) else figure(later),
                limit.then,
            ]
        )
        notes.append(f"{limit.name}: {limit.why}")
    title = (
        f"What all machines share: full at so many machines, with "
        f"{formulas.workload.jobs_per_machine:g} jobs each"
    )
    return f"{title}\n\n{lined_up(rows)}\n\n" + "\n".join(notes)


def failures_text(formulas: Formulas) -> str:
    """Returns what failing machines cost."""
    workload = formulas.workload
    rows = [["machines", "failures a day", "work lost a day", "of all work", ""]]
    for fleet in FLEETS:
        failures = fleet * _DAY_S / workload.machine_lifetime_s
        of_each = (formulas.lost_s() + formulas.takeover_s()) / workload.machine_lifetime_s
        lost = formulas.jobs(fleet) * _DAY_S * of_each
        rows.append([figure(fleet), figure(failures), figure(lost, "s"), f"{of_each:.1e}", ""])
    text = (
        f"A job runs elsewhere {formulas.takeover_s():.2f} s after its machine failed, and "
        f"computes {formulas.lost_s():.2f} s again."
    )
    days = workload.machine_lifetime_s / _DAY_S
    return f"Failures, one in {days:.0f} days for each machine\n\n{lined_up(rows)}\n\n{text}"


def ranks_text(formulas: Formulas) -> str:
    """Returns what several machines gain for one model."""
    head = [f"{rows:,} rows, {gbit} Gbit/s" for rows, gbit in _BATCHES]
    table = [["machines", *head, ""]]
    for ranks in RANKS:
        speeds = [
            formulas.speed_up(ranks, batch, gbit * _GBIT, _MESSAGE_S) for batch, gbit in _BATCHES
        ]
        table.append([figure(ranks), *map(times, speeds), ""])
    title = (
        f"One model on several machines of {formulas.workload.cores:.0f} cores: speed of a step of "
        "64 tokens a row"
    )
    return f"{title}\n\n{lined_up(table)}"


def comparison_text(found: Sequence[Comparison]) -> str:
    """Returns formulas next to the simulation, and why they differ where they do."""
    rows = [["", "formula", "simulation", "+-", "difference", ""]]
    notes = []
    for each in found:
        formula = f"{figure(each.formula)} {each.unit}".strip()
        simulation = f"{figure(each.simulation)} {each.unit}".strip()
        error = "" if math.isnan(each.error) else figure(each.error)
        rows.append([each.name, formula, simulation, error, f"{each.difference:+.1%}", ""])
        if abs(each.difference) > NOTABLE:
            chance = "chance: within two standard errors"
            notes.append(f"{each.name}: {chance if each.is_chance else each.why}")
    text = f"Formulas and the simulation (+-: the standard error of one run)\n\n{lined_up(rows)}"
    return text + "".join(f"\n  {note}" for note in notes)


def workload_text(workload: Workload) -> str:
    """Returns what is assumed."""
    values = dataclasses.asdict(workload)
    shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
    return f"Assumed: {shown}"


def report(measured: Measured, workload: Workload) -> str:
    """Returns all that needs no simulation."""
    formulas = Formulas(measured.constants, workload)
    parts = [constants_text(measured), workload_text(workload), sessions_text(formulas)]
    parts += [limits_text(formulas), failures_text(formulas), ranks_text(formulas)]
    return "\n\n".join(parts)
