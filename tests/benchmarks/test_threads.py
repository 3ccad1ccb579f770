"""The table of how training divides over threads."""

import pytest

from treadle.benchmarks import threads

SMALL = ["--hidden", "3", "--rows", "64", "--window", "2", "--steps", "2"]


@pytest.mark.jit
def test_every_thread_gets_its_part_and_the_bits_are_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert threads.main([*SMALL, "--threads", "1", "2", "4"]) == 0
    printed = capsys.readouterr().out
    assert "4 shards of 16 rows" in printed
    assert "the same bits" in printed
    rows = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [["1", "4"], ["2", "2"], ["4", "1"]]
    assert len({row[-1] for row in rows}) == 1


def test_threads_that_do_not_divide_the_shards_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        threads.main([*SMALL, "--threads", "3"])
    assert "--threads 3 does not divide the 4 shards" in capsys.readouterr().err
