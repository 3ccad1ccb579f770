"""`Workload` is what the model assumes of callers, jobs and machines; none of it is measured."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Workload:
    """Callers, jobs and machines."""

    # Callers.
    sessions: float = 1e6
    """Sessions at the same time: each asks for a text, waits, and asks again."""
    period_s: float = 60.0
    """Mean seconds from one text of a session to its next."""
    prompt_tokens: float = 50.0
    """Tokens that a call reads."""
    new_tokens: float = 200.0
    """Tokens that it generates."""
    sessions_per_client: float = 100.0
    """Sessions of one client process, which has a connection to each replica."""

    # Jobs.
    slots_per_machine: float = 1.0
    """Jobs that may run on a machine: `--training-slots`."""
    jobs_per_machine: float = 0.5
    """Jobs that do run on a machine, on average."""
    job_s: float = 600.0
    """Mean seconds of work of a job."""
    event_interval_s: float = 1.0
    """Seconds between two events of a job: `progress_interval_s`."""
    checkpoint_interval_s: float = 10.0
    """Seconds between two checkpoints: `--checkpoint-interval-s`."""
    files_per_checkpoint: float = 3.0
    """The state of the run, the best weights and the last ones."""
    weights_per_checkpoint: float = 5.0
    """Their size, in units of the weights: with two moments of Adam in the state."""

    # Leases and the queue, as the server has them.
    lease_s: float = 10.0
    """Seconds after which a lease ends that is not renewed."""
    renewal_interval_s: float = 2.5
    """Seconds after which a server renews all its leases, by one statement."""
    look_interval_s: float = 1.0
    """Seconds after which a server with a free slot looks at the queue."""
    connections_per_machine: float = 9.0
    """The most connections of a server to PostgreSQL, one of which listens."""

    # Machines.
    cores: float = 8.0
    """Cores of a machine."""
    utilization: float = 0.6
    """The part of its capacity that a machine is meant to use, so that queues stay short."""
    machine_lifetime_s: float = 30 * 86_400.0
    """Mean seconds until a machine fails or is taken away."""
    start_s: float = 20.0
    """Seconds from the autoscaler's decision until the new replica serves."""

    # What the shared parts allow.
    database_connections: float = 100.0
    """`max_connections` of PostgreSQL as it is delivered."""
    database_memory: float = 64.0 * GIB
    """Bytes of memory of its machine."""
    client_memory: float = 1.0 * GIB
    """Bytes that a replica may spend on connections of clients."""
    puts_per_s: float = 3500.0
    """Writes a second that S3 promises for one prefix."""
    notification_share: float = 0.1
    """The part of its event loop that a replica may spend on news of others."""
