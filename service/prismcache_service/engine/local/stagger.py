"""When the next crop begins, if several crops are made at the same time.

Crops that begin together share the network, and then also end together: all of them compress, hash and publish, and
the network is idle. If each crop begins some time after the one before, one crop is fetched while another ends; the
first crop is ready sooner, and the last one no later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prismcache.schema import Progress
from prismcache_service.pipeline.progress import Report

PATIENCE_S = 3.0


class Stagger:
    """Lets crops begin one after another: each waits until the one before has fetched 1 / `crops` of its bytes.

    The next crop does not wait for a crop that reported no progress for `patience` seconds and may be stuck.

    Parameters
    ----------
    crops
        How many crops are made at the same time.
    patience
        Seconds without progress after which the next crop begins.
    """

    def __init__(self, crops: int, patience: float = PATIENCE_S) -> None:
        self._crops = crops
        self._patience = patience
        self._turn = asyncio.Lock()
        self._latest: _Begun | None = None  # the crop that began last

    @asynccontextmanager
    async def begin(self, report: Report) -> AsyncIterator[Report]:
        """Wait for the crop's turn; the block makes the crop, and calls the yielded function with its progress."""
        async with self._turn:
            if self._latest is not None:
                await self._latest.wait(self._patience)
            begun = self._latest = _Begun()

        def report_both(progress: Progress) -> None:
            begun.update(is_ahead=progress.bytes_total <= self._crops * progress.bytes_done)
            report(progress)

        try:
            yield report_both
        finally:
            begun.update(is_ahead=True)


class _Begun:
    """A crop that has begun. The next crop may begin once this one is ahead."""

    def __init__(self) -> None:
        self._is_ahead = False
        self._updated = asyncio.Event()

    def update(self, *, is_ahead: bool) -> None:
        self._is_ahead |= is_ahead
        self._updated.set()

    async def wait(self, patience: float) -> None:
        """Return when the crop is ahead or ended, or had no update for `patience` seconds."""
        while not self._is_ahead:
            self._updated.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._updated.wait()
            except TimeoutError:
                return
