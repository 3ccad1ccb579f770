"""`SessionSimulation` plays sessions, replicas and the autoscaler, event by event.

A session waits, asks for a text, and waits again; how long it waits follows the time of day. The
autoscaler is Kubernetes': every 15 s it compares the mean of a metric with its target, and changes
the number of replicas within the bounds of deploy/kubernetes/replicas/autoscaler.yaml. A replica
serves some seconds after the decision. Where one fails or is taken away, its texts continue on
others.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class AutoscalerRule:
    """The rule of a HorizontalPodAutoscaler."""

    target: float = 64.0
    """The mean of running texts for each replica."""
    least: int = 2
    """The fewest replicas."""
    most: int = 10_000
    """The most."""
    interval_s: float = 15.0
    """Seconds between two decisions."""
    tolerance: float = 0.1
    """By how much the mean may differ from the target without a change."""
    up_factor: float = 2.0
    """By how much replicas may grow within `up_s`."""
    up_s: float = 30.0
    down_step: int = 1
    """Replicas that may go within `down_s`."""
    down_s: float = 60.0
    stabilization_s: float = 300.0
    """Seconds whose largest wish counts before any replica goes."""


@dataclass(frozen=True)
class SessionSettings:
    """What is simulated."""

    sessions: int
    """Sessions, none of which ever ends."""
    period_s: float
    """Mean seconds that a session waits between two texts, over a day."""
    text_s: float
    """Seconds that a text takes."""
    day_s: float
    """Seconds of a day."""
    swing: float
    """By how much the busiest and the quietest hour differ from the mean, as a part of it."""
    rule: AutoscalerRule
    """How the number of replicas follows the load."""
    start_s: float
    """Seconds from a decision until a new replica serves."""
    scrape_s: float = 15.0
    """Seconds between two readings of the metric."""
    lifetime_s: float = math.inf
    """Mean seconds until a replica fails."""
    retry_s: float = 1.0
    """Seconds until a refused call is made again."""
    most_texts: int = 1024
    """Texts that a replica takes at once: `--session-limit`."""
    days: float = 1.0
    """How long to play, from the quietest moment on."""
    seed: int = 0
    """Of the random numbers."""


@dataclass
class SessionRecord:
    """What happened in a simulation."""

    asked: int = 0
    """Texts that sessions asked for."""
    ended: int = 0
    """Texts that ended."""
    moved: int = 0
    """Texts that continued on another replica, once for each time."""
    refused: int = 0
    """Calls that found every replica full, and that were made again."""
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    """Every few seconds: the time, texts that run, replicas that serve, replicas that are paid."""


class Replica:
    """A replica that serves.

    Args:
        number: Its number.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.texts: dict[int, simpy.Process] = {}
        """The sessions whose texts it generates."""


class SessionSimulation:
    """Sessions on a fleet that grows and shrinks.

    Args:
        settings: What is simulated.
    """

    def __init__(self, settings: SessionSettings) -> None:
        self.settings = settings
        self.record = SessionRecord()
        self.waiting = 0
        """Sessions between two texts."""
        self.running = 0
        """Sessions whose text is generated."""
        self.refused = 0
        """Sessions that make a refused call again."""
        self._random = random.Random(settings.seed)
        self._clock = simpy.Environment()
        self._serving: list[Replica] = []
        self._paid = 0
        self._next = 0
        self._turn = 0

    def load(self, time_s: float) -> float:
        """Returns how busy callers are at a time: 1 on average."""
        return day_load(time_s, self.settings.day_s, self.settings.swing)

    def run(self) -> SessionRecord:
        """Plays; returns what happened."""
        settings = self.settings
        load = settings.sessions * settings.text_s * self.load(0) / settings.period_s
        for _ in range(max(settings.rule.least, math.ceil(load / settings.rule.target))):
            self._paid += 1
            self._join()
        for number in range(settings.sessions):
            self._clock.process(self._session(number))
        self._clock.process(self._autoscale())
        self._clock.process(self._sample())
        self._clock.run(until=settings.days * settings.day_s)
        return self.record

    def _sample(self) -> Steps:
        while True:
            total = self.waiting + self.running + self.refused
            if self._clock.now and total != self.settings.sessions:
                raise RuntimeError(f"{total} sessions of {self.settings.sessions} are left")
            sample = (self._clock.now, self.running, len(self._serving), self._paid)
            self.record.samples.append(sample)
            yield self._clock.timeout(5.0)

    # Sessions.

    def _session(self, number: int) -> Steps:
        settings = self.settings
        while True:
            self.waiting += 1
            mean_s = settings.period_s / self.load(self._clock.now)
            yield self._clock.timeout(self._random.expovariate(1 / mean_s))
            self.waiting -= 1
            self.record.asked += 1
            left_s = settings.text_s
            while left_s > 0:
                replica = self._choose()
                if replica is None:
                    self.record.refused += 1
                    self.refused += 1
                    yield self._clock.timeout(settings.retry_s)
                    self.refused -= 1
                    continue
                process = self._clock.active_process
                assert process is not None
                replica.texts[number] = process
                self.running += 1
                began_s = self._clock.now
                try:
                    yield self._clock.timeout(left_s)
                    left_s = 0.0
                except simpy.Interrupt:  # it continues from its last state elsewhere
                    left_s -= self._clock.now - began_s
                    self.record.moved += 1
                finally:
                    self.running -= 1
                    replica.texts.pop(number, None)
            self.record.ended += 1

    def _choose(self) -> Replica | None:
        """Returns the next replica in turn that is not full."""
        for _ in range(len(self._serving)):
            self._turn = (self._turn + 1) % len(self._serving)
            if len(self._serving[self._turn].texts) < self.settings.most_texts:
                return self._serving[self._turn]
        return None

    # Replicas.

    def _join(self) -> None:
        replica = Replica(self._next)
        self._next += 1
        self._serving.append(replica)
        if math.isfinite(self.settings.lifetime_s):
            self._clock.process(self._fail(replica))

    def _start(self) -> Steps:
        self._paid += 1
        yield self._clock.timeout(self.settings.start_s)
        self._join()

    def _fail(self, replica: Replica) -> Steps:
        yield self._clock.timeout(self._random.expovariate(1 / self.settings.lifetime_s))
        if replica in self._serving:
            self._leave(replica)
            self._clock.process(self._start())  # the Deployment wants as many as before

    def _leave(self, replica: Replica) -> None:
        self._serving.remove(replica)
        self._paid -= 1
        for process in list(replica.texts.values()):
            process.interrupt()

    def _autoscale(self) -> Steps:
        rule = self.settings.rule
        wishes: deque[tuple[float, int]] = deque()
        changes: deque[tuple[float, int]] = deque()
        seen_s = 0.0
        wish = self._paid
        while True:
            yield self._clock.timeout(rule.interval_s)
            now = self._clock.now
            if now - seen_s >= self.settings.scrape_s:
                wish = replicas_for(self.running, self._paid, rule)
                seen_s = now
            wishes.append((now, wish))
            while wishes[0][0] < now - rule.stabilization_s:
                wishes.popleft()
            while changes and changes[0][0] < now - max(rule.up_s, rule.down_s):
                changes.popleft()
            count = self._bounded(wish, wishes, changes, now)
            for _ in range(count - self._paid):
                self._clock.process(self._start())
                changes.append((now, 1))
            for _ in range(self._paid - count):
                if len(self._serving) > 1:
                    self._leave(self._serving[-1])
                    changes.append((now, -1))

    def _bounded(
        self,
        wish: int,
        wishes: deque[tuple[float, int]],
        changes: deque[tuple[float, int]],
        now: float,
    ) -> int:
        """Returns the replicas that the policies allow."""
        rule = self.settings.rule
        if wish > self._paid:
            grown = sum(count for time, count in changes if count > 0 and time > now - rule.up_s)
            most = math.ceil((self._paid - grown) * rule.up_factor)
            return max(self._paid, min(wish, most, rule.most))
        largest = max(count for _, count in wishes)
        gone = -sum(count for time, count in changes if count < 0 and time > now - rule.down_s)
        least = self._paid - max(0, rule.down_step - gone)
        return min(self._paid, max(largest, least, rule.least))


def replicas_for(running: float, replicas: int, rule: AutoscalerRule) -> int:
    """Returns the replicas that the autoscaler's rule asks for."""
    ratio = running / (replicas * rule.target)
    if abs(ratio - 1) <= rule.tolerance:
        return replicas
    return max(rule.least, min(rule.most, math.ceil(running / rule.target)))


def day_load(time_s: float, day_s: float, swing: float) -> float:
    """Returns how busy callers are at a time of the day: 1 on average, the least at its start."""
    return 1 - swing * math.cos(2 * math.pi * time_s / day_s)
