"""`gather` makes the curve of a job from its events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from treadle.client.cli.display.curves.curve import Curve, Point, append_point
from treadle.client.cli.display.progress import RunFacts

if TYPE_CHECKING:
    from treadle.v1.sequence_pb2 import JobEvent


def gather(events: Iterable[JobEvent], title: str) -> Curve:
    """Gathers a curve from the events of a job; losses that are not finite are left out."""
    train: list[Point] = []
    valid: list[Point] = []
    facts = RunFacts()
    baseline = None
    for event in events:
        if event.HasField("started"):
            facts = RunFacts.of(event.started)
            if event.started.HasField("baseline_loss"):
                baseline = event.started.baseline_loss
        elif event.HasField("progress"):
            progress = event.progress
            append_point(train, Point(progress.step, progress.train_loss))
            if progress.HasField("valid_loss"):
                append_point(valid, Point(progress.step, progress.valid_loss))
    name = f"valid ({facts.valid_part})" if facts.valid_part else "valid"
    return Curve(title, tuple(train), tuple(valid), name, baseline, facts.baseline)
