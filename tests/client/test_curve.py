"""Loss curves: what is gathered, and that what is drawn is where it belongs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treadle.client.cli.display.curves.curve import (
    Axis,
    Curve,
    Point,
    line,
    loss_axis,
    step_axis,
    thin,
    tick_step,
)
from treadle.client.cli.display.curves.curve_svg import svg
from treadle.client.cli.display.curves.curve_text import draw
from treadle.client.cli.display.curves.job_curve import gather
from treadle.v1 import sequence_pb2 as v1

from .fake import events_of

FALLING = Curve(
    "bard <&> job",
    tuple(Point(10 * i, 4.0 - 0.03 * i) for i in range(1, 101)),
    (Point(500, 3.0), Point(1000, 2.0)),
    "valid (the last 10 %)",
    1.5,
    "5-gram 1.500",
)

curves = st.builds(
    Curve,
    st.text(max_size=20),
    *[
        st.lists(
            st.builds(Point, st.integers(0, 2**40), st.floats(-1e6, 1e6)),
            max_size=20,
            unique_by=lambda point: point.step,
        ).map(lambda points: tuple(sorted(points)))
        for _ in range(2)
    ],
    baseline=st.none() | st.floats(0, 100),
).filter(lambda curve: curve.points)


class TestGather:
    def test_losses_names_and_the_baseline(self) -> None:
        events = events_of("a1", v1.TrainSpec(model="m"), 5)
        events[1].started.valid_split = v1.SPLIT_TAIL
        events[1].started.baseline_loss = 1.669
        events[1].started.baseline_order = 5
        curve = gather(events, "title")
        assert curve.train == (Point(100, 1.25), Point(200, 0.5))
        assert curve.valid == (Point(200, 0.75),)
        assert curve.valid_name == "valid (the last 10 %)"
        assert (curve.baseline, curve.baseline_name) == (1.669, "5-gram 1.669")

    def test_steps_that_come_again_count_once_and_what_is_no_number_not_at_all(self) -> None:
        def progress(step: int, loss: float) -> v1.JobEvent:
            return v1.JobEvent(progress=v1.TrainingProgress(step=step, train_loss=loss))

        events = [progress(1, 3), progress(2, 2), progress(3, 9), progress(2, 1)]
        assert gather(events, "").train == (Point(1, 3), Point(2, 1))
        assert gather([progress(1, 3), progress(2, float("nan"))], "").train == (Point(1, 3),)
        assert gather([], "").points == ()


class TestAxes:
    @pytest.mark.parametrize(
        ("span", "most", "step"), [(1000, 5, 200), (1, 4, 0.5), (3, 3, 1), (0.03, 3, 0.01)]
    )
    def test_marks_are_round(self, span: float, most: int, step: float) -> None:
        assert tick_step(span, most) == pytest.approx(step)

    def test_steps_and_losses(self) -> None:
        steps = step_axis(FALLING, 4)
        assert steps.labels == ("0", "500", "1,000")
        assert [steps.place(tick) for tick in steps.ticks] == [0, 0.5, 1]
        assert loss_axis(FALLING, 3).labels == ("2", "4")
        assert loss_axis(replace(FALLING, baseline=9.0), 3).labels == ("5",)
        losses = loss_axis(FALLING, 7)
        assert losses.labels == ("1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0")
        assert losses.low < 1 < losses.high
        assert 0 < losses.place(1.5) < losses.place(3.97) < 1

    @pytest.mark.parametrize("loss", [0.0, 1.5, 1e-300, 1e300, -3.0])
    def test_a_curve_of_one_value_lies_in_the_middle(self, loss: float) -> None:
        axis = loss_axis(Curve("", (Point(1, loss), Point(2, loss)), ()), 4)
        assert axis.place(loss) == pytest.approx(0.5)
        assert all(len(label) < 310 for label in axis.labels)

    @given(curves, st.integers(1, 20))
    def test_every_point_has_its_place(self, curve: Curve, most: int) -> None:
        steps = step_axis(curve, most)
        losses = loss_axis(curve, most)
        for axis in (steps, losses):
            assert 1 <= len(axis.ticks) <= most + 1
            assert len(axis.ticks) == len(axis.labels)
            assert all(-1e-9 <= axis.place(tick) <= 1 + 1e-9 for tick in axis.ticks)
        assert all(0 <= steps.place(point.step) <= 1 for point in curve.points)
        assert all(0 <= losses.place(point.loss) <= 1 for point in curve.points)

    def test_thinning_keeps_what_is_seen(self) -> None:
        points = [Point(i, float((7 * i) % 11)) for i in range(10_000)]
        kept = thin(points, 10_000, 10)
        assert kept == sorted(kept)
        assert len(kept) <= 40
        assert kept[0] == points[0]
        assert kept[-1] == points[-1]
        for column in range(10):
            part = [p.loss for p in kept if p.step // 1000 == column]
            assert (min(part), max(part)) == (0, 10)

    @given(*[st.integers(-20, 20)] * 4)
    def test_lines_have_no_holes(self, x0: int, y0: int, x1: int, y1: int) -> None:
        found = list(line(x0, y0, x1, y1))
        assert (found[0], found[-1]) == ((x0, y0), (x1, y1))
        assert len(found) == max(abs(x1 - x0), abs(y1 - y0)) + 1
        steps = {(abs(a - c), abs(b - d)) for (a, b), (c, d) in pairwise(found)}
        assert steps <= {(0, 1), (1, 0), (1, 1)}


class TestText:
    @pytest.mark.parametrize(("unicode", "mark"), [(True, "●"), (False, "o")])
    def test_a_falling_curve_falls(self, unicode: bool, mark: str) -> None:
        lines = draw(FALLING, 60, 16, unicode=unicode, color=False)
        assert len(lines) == 16
        assert max(map(len, lines[:-1])) <= 60
        assert lines[0] == FALLING.title
        assert unicode or "".join(lines).isascii()
        area = lines[1:13]
        alone = draw(replace(FALLING, valid=()), 60, 16, unicode=unicode, color=False)[1:13]
        tops = [min(y for y, row in enumerate(alone) if drawn(row, x)) for x in range(8, 50)]
        assert tops == sorted(tops)
        assert tops[-1] - tops[0] >= 6
        assert sum(row.count(mark) for row in area) == 2
        dotted = [y for y, row in enumerate(area) if row.count("┈" if unicode else ".") > 20]
        assert len(dotted) == 1
        assert tops[0] < dotted[0] <= tops[-1]
        assert lines[-2].split() == ["0", "500", "1,000"]
        assert "valid (the last 10 %)" in lines[-1]
        assert "5-gram 1.500" in lines[-1]

    def test_colors_change_nothing_else(self) -> None:
        plain = draw(FALLING, 60, 16, unicode=True, color=False)
        colored = draw(FALLING, 60, 16, unicode=True, color=True)
        assert [re.sub(r"\x1b\[\d*m", "", each).rstrip() for each in colored] == plain
        assert "\x1b[33m●" in "".join(colored)

    @given(curves, st.integers(8, 120), st.integers(1, 40), st.booleans())
    def test_any_curve_is_drawn(self, curve: Curve, width: int, height: int, both: bool) -> None:
        lines = draw(curve, width, height, unicode=both, color=both)
        assert len(lines) == max(height, 7)


def drawn(row: str, column: int) -> bool:
    """Whether the training curve passes a cell."""
    return column < len(row) and ("\u2800" < row[column] <= "\u28ff" or row[column] == "*")


class TestSvg:
    def test_both_curves_the_baseline_and_every_word(self) -> None:
        text = svg(FALLING, 800, 400)
        root = ElementTree.fromstring(text)
        space = "{http://www.w3.org/2000/svg}"
        assert (root.get("width"), root.get("height")) == ("800", "400")
        lines = {
            each.get("class"): each.get("points", "") for each in root.iter(space + "polyline")
        }
        assert list(lines) == ["train", "valid"]
        train = [tuple(map(float, pair.split(","))) for pair in lines["train"].split()]
        assert train == sorted(train)
        assert [y for _, y in train] == sorted(y for _, y in train)  # down the page
        assert train[-1][0] == 780.0
        assert len(lines["valid"].split()) == 2
        words = [each.text for each in root.iter(space + "text")]
        for word in (
            FALLING.title,
            "train",
            "valid (the last 10 %)",
            "5-gram 1.500",
            "step",
            "nats per token",
            "1,000",
            "2",
        ):
            assert word in words
        dotted = [each for each in root.iter(space + "line") if each.get("class") == "baseline"]
        across = max(dotted, key=lambda each: float(each.get("x2", "0")))
        assert float(across.get("y1", "0")) > train[-1][1] - 400

    @settings(deadline=None)
    @given(curves)
    def test_any_curve_is_xml(self, curve: Curve) -> None:
        ElementTree.fromstring(svg(curve, 300, 200))


def test_an_axis_is_what_it_says() -> None:
    assert Axis(2, 4, (3.0,), ("3",)).place(3) == 0.5
