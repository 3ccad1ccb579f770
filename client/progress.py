"""What a training run looks like on a terminal: pure functions from events to text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.client.options import field_word

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import Model, NetworkSpec, TrainingProgress, TrainingStarted

BAR_COLUMNS = (30, 20, 10)
"""Lengths of the bar: the longest that fits. Few, so that it does not jump about."""

GAP = "  "


@dataclass(frozen=True)
class Style:
    """How a line is drawn."""

    width: int = 80
    """Columns of the terminal."""
    color: bool = False
    """Whether to color the bar."""
    unicode: bool = True
    """Whether to draw with more than ASCII."""


def progress_line(
    progress: TrainingProgress, total_steps: int, valid_loss: float | None, style: Style
) -> str:
    """Draws a run's live line: bar, steps, losses, speed and time left.

    Where the terminal is narrow, the speed goes first, then the validation loss, the bar, the
    time and the train loss; what is left is cut.

    Args:
        progress: The newest event.
        total_steps: Steps planned, 0 where only time ends the run.
        valid_loss: The newest validation loss, in nats.
        style: How to draw.

    Returns:
        A line of fewer columns than the terminal has, colors not counted.
    """
    room = style.width - 1  # a full last column would wrap
    done = fraction_done(progress, total_steps)
    parts = {
        "bar": "" if done is None else " " * BAR_COLUMNS[-1],
        "percent": "" if done is None else f"{done:3.0%}",
        "step": f"step {progress.step:,}",
        "loss": f"loss {progress.train_loss:.3f}",
        "valid": "" if valid_loss is None else f"valid {valid_loss:.3f}",
        "speed": speed_text(progress.tokens_per_second),
        "time": time_text(progress),
    }
    for dropped in ("", "speed", "valid", "bar", "time", "loss", "percent"):
        parts.pop(dropped, None)
        line = GAP.join(part for part in parts.values() if part)
        if len(line) <= room:
            break
    if done is not None and "bar" in parts:
        spare = room - len(line) + BAR_COLUMNS[-1]
        columns = next(size for size in BAR_COLUMNS if size <= spare)
        return bar(done, columns, style) + line[BAR_COLUMNS[-1] :]
    return line[:room]


def bar(done: float, columns: int, style: Style) -> str:
    """Draws the bar itself.

    Args:
        done: The share done, 0 to 1.
        columns: Its length.
        style: How to draw.
    """
    full, empty = ("━", "─") if style.unicode else ("#", ".")
    filled = round(done * columns)
    left, right = full * filled, empty * (columns - filled)
    return f"\x1b[36m{left}\x1b[2m{right}\x1b[0m" if style.color else left + right


def fraction_done(progress: TrainingProgress, total_steps: int) -> float | None:
    """Tells how much of a run is done, by the limit that it will meet first.

    Returns:
        0 to 1, or None where it cannot be told.
    """
    if progress.HasField("time_left_s"):
        total_s = progress.elapsed_s + max(0.0, progress.time_left_s)
        if total_s > 0:
            return min(1.0, progress.elapsed_s / total_s)
    return min(1.0, progress.step / total_steps) if total_steps else None


def plain_line(progress: TrainingProgress, total_steps: int) -> str:
    """Describes an event on a line that stays: in a log, or above the bar."""
    total = f"/{total_steps:,}" if total_steps else ""
    parts = [
        f"step {progress.step:,}{total}",
        f"epoch {progress.epoch:.2f}",
        f"loss {progress.train_loss:.3f}",
    ]
    if progress.HasField("valid_loss"):
        parts.append(f"valid {progress.valid_loss:.3f}")
    parts += [speed_text(progress.tokens_per_second), time_text(progress)]
    return GAP.join(part for part in parts if part)


def started_lines(started: TrainingStarted) -> list[str]:
    """Describes what the server made of the spec and the corpus."""
    network = started.spec.network
    facts = [
        f"{started.train_tokens:,} tokens to train on, {started.valid_tokens:,} to validate",
        f"vocabulary {started.vocabulary_size:,}",
        f"{network_text(network)}, {started.parameter_count:,} parameters",
    ]
    if started.total_steps:
        facts.append(f"{started.total_steps:,} steps")
    return ["; ".join(facts), *(f"note: {notice}" for notice in started.notices)]


def completed_line(model: Model) -> str:
    """Describes the model that came out."""
    record = model.training
    parts = [f"{record.steps:,} steps in {duration_text(record.elapsed_s)}"]
    parts.append(f"loss {record.train_loss:.3f}")
    if record.HasField("valid_loss"):
        parts.append(f"valid {record.valid_loss:.3f}")
    return f"{model.name} version {model.version}: {', '.join(parts)}"


def network_text(network: NetworkSpec) -> str:
    """Names a network's shape: "lstm 2x128"."""
    return f"{field_word(network, 'cell')} {network.layers}x{network.hidden_size}"


def speed_text(tokens_per_second: float) -> str:
    """Writes a speed with three digits: "123k tok/s"."""
    if not 0 < tokens_per_second < float("inf"):
        return ""
    number, suffix = tokens_per_second, ""
    for larger in ("k", "M", "G"):
        if number >= 1000:
            number, suffix = number / 1000, larger
    digits = 1 if suffix and number < 100 else 0
    return f"{number:.{digits}f}{suffix} tok/s"


def time_text(progress: TrainingProgress) -> str:
    """Writes the time left where it is known, else the time gone by."""
    if progress.HasField("time_left_s"):
        return duration_text(progress.time_left_s) + " left"
    return duration_text(progress.elapsed_s)


def duration_text(seconds: float) -> str:
    """Writes a duration: "0.4 s", "12 s", "3:05", "1:02:03"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
