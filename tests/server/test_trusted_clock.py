from __future__ import annotations

from pathlib import Path

import pytest
from clocks import DayClock

from treadle.server.storage.trusted_clock import AHEAD_S, BEHIND_S, CONFIRM_S, TrustedClock

NOW = 1_800_000_000.0
DAY = 86_400.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tmp").mkdir()
    return tmp_path


def observed(root: Path, clock: DayClock, newest_s: float = 0.0) -> TrustedClock:
    """Starts a server on a data directory."""
    return TrustedClock(root / "clock", newest_s, clock.time, clock.monotonic)


def test_an_empty_directory_trusts_the_clock(root: Path) -> None:
    assert observed(root, DayClock(NOW)).now() == NOW


@pytest.mark.parametrize("days", [40.0, -40.0])
def test_a_start_with_a_wrong_clock_has_no_time_before_the_clock_was_steady(
    root: Path, days: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock = DayClock(NOW + days * DAY)
    time = observed(root, clock, newest_s=NOW)
    assert time.now() is None
    side = "ahead of" if days > 0 else "behind"
    assert f"40.0 days {side} the newest time" in caplog.text
    for _ in range(5):
        clock.pass_s(CONFIRM_S / 6)
        assert time.now() is None
    clock.pass_s(CONFIRM_S / 6)
    assert time.now() == clock.now_s
    assert "is trusted" in caplog.text


def test_a_clock_that_is_corrected_meanwhile_was_never_trusted(root: Path) -> None:
    clock = DayClock(NOW + 40 * DAY)
    time = observed(root, clock, newest_s=NOW)
    assert time.now() is None
    clock.pass_s(CONFIRM_S - 1)
    clock.now_s -= 40 * DAY
    assert time.now() == clock.now_s
    clock.pass_s(CONFIRM_S)
    assert time.now() == clock.now_s


def test_a_clock_that_jumps_again_and_again_is_not_steady(root: Path) -> None:
    clock = DayClock(NOW)
    time = observed(root, clock, newest_s=NOW)
    for _ in range(10):
        clock.now_s += 2 * DAY
        clock.pass_s(CONFIRM_S)
        assert time.now() is None


def test_what_is_written_under_a_wrong_clock_does_not_prove_it(root: Path) -> None:
    clock = DayClock(NOW)
    assert observed(root, clock, newest_s=NOW).now() == NOW
    clock.now_s += 40 * DAY
    # Jobs ran since, by the wrong clock, and the server was started again.
    for _ in range(3):
        assert observed(root, clock, newest_s=clock.now_s).now() is None
        clock.pass_s(60.0)


def test_a_server_that_was_down_for_less_than_a_day_goes_on_at_once(root: Path) -> None:
    clock = DayClock(NOW)
    assert observed(root, clock, newest_s=NOW - 300 * DAY).now() is None
    clock = DayClock(NOW)
    assert observed(root, clock, newest_s=NOW - AHEAD_S).now() == NOW
    clock.now_s += AHEAD_S
    assert observed(root, clock, newest_s=NOW - 300 * DAY).now() == clock.now_s
    clock.now_s -= BEHIND_S
    assert observed(root, clock).now() == clock.now_s


def test_an_idle_server_keeps_its_time(root: Path) -> None:
    clock = DayClock(NOW)
    time = observed(root, clock, newest_s=NOW)
    for _ in range(100):
        clock.pass_s(DAY)
        assert time.now() == clock.now_s
    assert observed(root, clock, newest_s=NOW).now() == clock.now_s


@pytest.mark.parametrize("content", ["", "nan", "inf", "-1", "x" * 100, "\xff"])
def test_a_damaged_file_gives_way_to_what_is_stored(root: Path, content: str) -> None:
    (root / "clock").write_text(content, "latin-1")
    assert observed(root, DayClock(NOW), newest_s=NOW - 40 * DAY).now() is None
    assert observed(root, DayClock(NOW), newest_s=NOW - 1).now() == NOW


def test_a_disk_that_takes_nothing_does_not_stop_the_time(tmp_path: Path) -> None:
    clock = DayClock(NOW)
    time = observed(tmp_path / "gone", clock)
    assert time.now() == NOW
    clock.pass_s(DAY)
    assert time.now() == clock.now_s
