"""`limits` says at how many machines each shared part is full, and what to do then."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from treadle.benchmarks.scale.formulas import Formulas
from treadle.benchmarks.scale.workload import GIB

MOST_MACHINES = 1e7
"""A part that is not full here is no limit."""

DNS_ADDRESSES = 65_535 // 16
"""The most addresses in an answer: a DNS message over TCP has 65,535 bytes, an A record 16."""


@dataclass(frozen=True)
class Limit:
    """A part that all machines share."""

    name: str
    """What it is."""
    use: Callable[[float], float]
    """The part of it that is used, by the number of machines."""
    why: str
    """What uses it up."""
    then: str
    """What to do when it is full."""
    changes: Mapping[str, float] = field(default_factory=dict)
    """What that changes in the workload; empty: nothing that the formulas know."""

    def machines(self) -> float:
        """Returns the machines at which it is full; infinity: never; NaN: not measured."""
        if math.isnan(self.use(1.0)):
            return math.nan
        if self.use(MOST_MACHINES) < 1:
            return math.inf
        below = 0.0
        above = MOST_MACHINES
        while above - below > 1e-6 * above:
            middle = (below + above) / 2
            if self.use(middle) < 1:
                below = middle
            else:
                above = middle
        return above


def limits(formulas: Formulas) -> list[Limit]:
    """Returns every limit, the one that breaks first before the others; what is unknown last."""
    constants = formulas.constants
    workload = formulas.workload

    def connections(machines: float) -> float:
        return machines * workload.connections_per_machine

    def news(machines: float) -> float:
        each = constants.notified_event_s + machines * constants.delivery_s
        return formulas.events_per_s(machines) * each

    found = [
        Limit(
            "connections of PostgreSQL",
            lambda machines: connections(machines) / workload.database_connections,
            f"{workload.connections_per_machine:.0f} for each server; PostgreSQL comes with "
            f"max_connections = {workload.database_connections:.0f}",
            "max_connections = 2000, for which PostgreSQL needs memory",
            {"database_connections": 2000},
        ),
        Limit(
            "memory of PostgreSQL's connections",
            lambda machines: (
                connections(machines) * constants.backend_bytes / workload.database_memory
            ),
            "a process for each; PgBouncer does not help, since a server keeps its connections",
            "256 GB of memory; then a database for each group of machines",
            {"database_memory": 256.0 * GIB},
        ),
        Limit(
            "news of events",
            news,
            "each event is a NOTIFY that goes to every server, and commits that notify are one at "
            "a time",
            "progress every 10 s; then a database for each group",
            {"event_interval_s": 10.0},
        ),
        Limit(
            "the queue's lock",
            lambda machines: formulas.acquisitions_per_s(machines) * constants.acquire_s,
            "a new job wakes every server with a free slot, and they choose one at a time",
            "jobs of an hour; then a database for each group of machines",
            {"job_s": 3600.0},
        ),
        Limit(
            "looks at the queue",
            lambda machines: formulas.looks_per_s(machines) * constants.look_s,
            "servers with a free slot look each second and at each new job",
            "as for its lock",
            {"job_s": 3600.0},
        ),
        Limit(
            "commits of events",
            lambda machines: formulas.events_per_s(machines) * constants.quiet_event_s,
            "each progress event is a transaction",
            "progress every 10 s; a faster disk for PostgreSQL's log",
            {"event_interval_s": 10.0},
        ),
        Limit(
            "renewals of leases",
            lambda machines: formulas.renewals_per_s(machines) * constants.renewal_s,
            "one statement for each server in a quarter of the lease",
            "leases of 40 s: jobs of failed machines then wait as long",
            {"renewal_interval_s": 10.0},
        ),
        Limit(
            "the event loop of each replica",
            lambda machines: (
                formulas.events_per_s(machines)
                * constants.notification_s
                / workload.notification_share
            ),
            f"it hears of every event of every job; {workload.notification_share:.0%} of its time",
            "progress every 10 s",
            {"event_interval_s": 10.0},
        ),
        Limit(
            "writes to the object store",
            lambda machines: formulas.puts_per_s(machines) / workload.puts_per_s,
            f"{workload.files_per_checkpoint:.0f} files for each checkpoint; S3 promises "
            f"{workload.puts_per_s:.0f} writes a second for a prefix",
            "checkpoints every 60 s; S3 divides prefixes by itself where the load lasts",
            {"checkpoint_interval_s": 60.0},
        ),
        Limit(
            "addresses in a DNS answer",
            lambda machines: machines / DNS_ADDRESSES,
            "a headless service answers with every replica",
            "a proxy such as Envoy, or several services",
        ),
    ]

    def order(limit: Limit) -> float:
        machines = limit.machines()
        return math.inf if math.isnan(machines) else machines

    return sorted(found, key=order)


def machines_then(formulas: Formulas, limit: Limit) -> float:
    """Returns the machines at which a part is full after what is to be done then.

    Args:
        formulas: With the workload as it was.
        limit: The part; infinity where its remedy changes nothing that the formulas know.
    """
    if not limit.changes:
        return math.inf
    changed = Formulas(formulas.constants, replace(formulas.workload, **limit.changes))
    [same] = [other for other in limits(changed) if other.name == limit.name]
    return same.machines()
