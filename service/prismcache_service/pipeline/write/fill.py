"""Second stage: decode fetched objects into open blocks.

Raw is decoded straight into its blocks. Labels are seen twice: first for their ids, and once the ids of all labels
are known, for their numbers. Between the two, the spool keeps the objects, or their runs where these are small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np

from prismcache.errors import SourceCorruptError
from prismcache_service.pipeline.codec import Bytes, DecodeError, Ids, Runs, id_table, relabel, unique_ids
from prismcache_service.pipeline.plan import ArrayPlan, Box, Visit
from prismcache_service.pipeline.write.blocks import Array, Block, opened
from prismcache_service.pipeline.write.fetch import Fetched, FetchedQueue
from prismcache_service.pipeline.write.spool import Spool
from prismcache_service.pipeline.write.threads import Threads, run_in

_KEEP_RUNS = 2  # labels' runs are kept, not made again, where they take no more than so many times the object
_AT_A_TIME = 4  # objects of labels that are scanned or numbered: enough to keep the threads busy, and few for the rest


class RawStage:
    """Decode raw, or an array that rides along, into its blocks.

    Parameters
    ----------
    array, blocks
        The plan of the array and its blocks.
    slots
        Those of the fetch stage; one is released for each object that is decoded.
    threads
        Where decoding runs.
    spool
        Keeps objects that fill blocks in two columns: the first visit puts them there, a later one reads them.
    """

    def __init__(
        self,
        array: ArrayPlan,
        blocks: Sequence[Block],
        slots: asyncio.Semaphore,
        threads: Threads,
        spool: Spool,
    ) -> None:
        self._array, self._blocks = array, blocks
        self._slots, self._threads, self._spool = slots, threads, spool
        self._spooled = {visit.key: asyncio.Event() for visit in array.visits if visit.again}

    async def run(self, fetched: FetchedQueue) -> None:
        """Take every visit from the queue and fill its blocks as soon as they are open, in whatever order."""
        async with asyncio.TaskGroup() as group:
            for _ in self._array.visits:
                group.create_task(self._fill(await fetched.get()))

    async def _fill(self, fetched: Fetched) -> None:
        visit = fetched.visit
        if visit.again:
            await self._spooled[visit.key].wait()
        blocks = await opened(self._blocks, visit)
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


class LabelsStage:
    """Collect the ids of all labels, then decode the labels into their blocks as consecutive numbers.

    Parameters
    ----------
    array, blocks, slots, threads, spool
        As those of `RawStage`, for the labels.
    """

    def __init__(
        self,
        array: ArrayPlan,
        blocks: Sequence[Block],
        slots: asyncio.Semaphore,
        threads: Threads,
        spool: Spool,
    ) -> None:
        self._array, self._blocks = array, blocks
        self._slots, self._threads, self._spool = slots, threads, spool
        self._is_one_piece = array.source.codec.sharding is None
        self._few = asyncio.Semaphore(_AT_A_TIME)

    async def scan(self, fetched: FetchedQueue) -> Ids:
        """Take every object of labels from the queue, keep it, and return the table of the ids of all of them."""
        visits = [visit for visit in self._array.visits if not visit.again]
        async with asyncio.TaskGroup() as group:
            scans = [group.create_task(self._scan(await fetched.get())) for _ in visits]
        return await run_in(self._threads.decode, id_table, [scan.result() for scan in scans])

    async def fill(self, table: Ids) -> None:
        """Fill the blocks with each voxel's position in the table."""
        async with asyncio.TaskGroup() as group:
            for visit in self._array.visits:
                group.create_task(self._fill(visit, table))

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
            blocks = await opened(self._blocks, visit)
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
