"""`RemoteNews` wakes those who follow jobs that other servers run."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class RemoteNews:
    """An asyncio event for each job that somebody follows here; used on the event loop only."""

    def __init__(self) -> None:
        self._news: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    def of(self, job: str) -> asyncio.Event:
        """Returns an asyncio event that is set at the next change of a job.

        Args:
            job: The job's id.
        """
        news = self._news.get(job)
        if news is None:
            news = self._news[job] = asyncio.Event()
        return news

    def wake(self, job: str) -> None:
        """Wakes those who follow a job."""
        news = self._news.pop(job, None)
        if news is not None:
            news.set()

    def wake_all(self) -> None:
        """Wakes everybody, as where changes may have been missed."""
        for job in [*self._news]:
            self.wake(job)
