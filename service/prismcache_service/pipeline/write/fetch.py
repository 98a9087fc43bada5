"""First stage: fetch objects in the plan's order, and hand them to the stage that decodes them.

The slots bound how many objects are under way or wait to be decoded: a visit holds one from its fetch on, and the next
stage releases it once the object's bytes are not needed any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from prismcache.layout import SourceObject
from prismcache_service.pipeline.plan import Visit
from prismcache_service.pipeline.progress import Moved


@dataclass(frozen=True)
class Fetched:
    """A visit whose bytes are here; `data` is None for an absent chunk and for an object that is in the spool."""

    visit: Visit
    data: memoryview | None


FetchedQueue = asyncio.Queue[Fetched]
Read = Callable[[SourceObject], Awaitable[memoryview]]


@dataclass(frozen=True)
class FetchStage:
    """Fetch a crop's objects.

    Attributes
    ----------
    read
        Fetch and verify an object; return its bytes.
    slots
        One for each object that may be in memory.
    on_fetched
        Called on the event loop with the size in bytes of each object that has been fetched and verified.
    moved
        Where fetched bytes are counted.
    """

    read: Read
    slots: asyncio.Semaphore
    on_fetched: Callable[[int], None]
    moved: Moved

    async def run(self, visits: Iterable[tuple[Visit, FetchedQueue]]) -> None:
        """Fetch the visits; put each into its queue as soon as it is here.

        The visits take slots in order, so that the earliest one that waits for a slot gets the next free one.
        """
        async with asyncio.TaskGroup() as group:
            for visit, queue in visits:
                await self.slots.acquire()
                group.create_task(self._fetch(visit, queue))

    async def _fetch(self, visit: Visit, queue: FetchedQueue) -> None:
        data = None
        if visit.item is not None and not visit.again:
            data = await self.read(visit.item)
            self.moved.fetched += visit.item.size
            self.on_fetched(visit.item.size)
        queue.put_nowait(Fetched(visit, data))
