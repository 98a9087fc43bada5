"""What the service did over the last 90 days, for the dashboard's plots: a few bytes a minute in the job store.

Each process has a row of its own for each interval, so that several services on one store add up and none counts twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta

from prismcache.errors import PrismError
from prismcache.schema import Usage
from prismcache_service.store import Figures, JobStore


class Observer:
    """Counts hits, misses and fetched bytes since the start of the process; subclasses count more.

    `hits` and `misses` are the crops of accepted jobs that were cached, and that were not.
    """

    def __init__(self) -> None:
        self.hits = self.misses = self.fetched_bytes = 0

    def crops_found(self, *, hits: int, misses: int) -> None:
        """Count the crops of an accepted job that are cached (`hits`) and that are not (`misses`)."""
        self.hits += hits
        self.misses += misses

    def bytes_fetched(self, count: int) -> None:
        """Count bytes that came from the bucket."""
        self.fetched_bytes += count

    def task_ended(self, seconds: float, code: str | None = None) -> None:
        """Count a crop that was made in `seconds`, or failed with the error `code`."""

    def evicted(self, files: int, size: int) -> None:
        """Count files, `size` bytes together, that were deleted to make room."""

    def bound(self, **values: str) -> AbstractContextManager[None]:  # noqa: ARG002 - for subclasses
        """Return a context manager that adds the values to every log line within the block."""
        return nullcontext()


INTERVAL_S = 300
KEEP_DAYS = 90
_RECORD_S = 60.0


class History:
    """Stores an observer's counts and the size of the cache, and returns them as figures over time.

    `usage` returns how full the cache folder is, `now` the wall clock in UTC.
    """

    def __init__(
        self,
        store: JobStore,
        observer: Observer,
        usage: Callable[[], Awaitable[Usage]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._observer, self._usage, self._now = store, observer, usage, now
        self._start = 0  # of the interval of the present row, Unix time in s
        self._row_id = 0
        self._is_stored = True
        self._before = self._totals = (0, 0, 0)  # at the start of the row, and when it was last stored
        self._recording = asyncio.Lock()

    async def record(self) -> None:
        """Store what was counted since the start of the interval.

        After a `StorageError` of the store or the cache folder, the counts are stored with the next record.
        """
        async with self._recording:
            used = (await self._usage()).used_bytes
            now, counted = self._now(), self._observer
            start = int(now.timestamp()) // INTERVAL_S * INTERVAL_S
            # A write that failed may have been committed, so its row is written again until that succeeds.
            if start != self._start and self._is_stored:
                self._start, self._row_id, self._before = start, secrets.randbits(62), self._totals
            totals = counted.fetched_bytes, counted.hits, counted.misses
            fetched, hits, misses = (total - before for total, before in zip(totals, self._before, strict=True))
            figures = Figures(datetime.fromtimestamp(self._start, UTC), fetched, hits, misses, used)
            self._is_stored = False
            await self._store.put_figures(self._row_id, figures, now - timedelta(days=KEEP_DAYS))
            self._is_stored, self._totals = True, totals

    async def record_for_ever(self) -> None:
        """Record every minute."""
        while True:
            with contextlib.suppress(PrismError):  # the next time will do
                await self.record()
            await asyncio.sleep(_RECORD_S)

    async def figures(self, days: int) -> tuple[int, list[Figures]]:
        """Return the length of an interval in s, some 290 of which cover the last `days`, and their figures."""
        with contextlib.suppress(PrismError):  # what was recorded before can be shown all the same
            await self.record()
        seconds = INTERVAL_S * days
        first = int((self._now() - timedelta(days=days)).timestamp()) // seconds * seconds
        return seconds, await self._store.figures(datetime.fromtimestamp(first, UTC), seconds)
