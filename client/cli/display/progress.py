"""`progress_line` and the others turn the events of a training run into lines of text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from treadle.client.cli.display.numbers import number_text
from treadle.client.cli.display.splits import test_split, valid_split
from treadle.client.messages.enums import field_word
from treadle.v1.sequence_pb2 import CORPUS_ROLE_TEST

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import (
        JobStateChange,
        Model,
        NetworkSpec,
        TrainingProgress,
        TrainingStarted,
        ValidationProgress,
    )

BAR_COLUMNS = (30, 20, 10)
"""Lengths of the bar; the longest that fits is drawn. Few, so that it seldom changes."""

GAP = "  "


@dataclass(frozen=True)
class Style:
    """The terminal that a line is drawn for."""

    width: int = 80
    """Columns of the terminal."""
    color: bool = False
    """Whether to color the bar."""
    unicode: bool = True
    """Whether the terminal shows more than ASCII."""


@dataclass(frozen=True)
class RunFacts:
    """The facts about a run that its lines refer to."""

    total_steps: int = 0
    """Planned steps; 0 where only time ends the run."""
    valid_part: str = ""
    """The validation part, in words: "the last 10 %"."""
    baseline: str = ""
    """The n-gram's loss on it: "5-gram 1.669"; empty without one."""
    valid_tokens: int = 0
    """Tokens of the validation part."""

    @classmethod
    def of(cls, started: TrainingStarted) -> RunFacts:
        """Takes the facts from the run's first report."""
        part = valid_split(started.valid_split, started.spec.data)
        return cls(started.total_steps, part, baseline_text(started), started.valid_tokens)


def baseline_text(started: TrainingStarted) -> str:
    """Returns the n-gram and its loss: "5-gram 1.669"; empty without one."""
    if not started.HasField("baseline_loss"):
        return ""
    order = f"{started.baseline_order}-gram" if started.baseline_order else "n-gram"
    return f"{order} {number_text(started.baseline_loss)}"


def progress_line(
    progress: TrainingProgress, total_steps: int, valid_loss: float | None, style: Style
) -> str:
    """Draws a run's live line: bar, steps, losses, speed and time left.

    On a narrow terminal, parts are left out in this order: speed, validation loss, bar, time,
    train loss. The rest is cut.

    Args:
        progress: The newest event.
        total_steps: Planned steps; 0 where only time ends the run.
        valid_loss: The newest validation loss, in nats.
        style: The terminal.

    Returns:
        A line of fewer columns than the terminal has, colors not counted.
    """
    available = style.width - 1  # a full last column would wrap
    done = fraction_done(progress, total_steps)
    parts = {
        "bar": "" if done is None else " " * BAR_COLUMNS[-1],
        "percent": "" if done is None else f"{done:3.0%}",
        "step": f"step {progress.step:,}",
        "loss": f"loss {number_text(progress.train_loss)}",
        "valid": "" if valid_loss is None else f"valid {number_text(valid_loss)}",
        "speed": speed_text(progress.tokens_per_second),
        "time": time_text(progress),
    }
    for dropped in ("", "speed", "valid", "bar", "time", "loss", "percent"):
        parts.pop(dropped, None)
        line = GAP.join(part for part in parts.values() if part)
        if len(line) <= available:
            break
    if done is not None and "bar" in parts:
        spare = available - len(line) + BAR_COLUMNS[-1]
        columns = next(size for size in BAR_COLUMNS if size <= spare)
        return bar(done, columns, style) + line[BAR_COLUMNS[-1] :]
    return line[:available]


def bar(done: float, columns: int, style: Style) -> str:
    """Draws the bar.

    Args:
        done: The fraction that is done, 0 to 1.
        columns: Its length.
        style: The terminal.

    Returns:
        The characters of the bar.
    """
    full = "━" if style.unicode else "#"
    empty = "─" if style.unicode else "."
    filled = round(done * columns)
    left = full * filled
    right = empty * (columns - filled)
    return f"\x1b[36m{left}\x1b[2m{right}\x1b[0m" if style.color else left + right


def fraction_done(progress: TrainingProgress, total_steps: int) -> float | None:
    """Returns how much of a run is done, by the limit that it will meet first.

    Returns:
        0 to 1, or None where it is unknown.
    """
    if progress.HasField("time_left_s"):
        total_s = progress.elapsed_s + max(0.0, progress.time_left_s)
        if total_s > 0:
            return min(1.0, progress.elapsed_s / total_s)
    return min(1.0, progress.step / total_steps) if total_steps else None


def plain_line(progress: TrainingProgress, facts: RunFacts) -> str:
    """Describes an event on a permanent line: in a log, or above the bar."""
    total = f"/{facts.total_steps:,}" if facts.total_steps else ""
    parts = [
        f"step {progress.step:,}{total}",
        f"epoch {progress.epoch:.2f}",
        f"loss {number_text(progress.train_loss)}",
        *validation_parts(progress, facts),
        speed_text(progress.tokens_per_second),
        size_text(progress.memory_bytes) if progress.memory_bytes else "",
        time_text(progress),
    ]
    return GAP.join(part for part in parts if part)


def validation_parts(progress: TrainingProgress, facts: RunFacts) -> list[str]:
    """Returns the results of a validation, and the baseline to compare them with."""
    if not progress.HasField("valid_loss"):
        return []
    sample = sample_text(progress.valid_tokens, facts.valid_tokens)
    part = ": ".join(text for text in (facts.valid_part, sample) if text)
    parts = [valid_text(progress.valid_loss, part)]
    if progress.HasField("valid_perplexity"):
        parts.append(f"perplexity {progress.valid_perplexity:.4g}")
    if progress.HasField("valid_bits_per_character"):
        parts.append(f"{number_text(progress.valid_bits_per_character)} bits/char")
    if progress.HasField("best_valid_loss") and progress.best_valid_loss < progress.valid_loss:
        parts.append(f"best {number_text(progress.best_valid_loss)}")
    return [*parts, facts.baseline]


def validation_line(validation: ValidationProgress, style: Style | None = None) -> str:
    """Draws the progress of a validation: "validating  1,200,000 of 30,100,000 tokens  4%"."""
    total = max(validation.tokens_total, 1)
    done = min(1.0, validation.tokens_done / total)
    verb = "testing" if validation.role == CORPUS_ROLE_TEST else "validating"
    parts = [
        f"step {validation.step:,}",
        verb,
        f"{validation.tokens_done:,} of {validation.tokens_total:,} tokens",
        f"{done:3.0%}",
    ]
    line = GAP.join(parts)
    return line if style is None else line[: style.width - 1]


def valid_text(loss: float, part: str) -> str:
    """Writes a validation loss: "valid (the last 10 %) 1.512"."""
    return f"valid ({part}) {number_text(loss)}" if part else f"valid {number_text(loss)}"


def sample_text(read: int, tokens: int) -> str:
    """Returns how much of a part was read, if not all: "40,960 of 111,540 tokens"."""
    return f"{read:,} of {tokens:,} tokens" if 0 < read < tokens - 1 else ""


def started_lines(started: TrainingStarted) -> list[str]:
    """Describes the run: its spec and its corpus, as the server read them."""
    network, data = started.spec.network, started.spec.data
    valid = _in_brackets(valid_split(started.valid_split, data))
    tokens = f"{started.train_tokens:,} tokens to train on"
    tokens += f", {started.valid_tokens:,} to validate{valid}"
    if started.test_tokens:
        tokens += (
            f", {started.test_tokens:,} to test{_in_brackets(test_split(started.test_split, data))}"
        )
    facts = [
        tokens,
        f"vocabulary {started.vocabulary_size:,}",
        f"{network_text(network)}, {started.parameter_count:,} parameters",
    ]
    if started.total_steps:
        facts.append(f"{started.total_steps:,} steps")
    if baseline := baseline_text(started):
        facts.append(f"to beat: {baseline}")
    return ["; ".join(facts), *(f"note: {notice}" for notice in started.notices)]


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def state_line(change: JobStateChange) -> str:
    """Describes a change of a job's state: "paused: the disk is full"."""
    word = field_word(change, "state")
    return f"{word}: {change.reason}" if change.reason else word


def completed_line(model: Model) -> str:
    """Describes the trained model; notices follow, a line each."""
    record = model.training
    data = record.spec.data
    parts = [f"{record.steps:,} steps in {duration_text(record.elapsed_s)}"]
    parts.append(f"loss {number_text(record.train_loss)}")
    if record.HasField("valid_loss"):
        parts.append(valid_text(record.valid_loss, valid_split(record.valid_split, data)))
    if record.HasField("baseline_loss"):
        parts.append(f"n-gram {number_text(record.baseline_loss)}")
    if record.HasField("test_loss"):
        part = _in_brackets(test_split(record.test_split, data))
        parts.append(f"test{part} {number_text(record.test_loss)}")
    if 0 < record.weights_step < record.steps:
        parts.append(f"best weights of step {record.weights_step:,}")
    line = f"{model.name} version {model.version}: {', '.join(parts)}"
    return "\n".join([line, *(f"note: {notice}" for notice in record.notices)])


def network_text(network: NetworkSpec) -> str:
    """Returns a network's shape: "lstm 2x128"."""
    return f"{field_word(network, 'cell')} {network.layers}x{network.hidden_size}"


def speed_text(tokens_per_second: float) -> str:
    """Writes a speed with three digits: "123k tok/s"."""
    if not 0 < tokens_per_second < float("inf"):
        return ""
    number = tokens_per_second
    suffix = ""
    for larger in ("k", "M", "G"):
        if number >= 1000:
            number /= 1000
            suffix = larger
    digits = 1 if suffix and number < 100 else 0
    return f"{number:.{digits}f}{suffix} tok/s"


def time_text(progress: TrainingProgress) -> str:
    """Writes the time left where it is known, else the elapsed time."""
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


def size_text(count: float) -> str:
    """Writes a number of bytes with three digits: "21.3 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
