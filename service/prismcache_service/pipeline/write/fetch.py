"""First stage: fetch objects in the plan's order, each into a slot, and hand them to the stage that decodes them.

The pool of slots bounds how many objects are under way or wait to be decoded. Each `Fetched` holds its slot; the next
stage puts the slot back into the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from prismcache.layout import SourceObject
from prismcache_service.pipeline.plan.plan import Visit
from prismcache_service.pipeline.progress import Moved


@dataclass(frozen=True)
class Fetched:
    """A visit whose bytes are here; `data` is None for an absent chunk and for an object that is in the spool."""

    visit: Visit
    data: memoryview | None
    slot: memoryview


FetchedQueue = asyncio.Queue[Fetched]
Read = Callable[[SourceObject, memoryview], Awaitable[memoryview]]


@dataclass(frozen=True)
class FetchStage:
    """Fetch a crop's objects.

    Attributes
    ----------
    read
        Fetch and verify an object into a buffer; return the view of the buffer that holds the object.
    slots
        Pool of buffers, each large enough for the largest object.
    on_fetched
        Called on the event loop with the size in bytes of each object that has been fetched and verified.
    moved
        Where fetched bytes are counted.
    """

    read: Read
    slots: asyncio.Queue[memoryview]
    on_fetched: Callable[[int], None]
    moved: Moved

    async def run(self, visits: Iterable[tuple[Visit, FetchedQueue]]) -> None:
        """Fetch the visits; put each into its queue as soon as it is here.

        The visits take slots in order, so that the earliest one that waits for a slot gets the next free one.
        """
        async with asyncio.TaskGroup() as group:
            for visit, queue in visits:
                group.create_task(self._fetch(visit, await self.slots.get(), queue))

    async def _fetch(self, visit: Visit, slot: memoryview, queue: FetchedQueue) -> None:
        data = None
        if visit.item is not None and not visit.again:
            data = await self.read(visit.item, slot)
            self.moved.fetched += visit.item.size
            self.on_fetched(visit.item.size)
        queue.put_nowait(Fetched(visit, data, slot))
