"""When the next crop begins, where several are made at once.

Crops that begin together share the link, and then come to their ends together, where they deflate what is left, hash
and publish, and nothing uses the link. One after another, each with a head start, one fetches while the other ends;
the first of them is there sooner, and the last no later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prismcache.schema import Progress
from prismcache_service.pipeline.progress import Report

PATIENCE_S = 3.0


class Stagger:
    """Lets crops begin in turn; each waits until the one before has fetched its share of its bytes.

    A crop that has no news for `patience` seconds keeps nobody waiting: it may be stuck.

    Parameters
    ----------
    crops
        How many are made at once: the share is one part in so many.
    patience
        Seconds.
    """

    def __init__(self, crops: int, patience: float = PATIENCE_S) -> None:
        self._crops = crops
        self._patience = patience
        self._turn = asyncio.Lock()
        self._latest: _Begun | None = None

    @asynccontextmanager
    async def begin(self, report: Report) -> AsyncIterator[Report]:
        """Wait for a turn; the block makes the crop, and tells its progress to what it is given."""
        async with self._turn:
            if self._latest is not None:
                await self._latest.wait(self._patience)
            begun = self._latest = _Begun(self._crops)

        def hear(progress: Progress) -> None:
            begun.hear(progress)
            report(progress)

        try:
            yield hear
        finally:
            begun.end()


class _Begun:
    """A crop that has begun: whether the next one may."""

    def __init__(self, crops: int) -> None:
        self._crops = crops
        self._is_ahead = False
        self._news = asyncio.Event()

    def hear(self, progress: Progress) -> None:
        self._is_ahead |= progress.bytes_total <= self._crops * progress.bytes_done
        self._news.set()

    def end(self) -> None:
        self._is_ahead = True
        self._news.set()

    async def wait(self, patience: float) -> None:
        while not self._is_ahead:
            self._news.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._news.wait()
            except TimeoutError:
                return
