"""The progress line: its parts, and which are left out on a narrow terminal."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.client.cli.display import splits
from treadle.client.cli.display.console import Console
from treadle.client.cli.display.progress import (
    RunFacts,
    Style,
    bar,
    completed_line,
    duration_text,
    fraction_done,
    plain_line,
    progress_line,
    speed_text,
    started_lines,
    state_line,
    validation_line,
)
from treadle.client.cli.display.reports import LiveReport, PlainReport
from treadle.v1.sequence_pb2 import (
    CORPUS_ROLE_TEST,
    JOB_STATE_PAUSED,
    JOB_STATE_RUNNING,
    SPLIT_FILES,
    SPLIT_ITEMS,
    SPLIT_TAIL,
    SPLIT_UNSPECIFIED,
    DataSpec,
    JobEvent,
    JobStateChange,
    Model,
    TrainingProgress,
    TrainingRecord,
    TrainingStarted,
    TrainSpec,
    ValidationProgress,
)

from .fake import a_model

PLAIN = Style(width=100, unicode=False)
HALF = TrainingProgress(
    step=1000,
    epoch=1.5,
    train_loss=1.5,
    tokens_per_second=123_456,
    elapsed_s=42,
    time_left_s=42,
)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (
            100,
            "###############...............  50%  step 1,000  loss 1.500  valid 1.750  "
            "123k tok/s  42 s left",
        ),
        (80, "#####.....  50%  step 1,000  loss 1.500  valid 1.750  123k tok/s  42 s left"),
        (70, "#####.....  50%  step 1,000  loss 1.500  valid 1.750  42 s left"),
        (60, "#####.....  50%  step 1,000  loss 1.500  42 s left"),
        (50, "50%  step 1,000  loss 1.500  42 s left"),
        (30, "50%  step 1,000  loss 1.500"),
        (20, "50%  step 1,000"),
        (15, "step 1,000"),
        (8, "step 1,"),
        (1, ""),
    ],
)
def test_the_speed_goes_first_where_it_is_narrow(width: int, line: str) -> None:
    assert progress_line(HALF, 2000, 1.75, Style(width=width, unicode=False)) == line


def test_without_an_end_in_sight_there_is_no_bar() -> None:
    progress = TrainingProgress(step=12, train_loss=2, elapsed_s=3725)
    assert progress_line(progress, 0, None, PLAIN) == "step 12  loss 2.000  1:02:05"


def test_the_first_event_has_no_speed_yet() -> None:
    progress = TrainingProgress(step=0, train_loss=float("nan"))
    assert progress_line(progress, 10, None, PLAIN) == (
        "..............................   0%  step 0  loss nan  0.0 s"
    )


@given(
    step=st.integers(0, 2**64 - 1),
    total=st.integers(0, 2**64 - 1),
    loss=st.floats(),
    speed=st.floats(),
    elapsed=st.floats(0, 1e9),
    left=st.none() | st.floats(0, 1e9),
    valid=st.none() | st.floats(0, 100),
    width=st.integers(1, 300),
    color=st.booleans(),
)
def test_it_never_wraps(
    step: int,
    total: int,
    loss: float,
    speed: float,
    elapsed: float,
    left: float | None,
    valid: float | None,
    width: int,
    color: bool,
) -> None:
    progress = TrainingProgress(
        step=step,
        train_loss=loss,
        tokens_per_second=speed,
        elapsed_s=elapsed,
        time_left_s=left,
    )
    line = progress_line(progress, total, valid, Style(width=width, color=color))
    shown = re.sub(r"\x1b\[\d*m", "", line)
    assert len(shown) < width
    assert shown.isprintable()


def test_color_is_no_more_than_asked_for() -> None:
    assert bar(0.5, 4, Style(color=True)) == "\x1b[36m━━\x1b[2m──\x1b[0m"
    assert bar(0.5, 4, Style()) == "━━──"
    assert bar(1.0, 4, Style(unicode=False)) == "####"


@pytest.mark.parametrize(
    ("progress", "total", "done"),
    [
        (TrainingProgress(), 0, None),
        (TrainingProgress(step=5), 10, 0.5),
        (TrainingProgress(step=15), 10, 1.0),
        (TrainingProgress(step=1, elapsed_s=30, time_left_s=10), 10, 0.75),
        (TrainingProgress(elapsed_s=30, time_left_s=0), 0, 1.0),
        (TrainingProgress(elapsed_s=30, time_left_s=-1), 0, 1.0),
        (TrainingProgress(step=5, elapsed_s=0, time_left_s=0), 10, 0.5),
    ],
)
def test_the_share_done_follows_the_nearest_limit(
    progress: TrainingProgress, total: int, done: float | None
) -> None:
    assert fraction_done(progress, total) == done


def test_a_line_that_stays() -> None:
    assert plain_line(TrainingProgress(step=7, epoch=0.25, train_loss=1.0), RunFacts()) == (
        "step 7  epoch 0.25  loss 1.000  0.0 s"
    )
    with_validation = TrainingProgress(step=7, train_loss=1.0, valid_loss=0.0, time_left_s=61)
    assert plain_line(with_validation, RunFacts(10)) == (
        "step 7/10  epoch 0.00  loss 1.000  valid 0.000  1:01 left"
    )


def test_what_the_server_made_of_it() -> None:
    started = TrainingStarted(train_tokens=1234, vocabulary_size=4, notices=["one", "two"])
    started.total_steps = 200
    started.spec.network.MergeFrom(a_model().network)
    assert started_lines(started) == [
        "1,234 tokens to train on, 0 to validate; vocabulary 4; "
        "lstm 2x128, 0 parameters; 200 steps",
        "note: one",
        "note: two",
    ]


DATA = TrainSpec(data=DataSpec(validation_fraction=0.05, test_fraction=0.125))


def test_losses_are_named_by_what_they_are_of() -> None:
    started = TrainingStarted(
        spec=DATA,
        train_tokens=80,
        valid_tokens=5,
        test_tokens=12,
        valid_split=SPLIT_ITEMS,
        test_split=SPLIT_FILES,
        baseline_loss=1.6694,
        baseline_order=5,
    )
    (line,) = started_lines(started)
    assert line.startswith(
        "80 tokens to train on, 5 to validate (5 % of the items), 12 to test (separate files); "
    )
    assert line.endswith("; to beat: 5-gram 1.669")
    facts = RunFacts.of(started)
    assert facts == RunFacts(0, "5 % of the items", "5-gram 1.669", 5)
    progress = TrainingProgress(
        step=7,
        train_loss=1.0,
        valid_loss=1.5,
        valid_perplexity=4.4817,
        valid_bits_per_character=2.164,
        best_valid_loss=1.25,
        memory_bytes=123_456_789,
        elapsed_s=5,
    )
    assert plain_line(progress, facts) == (
        "step 7  epoch 0.00  loss 1.000  valid (5 % of the items) 1.500  perplexity 4.482  "
        "2.164 bits/char  best 1.250  5-gram 1.669  123 MB  5.0 s"
    )
    progress.valid_tokens = 3
    assert "  valid (5 % of the items: 3 of 5 tokens) 1.500  " in plain_line(progress, facts)
    for whole in (0, 4, 5, 6):  # a text's first token is not predicted, and an item's end is
        progress.valid_tokens = whole
        assert "  valid (5 % of the items) 1.500  " in plain_line(progress, facts)
    progress.best_valid_loss = 1.5
    assert "best" not in plain_line(progress, facts)
    progress.ClearField("valid_loss")
    assert "5-gram" not in plain_line(progress, facts)


@pytest.mark.parametrize(
    ("split", "data", "valid", "test"),
    [
        (SPLIT_UNSPECIFIED, DataSpec(), "", ""),
        (SPLIT_TAIL, DataSpec(), "the last 10 %", "a tail of 0 %"),
        (SPLIT_TAIL, DATA.data, "a tail of 5 %", "a tail of 12.5 %"),
        (SPLIT_ITEMS, DATA.data, "5 % of the items", "12.5 % of the items"),
        (SPLIT_FILES, DATA.data, "separate files", "separate files"),
    ],
)
def test_parts_of_a_corpus_in_words(split: int, data: DataSpec, valid: str, test: str) -> None:
    assert (splits.valid_split(split, data), splits.test_split(split, data)) == (valid, test)


def test_how_far_a_validation_has_come() -> None:
    validation = ValidationProgress(step=20, tokens_done=1_200_000, tokens_total=30_000_000)
    line = "step 20  validating  1,200,000 of 30,000,000 tokens   4%"
    assert validation_line(validation, Style()) == line
    assert validation_line(validation, Style(width=20)) == line[:19]
    test = ValidationProgress(step=20, tokens_done=9, tokens_total=9, role=CORPUS_ROLE_TEST)
    assert validation_line(test, Style()) == "step 20  testing  9 of 9 tokens  100%"
    assert "  0%" in validation_line(ValidationProgress(), Style())


def test_a_long_validation_and_what_has_turned_out_are_shown() -> None:
    """On a terminal in the bar's place; where lines stay, now and then."""
    events = [
        JobEvent(validation=ValidationProgress(step=2, tokens_done=done, tokens_total=9))
        for done in (3, 6)
    ]
    events += [
        JobEvent(progress=TrainingProgress(step=3, notices=["auto: it is slow"])),
        JobEvent(completed=Model(training=TrainingRecord(notices=["auto: time was the limit"]))),
    ]
    for kind, shown in ((PlainReport, 1), (LiveReport, 2)):
        out = io.StringIO()
        report = kind(Console(out, {}))
        for event in events:
            report.show(event)
        assert out.getvalue().count("validating") == shown
        assert "note: auto: it is slow\n" in out.getvalue()
        assert "note: auto: time was the limit\n" in out.getvalue()


def test_changes_of_state() -> None:
    assert state_line(JobStateChange(state=JOB_STATE_RUNNING)) == "running"
    assert state_line(JobStateChange(state=JOB_STATE_PAUSED, reason="the disk is full")) == (
        "paused: the disk is full"
    )


def test_the_test_loss_comes_last() -> None:
    model = a_model()
    record = model.training
    record.spec.CopyFrom(DATA)
    record.valid_split = SPLIT_TAIL
    record.test_split = SPLIT_ITEMS
    record.test_loss = 1.9876
    record.baseline_loss = 2.0524
    record.weights_step = 150
    assert completed_line(model) == (
        "hello version 1: 200 steps in 0.0 s, loss 0.500, valid (a tail of 5 %) 0.750, "
        "n-gram 2.052, test (12.5 % of the items) 1.988, best weights of step 150"
    )


def test_what_came_out() -> None:
    assert completed_line(a_model()) == (
        "hello version 1: 200 steps in 0.0 s, loss 0.500, valid 0.750"
    )
    assert completed_line(Model(name="m", version=2)).endswith("loss 0.000")


@pytest.mark.parametrize(
    ("speed", "text"),
    [
        (0, ""),
        (float("inf"), ""),
        (float("nan"), ""),
        (-1, ""),
        (0.4, "0 tok/s"),
        (999, "999 tok/s"),
        (1234, "1.2k tok/s"),
        (123_456, "123k tok/s"),
        (1_234_567, "1.2M tok/s"),
        (3e9, "3.0G tok/s"),
    ],
)
def test_speeds(speed: float, text: str) -> None:
    assert speed_text(speed) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (42.4, "42 s"), (60, "1:00"), (3599.6, "1:00:00")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
