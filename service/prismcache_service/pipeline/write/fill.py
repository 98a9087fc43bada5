"""First stages: fetch objects in the plan's order, and decode them into open blocks.

Slots bound how many objects are under way or wait to be decoded: a visit takes a slot before its fetch, and the stage
that decodes its object releases the slot once the object's bytes are not needed any more. Raw is decoded straight into
its blocks. Labels are decoded twice: first for their ids, and for their numbers once the ids of all labels are known.
Between the two, the spool keeps the objects, or their runs where these are small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prismcache.errors import SourceCorruptError
from prismcache.layout import SourceObject
from prismcache_service.pipeline.codec import Bytes, DecodeError, Ids, Runs, id_table, relabel, unique_ids
from prismcache_service.pipeline.plan import ArrayPlan, Box, Visit
from prismcache_service.pipeline.system import Threads, run_in
from prismcache_service.pipeline.write.blocks import Array, Block, blocks_of, opened
from prismcache_service.pipeline.write.spool import Spool

_KEEP_RUNS = 2  # the runs of labels are kept, and not made again, if they take at most twice the bytes of the object
_AT_A_TIME = 4  # objects of labels that are scanned or numbered: enough to keep the threads busy, and few for the rest

Read = Callable[[SourceObject], Awaitable[memoryview]]


@dataclass(frozen=True)
class Fetched:
    """A visit whose bytes are here; `data` is None for an absent chunk and for an object that is in the spool."""

    visit: Visit
    data: memoryview | None


class Stage:
    """What decodes the objects of one array: its blocks, and the queue of its fetched visits.

    `slots` are those that `fetch` takes; `spool` keeps objects that are needed twice.
    """

    def __init__(self, array: ArrayPlan, slots: asyncio.Semaphore, threads: Threads, spool: Spool) -> None:
        self._array, self._slots, self._threads, self._spool = array, slots, threads, spool
        self.blocks = blocks_of(array)
        self.visits: Sequence[Visit] = array.visits
        self.fetched: asyncio.Queue[Fetched] = asyncio.Queue()


async def fetch(
    stages: Sequence[Stage], read: Read, slots: asyncio.Semaphore, on_fetched: Callable[[int], None]
) -> None:
    """Fetch the visits of the stages; put each into its stage's queue as soon as its bytes are here.

    The visits take slots in order, so that the earliest one that waits for a slot gets the next free one. `on_fetched`
    is called with the size in bytes of each object that was fetched and verified.
    """

    async def fetch_one(visit: Visit, stage: Stage) -> None:
        data = None
        if visit.item is not None and not visit.again:
            data = await read(visit.item)
            on_fetched(visit.item.size)
        stage.fetched.put_nowait(Fetched(visit, data))

    async with asyncio.TaskGroup() as group:
        for stage in stages:
            for visit in stage.visits:
                await slots.acquire()
                group.create_task(fetch_one(visit, stage))


class RawStage(Stage):
    """Decode raw, or an array that rides along, into its blocks."""

    def __init__(self, array: ArrayPlan, slots: asyncio.Semaphore, threads: Threads, spool: Spool) -> None:
        super().__init__(array, slots, threads, spool)
        # Objects that fill blocks in two columns: the first visit puts them into the spool, a later one reads them.
        self._spooled = {visit.key: asyncio.Event() for visit in array.visits if visit.again}

    async def run(self) -> None:
        """Take every visit from the queue and fill its blocks as soon as they are open, in any order."""
        async with asyncio.TaskGroup() as group:
            for _ in self.visits:
                group.create_task(self._fill(await self.fetched.get()))

    async def _fill(self, fetched: Fetched) -> None:
        visit = fetched.visit
        if visit.again:
            await self._spooled[visit.key].wait()
        blocks = await opened(self.blocks, visit)
        await run_in(self._threads.decode, self._decode, visit, fetched.data, blocks)
        if visit.key in self._spooled:
            self._spooled[visit.key].set()
        self._slots.release()
        for block in blocks:
            block.visited(visit.box)

    def _decode(self, visit: Visit, data: memoryview | None, blocks: Sequence[Block]) -> None:
        if data is not None and visit.key in self._spooled:
            self._spool.put(visit.key, data)
        elif visit.again and visit.item is not None:
            data = self._spool.get(visit.key)
        for box, part in _pieces(self._array, visit, data):
            for block in blocks:
                block.place(box, part)


class LabelsStage(Stage):
    """Collect the ids of all labels, then decode the labels into their blocks as consecutive numbers."""

    def __init__(self, array: ArrayPlan, slots: asyncio.Semaphore, threads: Threads, spool: Spool) -> None:
        super().__init__(array, slots, threads, spool)
        self.visits = [visit for visit in array.visits if not visit.again]
        self._is_one_piece = array.source.codec.sharding is None
        self._few = asyncio.Semaphore(_AT_A_TIME)

    async def run(self) -> Ids:
        """Fill the blocks with each voxel's position in the table of all ids, and return the table."""
        async with asyncio.TaskGroup() as group:
            scans = [group.create_task(self._scan(await self.fetched.get())) for _ in self.visits]
        table = await run_in(self._threads.decode, id_table, [scan.result() for scan in scans])
        async with asyncio.TaskGroup() as group:
            for visit in self._array.visits:
                group.create_task(self._fill(visit, table))
        return table

    async def _scan(self, fetched: Fetched) -> Ids:
        visit = fetched.visit
        if fetched.data is not None:
            await run_in(self._threads.hdf5, self._spool.put, visit.key, fetched.data)
        del fetched  # its bytes, too, before another object takes the slot
        self._slots.release()
        async with self._few:
            return await run_in(self._threads.decode, self._ids_of, visit)

    def _ids_of(self, visit: Visit) -> Ids:
        """Return the ids in an object of labels; keep its runs if they are small enough to be worth it."""
        data = None if visit.item is None else self._spool.get(visit.key)
        found = []
        for _, part in _pieces(self._array, visit, data):
            runs = Runs.of(part)
            found.append(unique_ids(runs))
            if data is not None and self._is_one_piece and runs.packed_bytes <= _KEEP_RUNS * len(data):
                self._spool.put(f"{visit.key} as runs", runs.pack())
        return np.unique(np.concatenate(found))

    async def _fill(self, visit: Visit, table: Ids) -> None:
        async with self._few:
            blocks = await opened(self.blocks, visit)
            await run_in(self._threads.decode, self._decode, visit, blocks, table)
        for block in blocks:
            block.visited(visit.box)

    def _decode(self, visit: Visit, blocks: Sequence[Block], table: Ids) -> None:
        for box, runs in self._runs(visit):
            numbers = relabel(runs, table)
            for block in blocks:
                block.place(box, numbers)

    def _runs(self, visit: Visit) -> Iterator[tuple[Box, Runs]]:
        box = visit.box.overlap(self._array.region)
        kept = self._spool.find(f"{visit.key} as runs")
        if box is not None and kept is not None:
            yield box, Runs.unpack(kept, box.shape)
            return
        data = None if visit.item is None else self._spool.get(visit.key)
        for piece, part in _pieces(self._array, visit, data):
            yield piece, Runs.of(part)


def _pieces(array: ArrayPlan, visit: Visit, data: Bytes | None) -> Iterator[tuple[Box, Array]]:
    """Yield (box in the array, (C, Z, Y, X) voxels) pairs that tile the part of a visit's object inside the region.

    `data` is None for an absent chunk: the voxels are then the array's fill value.
    """
    source = array.source
    lead = (1,) * (4 - len(source.chunks))  # labels have no channel axis of their own
    whole = ((0,) * len(source.chunks), None)
    try:
        for origin, decoded in [whole] if data is None else source.codec.pieces(data, source.chunks):
            inner = source.chunks if data is None or source.codec.sharding is None else source.codec.sharding.inner
            start = tuple(a + o for a, o in zip(visit.box.start, (*(0 for _ in lead), *origin), strict=True))
            piece = Box(start, tuple(a + n for a, n in zip(start, (*lead, *inner), strict=True)))
            part = piece.overlap(array.region)
            if part is None:
                continue
            if decoded is None:
                yield part, np.broadcast_to(np.array(source.fill_value, source.dtype), part.shape)
            else:
                cut = part.moved(tuple(-a for a in start)).slices()
                yield part, decoded.reshape(piece.shape)[cut]
    except DecodeError as error:
        raise SourceCorruptError(f"object {visit.key!r} {error}") from error
