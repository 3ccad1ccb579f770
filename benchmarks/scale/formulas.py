"""`Formulas` says what a text, a job and a failure take, from constants and a workload."""

from __future__ import annotations

import math

from treadle.benchmarks.scale.constants import Constants
from treadle.benchmarks.scale.workload import Workload


class Formulas:
    """What a fleet needs.

    Args:
        constants: What was measured.
        workload: What is assumed.
    """

    def __init__(self, constants: Constants, workload: Workload) -> None:
        self.constants = constants
        self.workload = workload

    # Texts.

    def clients(self) -> float:
        """Returns the client processes, each with a connection to every replica."""
        return self.workload.sessions / self.workload.sessions_per_client

    def loop_s_per_text(self) -> float:
        """Returns the seconds that a text takes of the event loop of its replica."""
        messages = self.workload.new_tokens / self.constants.tokens_per_message
        return self.constants.call_s + messages * self.constants.message_s

    def kernel_s_per_text(self) -> float:
        """Returns the seconds that a text takes of one core in kernels."""
        prompt = self.workload.prompt_tokens * self.constants.prefill_s
        return prompt + self.workload.new_tokens * self.constants.decode_s

    def texts_per_s(self) -> float:
        """Returns the texts a second of all sessions."""
        return self.workload.sessions / self.workload.period_s

    def loop_texts_per_s(self) -> float:
        """Returns the texts a second at which the event loop of a replica is full."""
        return 1 / self.loop_s_per_text()

    def kernel_texts_per_s(self) -> float:
        """Returns the texts a second at which the cores of a replica are full.

        The event loop takes part of one core.
        """
        per_text = self.kernel_s_per_text() + self.loop_s_per_text()
        return self.workload.cores / per_text

    def replica_texts_per_s(self) -> float:
        """Returns the texts a second that a replica is meant to serve."""
        most = min(self.loop_texts_per_s(), self.kernel_texts_per_s())
        return most * self.workload.utilization

    def machines_for_sessions(self) -> float:
        """Returns the machines that serve all sessions."""
        return math.ceil(self.texts_per_s() / self.replica_texts_per_s())

    def state_bytes_per_s(self) -> float:
        """Returns the bytes a second of states that come with calls and leave with texts."""
        return 2 * self.texts_per_s() * self.constants.state_bytes

    # Jobs.

    def busy_share(self) -> float:
        """Returns the part of all slots in which a job runs."""
        return min(1.0, self.workload.jobs_per_machine / self.workload.slots_per_machine)

    def jobs(self, machines: float) -> float:
        """Returns the jobs that run."""
        return machines * self.busy_share() * self.workload.slots_per_machine

    def events_per_s(self, machines: float) -> float:
        """Returns the events a second of all jobs."""
        return self.jobs(machines) / self.workload.event_interval_s

    def submissions_per_s(self, machines: float) -> float:
        """Returns the jobs a second that begin, and so that end."""
        return self.jobs(machines) / self.workload.job_s

    def looking(self, machines: float) -> float:
        """Returns the servers that have a slot free."""
        return machines * (1 - math.pow(self.busy_share(), self.workload.slots_per_machine))

    def acquisitions_per_s(self, machines: float) -> float:
        """Returns how often a second servers queue up for a job, at the most.

        The news of a job reaches all that have a slot free, and all of them may see that it waits.
        """
        return self.looking(machines) * self.submissions_per_s(machines)

    def looks_per_s(self, machines: float) -> float:
        """Returns how often a second servers look at the queue, each with a slot free.

        Each looks by itself now and then, and all of them at the news of a job that waits.
        """
        alone = self.looking(machines) / self.workload.look_interval_s
        return alone + self.acquisitions_per_s(machines)

    def renewals_per_s(self, machines: float) -> float:
        """Returns the statements a second that renew leases: one for each server with a job."""
        idle = math.pow(1 - self.busy_share(), self.workload.slots_per_machine)
        return machines * (1 - idle) / self.workload.renewal_interval_s

    def checkpoint_bytes(self) -> float:
        """Returns the bytes that a checkpoint writes."""
        return self.workload.weights_per_checkpoint * self.constants.weight_bytes

    def checkpoint_s(self) -> float:
        """Returns the seconds that a checkpoint takes to reach the object store."""
        fixed = self.workload.files_per_checkpoint * self.constants.store_put_s
        return fixed + self.checkpoint_bytes() * self.constants.store_put_byte_s

    def puts_per_s(self, machines: float) -> float:
        """Returns the writes a second to the object store."""
        per_checkpoint = self.workload.files_per_checkpoint / self.workload.checkpoint_interval_s
        return self.jobs(machines) * per_checkpoint

    # Failures.

    def takeover_s(self) -> float:
        """Returns the mean seconds from the failure of a machine until its job runs elsewhere.

        The last renewal was anywhere within one interval. So is the next look at the queue, even if
        many machines have a slot free: the news of a job wakes all of them, and from then on they
        look at the same moments.
        """
        workload = self.workload
        return workload.lease_s - workload.renewal_interval_s / 2 + workload.look_interval_s / 2

    def lost_s(self) -> float:
        """Returns the mean seconds of work that a failure takes from a job.

        That is the time since the last checkpoint of a run which is longer than the interval
        between two.
        """
        return self.workload.checkpoint_interval_s / 2

    def failures_per_job(self) -> float:
        """Returns how many failures of its machine a job meets, on average."""
        return self.workload.job_s / self.workload.machine_lifetime_s

    def stretched_job_s(self) -> float:
        """Returns the mean seconds from the start of a job to its end, failures included.

        To the first order: failures are rare, and a machine is free to take over.
        """
        rate = 1 / self.workload.machine_lifetime_s
        running_s = self.workload.job_s / (1 - rate * self.lost_s())
        return running_s * (1 + rate * self.takeover_s())

    # One model on several machines.

    def exchange_s(self, ranks: int, bytes_per_s: float, latency_s: float) -> float:
        """Returns the seconds of an exchange of gradients over a network.

        Each rank sends (R - 1) / R of its gradient and as much of the sums, and adds what it got,
        which is in the measured figure of two ranks on one machine.

        Args:
            ranks: Their number; with one there is no exchange.
            bytes_per_s: Of the network of each machine.
            latency_s: Of one message.
        """
        if ranks == 1:
            return 0.0
        share = (ranks - 1) / ranks
        size = self.constants.weight_bytes
        wire = 2 * share * size / bytes_per_s + 2 * (ranks - 1) * latency_s
        here = self.constants.exchange_s + size * self.constants.exchange_byte_s
        return wire + here

    def speed_up(self, ranks: int, rows: int, bytes_per_s: float, latency_s: float) -> float:
        """Returns by how much several machines take training steps faster than one.

        Args:
            ranks: The machines.
            rows: Rows of a batch of 64 steps; a shard has 16, and a rank has whole shards.
            bytes_per_s: Of the network of each machine.
            latency_s: Of one message.
        """
        shards = math.ceil(rows / 16)
        shard_s = 16 * 64 * self.constants.train_s
        alone = math.ceil(shards / self.workload.cores) * shard_s
        together = math.ceil(shards / (ranks * self.workload.cores)) * shard_s
        return alone / (together + self.exchange_s(ranks, bytes_per_s, latency_s))


def erlang_c(load: float, servers: int) -> float:
    """Returns the part of arrivals that wait in an M/M/c queue (Erlang, 1917).

    Args:
        load: Arrivals a second times the mean seconds of service.
        servers: Their number, more than the load.
    """
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = load * blocked / (number + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def queue_wait_s(arrivals_per_s: float, service_s: float, servers: int) -> float:
    """Returns the mean seconds in the queue of an M/M/c system; infinity where it grows.

    Args:
        arrivals_per_s: Arrivals a second.
        service_s: Mean seconds of service.
        servers: Their number.
    """
    load = arrivals_per_s * service_s
    if load >= servers:
        return math.inf
    return erlang_c(load, servers) * service_s / (servers - load)
