"""The model of what many machines cost: formulas, limits and the simulation behind them."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from treadle.benchmarks import scale_model
from treadle.benchmarks.scale import measure_blobs, measure_database, programs
from treadle.benchmarks.scale.comparison import Comparison, standard_error
from treadle.benchmarks.scale.constants import Constants, Measured
from treadle.benchmarks.scale.formulas import Formulas, erlang_c, queue_wait_s
from treadle.benchmarks.scale.job_simulation import JobSettings, JobSimulation
from treadle.benchmarks.scale.limits import Limit, limits, machines_then
from treadle.benchmarks.scale.report import comparison_text, report
from treadle.benchmarks.scale.session_simulation import (
    AutoscalerRule,
    SessionSettings,
    SessionSimulation,
    replicas_for,
)
from treadle.benchmarks.scale.simulated_days import (
    compare_failures,
    running_texts,
)
from treadle.benchmarks.scale.workload import Workload

SHIPPED = Measured.load(scale_model.CONSTANTS)
FORMULAS = Formulas(SHIPPED.constants, Workload())

RATE = 0.1
TROUBLED = JobSettings(
    machines=8,
    jobs=150,
    job_s=40.0,
    arrivals_per_s=lambda _: RATE,
    most_arrivals_per_s=RATE,
    lifetime_s=300.0,
    repair_s=20.0,
    pause_interval_s=80.0,
    pause_s=15.0,
)
"""Machines that fail, and that stand still for longer than a lease."""

DAY = SessionSettings(
    sessions=200,
    period_s=30.0,
    text_s=10.0,
    day_s=3600.0,
    swing=0.8,
    rule=AutoscalerRule(target=8.0),
    start_s=20.0,
    lifetime_s=900.0,
    most_texts=16,
)


@pytest.mark.parametrize(("load", "servers", "waits"), [(0.5, 1, 0.5), (2.0, 3, 4 / 9)])
def test_the_part_that_waits_is_erlangs(load: float, servers: int, waits: float) -> None:
    assert erlang_c(load, servers) == pytest.approx(waits)


def test_a_queue_with_more_work_than_servers_grows() -> None:
    assert queue_wait_s(1.0, 0.5, 1) == pytest.approx(0.5)
    assert queue_wait_s(2.0, 1.0, 2) == math.inf


def test_a_takeover_waits_for_the_lease_and_a_look() -> None:
    """Half an interval has passed since the last renewal, and half a second until a look."""
    assert FORMULAS.takeover_s() == 10 - 2.5 / 2 + 1 / 2
    assert FORMULAS.lost_s() == 5


def test_failures_stretch_jobs() -> None:
    often = Formulas(Constants(), Workload(job_s=100.0, machine_lifetime_s=1000.0))
    running_s = 100 / (1 - 5 / 1000)
    assert often.stretched_job_s() == pytest.approx(running_s * (1 + 9.25 / 1000))


def test_a_text_takes_the_loop_and_the_cores() -> None:
    constants = Constants(
        call_s=1e-3, message_s=1e-4, tokens_per_message=20, prefill_s=1e-6, decode_s=5e-6
    )
    formulas = Formulas(constants, Workload(sessions=6e5, cores=2, utilization=0.5))
    assert formulas.loop_s_per_text() == pytest.approx(2e-3)
    assert formulas.kernel_s_per_text() == pytest.approx(1.05e-3)
    assert formulas.replica_texts_per_s() == pytest.approx(250)
    assert formulas.machines_for_sessions() == 40


def test_more_machines_than_shards_do_not_help() -> None:
    speeds = [FORMULAS.speed_up(ranks, 256, 1.25e9, 30e-6) for ranks in (1, 2, 4, 8)]
    assert speeds[0] == 1
    assert speeds[1] > 1
    assert speeds[1] > speeds[2] > speeds[3], "256 rows are 16 shards, for two machines of 8 cores"


def test_a_limit_is_where_all_is_used() -> None:
    grows = Limit("", lambda machines: machines**2 / 1e6, "", "")
    assert grows.machines() == pytest.approx(1000, rel=1e-4)
    assert Limit("", lambda _: 0.5, "", "").machines() == math.inf
    assert math.isnan(Limit("", lambda _: math.nan, "", "").machines())


def test_limits_come_in_the_order_in_which_they_break() -> None:
    found = limits(FORMULAS)
    machines = [limit.machines() for limit in found]
    assert machines == sorted(machines)
    for limit in found:
        assert limit.use(machines[0]) <= 1.001, f"{limit.name} breaks before the first"
        if limit.changes:
            assert machines_then(FORMULAS, limit) > limit.machines(), limit.name


def test_what_was_not_measured_is_no_limit() -> None:
    partly = replace(SHIPPED.constants, acquire_s=math.nan)
    last = limits(Formulas(partly, Workload()))[-1]
    assert last.name == "the queue's lock"


def test_every_constant_that_is_shipped_was_measured() -> None:
    for item in fields(Constants):
        value = getattr(SHIPPED.constants, item.name)
        assert value >= 0, f"{item.name}: measure again, with everything installed"
    assert SHIPPED.date
    assert SHIPPED.machine["processor"]


def test_constants_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "constants.json"
    Measured(Constants(call_s=0.5, delivery_s=0.0), {"processor": "x"}, "2026-01-02").save(path)
    read = Measured.load(path).constants
    assert read.call_s == 0.5
    assert read.delivery_s == 0.0
    assert math.isnan(read.look_s)
    path.write_text('{"date": "", "machine": {}, "constants": {"warp_s": 1}}')
    with pytest.raises(ValueError, match="warp_s"):
        Measured.load(path)


@pytest.mark.parametrize("seed", range(5))
def test_every_job_ends_once_whatever_fails(seed: int) -> None:
    simulation = JobSimulation(replace(TROUBLED, seed=seed))
    record = simulation.run()
    assert len(simulation.rows) == TROUBLED.jobs
    assert {row.ends for row in simulation.rows} == {1}
    assert record.stale_writes == 0
    assert record.refused_writes > 0, "no machine came back after its lease"
    assert len(record.takeovers_s) > 0
    for row in simulation.rows:
        assert row.ended_s - row.started_s >= row.work_s - 1e-6, "ended before its work was done"


def test_without_fences_machines_write_what_they_may_not() -> None:
    """The test above would not notice if nothing ever went wrong."""
    simulation = JobSimulation(replace(TROUBLED, fencing=False))
    assert simulation.run().stale_writes > 0


def test_the_same_seed_plays_the_same() -> None:
    [first, second] = (JobSimulation(TROUBLED).run() for _ in range(2))
    assert first == second


def test_no_session_is_lost() -> None:
    """Replicas fail, come and go, and are too few at times; the simulation counts all the while."""
    simulation = SessionSimulation(DAY)
    record = simulation.run()
    assert record.moved > 0
    assert record.ended > 1000
    assert simulation.waiting + simulation.running + simulation.refused == DAY.sessions
    assert record.asked == record.ended + simulation.running + simulation.refused
    served = [sample[2] for sample in record.samples]
    assert max(served) > 2 * min(served)


def test_refused_calls_are_made_again() -> None:
    few = replace(DAY, rule=replace(DAY.rule, most=2), lifetime_s=math.inf)
    record = SessionSimulation(few).run()
    assert record.refused > 0
    assert max(sample[1] for sample in record.samples) <= 2 * DAY.most_texts


def test_the_autoscaler_follows_the_rule_of_kubernetes() -> None:
    rule = AutoscalerRule(target=10, least=2, most=50)
    assert replicas_for(running=109, replicas=10, rule=rule) == 10, "within the tolerance"
    assert replicas_for(running=111, replicas=10, rule=rule) == 12
    assert replicas_for(running=80, replicas=10, rule=rule) == 8
    assert replicas_for(running=0, replicas=10, rule=rule) == 2
    assert replicas_for(running=10_000, replicas=10, rule=rule) == 50


def test_replicas_leave_one_at_a_time() -> None:
    record = SessionSimulation(replace(DAY, lifetime_s=math.inf)).run()
    paid = [(sample[0], sample[3]) for sample in record.samples]
    for (_, count), (_, later) in zip(paid, paid[12:], strict=False):  # a minute between them
        assert count - later <= 2
    for (_, count), (_, later) in itertools.pairwise(paid):
        assert later <= 2 * count


def test_texts_that_run_follow_littles_law() -> None:
    steady = replace(DAY, swing=0.0, lifetime_s=math.inf)
    assert running_texts(steady, 0.0) == pytest.approx(200 * 10 / 40)
    record = SessionSimulation(steady).run()
    mean = sum(sample[1] for sample in record.samples) / len(record.samples)
    assert mean == pytest.approx(50, rel=0.1)


def test_formulas_say_what_the_simulation_plays() -> None:
    """With a fixed seed, so that chance is the same each time."""
    for each in compare_failures(500, seed=1):
        assert abs(each.difference) < 0.1, each


def test_the_queue_waits_as_long_as_the_formula_says() -> None:
    steady = JobSettings(
        machines=3,
        jobs=4000,
        job_s=60.0,
        arrivals_per_s=lambda _: 0.03,
        most_arrivals_per_s=0.03,
    )
    waits = JobSimulation(steady).run().waits_s
    assert sum(waits) / len(waits) == pytest.approx(queue_wait_s(0.03, 60.0, 3), rel=0.15)


def test_chance_and_a_reason_differ() -> None:
    alternating = [0.0, 1.0] * 1000
    assert standard_error(alternating) == pytest.approx(0)
    blocks = [float(number // 100 % 2) for number in range(2000)]
    assert standard_error(blocks) == pytest.approx(0.115, abs=0.002)
    assert math.isnan(standard_error([1.0]))
    assert Comparison("", "", 10.0, 11.0, "a reason", 0.5).is_chance
    reasoned = Comparison("a wait", "s", 10.0, 11.0, "a reason", 0.1)
    assert "a wait: a reason" in comparison_text([reasoned])


def test_the_parts_of_an_operation_are_told_apart() -> None:
    written: list[int] = []
    fixed, each = measure_blobs.parts(lambda content: written.append(len(content)), 0.01)
    assert fixed < 1e-3
    assert each < 1e-9
    assert len(set(written)) == 2


def test_a_database_and_a_directory_are_measured() -> None:
    assert measure_database.measure_sqlite(0.05)["sqlite_event_s"] > 0
    assert measure_blobs.measure_directory(0.05)["directory_put_s"] > 0


def test_the_tables_say_what_breaks_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale_model.main(["--no-simulation", "--sessions", "1e5"]) == 0
    printed = capsys.readouterr().out
    assert "nan" not in printed
    first = limits(Formulas(SHIPPED.constants, Workload(sessions=1e5)))[0]
    table = printed.partition("What all machines share")[2].splitlines()
    assert table[3].startswith(first.name)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--cores", "0"], "--cores must be above 0"), (["--constants", "none.json"], "none.json")],
)
def test_what_cannot_be_is_refused(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scale_model.main(arguments)
    assert named in capsys.readouterr().err


def test_programs_are_found_where_the_environment_is_not_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, name in (("bin", "mine"), ("path", "mine"), ("path", "second")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert programs.find("mine") == str(tmp_path / "bin" / "mine")
    assert programs.find("first", "second") == str(tmp_path / "path" / "second")
    assert programs.find("none") is None


@pytest.mark.shared
def test_every_constant_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    measured = scale_model.measure(0.2)
    left_out = capsys.readouterr().err.splitlines()
    missing = [item.name for item in fields(Constants) if math.isnan(_value(measured, item.name))]
    mpi = {"exchange_s", "exchange_byte_s"}
    assert set(missing) <= mpi, left_out
    assert bool(missing) == any("MPI" in line for line in left_out)
    assert report(measured, Workload())


def _value(measured: Measured, name: str) -> float:
    value: float = getattr(measured.constants, name)
    return value
