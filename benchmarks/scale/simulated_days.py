"""`compare` plays what the formulas describe, and says where the two differ and why."""

from __future__ import annotations

import dataclasses
import math
import statistics

from treadle.benchmarks.scale.comparison import Comparison, standard_error
from treadle.benchmarks.scale.constants import Constants
from treadle.benchmarks.scale.formulas import Formulas, queue_wait_s
from treadle.benchmarks.scale.job_simulation import JobSettings, JobSimulation
from treadle.benchmarks.scale.session_simulation import (
    AutoscalerRule,
    SessionSettings,
    SessionSimulation,
    day_load,
)
from treadle.benchmarks.scale.workload import Workload


def compare(scale: float = 1.0, seed: int = 1) -> list[Comparison]:
    """Plays everything.

    Args:
        scale: How long, in units of what gives stable figures within some seconds.
        seed: Of the random numbers.

    Returns:
        The figures, by both ways.
    """
    return [
        *compare_failures(round(3000 * scale), seed),
        *compare_queue(round(20_000 * scale), seed),
        *compare_days(max(1, round(2 * scale)), seed),
        *compare_sessions(scale, seed),
    ]


def compare_failures(jobs: int, seed: int) -> list[Comparison]:
    """Compares what failures cost, where machines are free to take over."""
    machines = 40
    workload = Workload(job_s=300.0, machine_lifetime_s=3000.0)
    rate = 0.6 * machines / workload.job_s
    simulation = JobSimulation(
        JobSettings(
            machines=machines,
            jobs=jobs,
            job_s=workload.job_s,
            arrivals_per_s=lambda _: rate,
            most_arrivals_per_s=rate,
            lifetime_s=workload.machine_lifetime_s,
            seed=seed,
        )
    )
    record = simulation.run()
    formulas = Formulas(Constants(), workload)
    work_s = statistics.mean(record.works_s)
    stretch = formulas.stretched_job_s() / workload.job_s
    return [
        Comparison(
            "a job waits after the failure of its machine",
            "s",
            formulas.takeover_s(),
            statistics.mean(record.takeovers_s),
            "moments without a free machine",
            standard_error(record.takeovers_s),
        ),
        Comparison(
            "work that a failure takes",
            "s",
            formulas.lost_s(),
            statistics.mean(record.losses_s),
            "jobs that end, or fail again, before their next checkpoint",
            standard_error(record.losses_s),
        ),
        Comparison(
            "start to end of a job, in units of its work",
            "",
            stretch,
            statistics.mean(record.stretches_s) / work_s,
            "failures during a takeover, and moments without a free machine",
        ),
        Comparison(
            "renewals a second of a running job",
            "1/s",
            1 / workload.renewal_interval_s,
            record.renewals / record.running_s,
            "the last renewal of a job is followed by less than a whole interval",
        ),
    ]


def compare_queue(jobs: int, seed: int) -> list[Comparison]:
    """Compares the wait in the queue at a constant load, without failures and with them."""
    machines = 20
    job_s = 60.0
    rate = 0.85 * machines / job_s
    settings = JobSettings(
        machines=machines,
        jobs=jobs,
        job_s=job_s,
        arrivals_per_s=lambda _: rate,
        most_arrivals_per_s=rate,
        seed=seed,
    )
    quiet = JobSimulation(settings).run()
    lifetime_s = 3000.0
    repair_s = 60.0
    failing = dataclasses.replace(settings, lifetime_s=lifetime_s, repair_s=repair_s)
    failed = JobSimulation(failing).run()
    workload = Workload(job_s=job_s, machine_lifetime_s=lifetime_s)
    stretched = Formulas(Constants(), workload).stretched_job_s()
    # A job that is being taken over holds no machine, but one that is away holds none either.
    held = stretched - job_s / lifetime_s * (workload.lease_s - workload.renewal_interval_s / 2)
    up = lifetime_s / (lifetime_s + repair_s)
    return [
        Comparison(
            "wait in the queue, 20 machines at 85 %",
            "s",
            queue_wait_s(rate, job_s, machines),
            statistics.mean(quiet.waits_s),
            "no reason is known",
            standard_error(quiet.waits_s),
        ),
        Comparison(
            "the same, each machine away for 60 s after 3000 s",
            "s",
            queue_wait_s(rate, held / up, machines),
            statistics.mean(failed.waits_s),
            "the formula slows all machines a little where single ones are away, and then the "
            "others get their jobs at once",
            standard_error(failed.waits_s),
        ),
    ]


def compare_days(days: int, seed: int) -> list[Comparison]:
    """Compares the wait in the queue where the load follows the time of day."""
    machines = 20
    job_s = 300.0
    day_s = 86_400.0
    mean = 0.7 * machines / job_s
    swing = 0.3

    def rate(time_s: float) -> float:
        return mean * day_load(time_s, day_s, swing)

    settings = JobSettings(
        machines=machines,
        jobs=round(mean * day_s * days),
        job_s=job_s,
        arrivals_per_s=rate,
        most_arrivals_per_s=mean * (1 + swing),
        seed=seed,
    )
    record = JobSimulation(settings).run()
    hours = [day_s * (number + 0.5) / 96 for number in range(96)]
    waits = [queue_wait_s(rate(hour), job_s, machines) * rate(hour) / mean for hour in hours]
    return [
        Comparison(
            "wait in the queue over a day, 49 to 91 % busy",
            "s",
            statistics.mean(waits),
            statistics.mean(record.waits_s),
            "the formula takes each moment for itself; the queue of the busiest hour builds up "
            "for longer than that hour lasts, and never gets as long as if it lasted for ever",
        ),
    ]


def compare_sessions(scale: float, seed: int) -> list[Comparison]:
    """Compares sessions on replicas that follow the load of a day."""
    rule = AutoscalerRule(target=16.0)
    settings = SessionSettings(
        sessions=2000,
        period_s=60.0,
        text_s=10.0,
        day_s=6 * 3600.0 * min(1.0, scale),
        swing=0.6,
        rule=rule,
        start_s=20.0,
        lifetime_s=4 * 3600.0,
        seed=seed,
    )
    record = SessionSimulation(settings).run()
    running = statistics.mean(sample[1] for sample in record.samples)
    paid = statistics.mean(sample[3] for sample in record.samples)
    times = [sample[0] for sample in record.samples]
    expected = [running_texts(settings, time) for time in times]
    ideal = [expected_replicas(settings, time) for time in times]
    busiest = max(sample[1] / max(1, sample[2]) for sample in record.samples[200:])
    return [
        Comparison(
            "texts that run, mean of a day",
            "",
            statistics.mean(expected),
            running,
            "a session that waits draws its wait once, and does not see that the hour gets busier",
        ),
        Comparison(
            "replicas that are paid, mean of a day",
            "",
            statistics.mean(ideal),
            paid,
            "within 10 % of its target the autoscaler changes nothing, and chance sets the "
            "largest wish of five minutes above the mean",
        ),
        Comparison(
            "texts that move to another replica",
            "",
            moved_texts(settings),
            record.moved,
            "no reason is known",
            math.sqrt(moved_texts(settings) * rule.target),
        ),
        Comparison(
            "texts of a replica at the worst moment",
            "",
            rule.target * (1 + rule.tolerance) + lag_texts(settings),
            busiest,
            "chance: texts begin in bunches, and a replica that fails leaves its texts to others",
        ),
    ]


def running_texts(settings: SessionSettings, time_s: float) -> float:
    """Returns the texts that run at a time of the day (Little's law).

    Args:
        settings: What is simulated.
        time_s: The time.
    """
    wait_s = settings.period_s / day_load(time_s, settings.day_s, settings.swing)
    return settings.sessions * settings.text_s / (wait_s + settings.text_s)


def expected_replicas(settings: SessionSettings, time_s: float) -> float:
    """Returns the replicas that the rule gives: for the busiest of the last five minutes.

    Args:
        settings: What is simulated.
        time_s: The time.
    """
    rule = settings.rule
    window = [time_s - rule.stabilization_s * part / 10 for part in range(11)]
    busiest = max(running_texts(settings, time) for time in window)
    return max(rule.least, math.ceil(busiest / rule.target))


def moved_texts(settings: SessionSettings) -> float:
    """Returns the texts of a day whose replica fails, or is one too many when it gets quieter.

    Args:
        settings: What is simulated, from the quietest moment to the next one.
    """
    times = [settings.day_s * number / 1000 for number in range(1000)]
    mean = statistics.mean(running_texts(settings, time) for time in times)
    least, most = (running_texts(settings, settings.day_s * part) for part in (0.0, 0.5))
    return mean * settings.day_s / settings.lifetime_s + (most - least)


def lag_texts(settings: SessionSettings) -> float:
    """Returns the texts that a replica gets more at the steepest hour, until another one serves."""
    rule = settings.rule
    lag_s = settings.scrape_s / 2 + rule.interval_s / 2 + settings.start_s
    times = [settings.day_s * number / 1000 for number in range(500)]
    found = []
    for time in times:
        now = running_texts(settings, time)
        later = running_texts(settings, time + lag_s)
        found.append((later - now) / (now / rule.target))
    return max(found)
