"""Running a plan: fetch → decode → place → deflate → write, all at once, in bounded memory.

* *Slots* hold fetched objects. They are taken in the plan's order, so fetching runs ahead only as far as they reach.
* *Blocks* hold decoded voxels. They open in canonical order, as buffers come free; an object is decoded once every
  block it fills is open. A *share* of a block, some rows of its chunks, is deflated once it is full, and goes to the
  writer in its turn; with its last share a block's buffer goes to the next one.
* Decoding, relabelling and deflating run in `executor`'s threads and release the GIL; HDF5 has a thread of its own.

The order in which slots and blocks are given out makes a deadlock impossible: what the earliest unfinished block
waits for always holds, or is next to get, what it needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismcache.errors import SourceCorruptError
from prismcache.layout import LABELS, raw_dataset
from prismcache_service.pipeline.bucket.source import Source
from prismcache_service.pipeline.codec.decode import Bytes, DecodeError
from prismcache_service.pipeline.codec.encode import EncodedChunk, encode_row
from prismcache_service.pipeline.codec.relabel import Ids, Runs, id_table, relabel, unique_ids
from prismcache_service.pipeline.plan.budget import Budget
from prismcache_service.pipeline.plan.metadata import CropSource
from prismcache_service.pipeline.plan.plan import ArrayPlan, Box, CropPlan, Visit, met_tiles
from prismcache_service.pipeline.progress import Moved
from prismcache_service.pipeline.write.hdf5 import CropWriter
from prismcache_service.pipeline.write.spool import Spool
from prismcache_service.pipeline.write.threads import run_in

_KEEP_RUNS = 2  # labels' runs are kept, not made again, where they take no more than so many times the object
_AT_A_TIME = 4  # objects of labels that are scanned, or numbered
_SHARES = 6  # of a block, deflated side by side; each costs the event loop a round trip

Array = np.ndarray[Any, np.dtype[Any]]
Share = Sequence[tuple[int, int]]
"""(channel, row of HDF5 chunks) pairs, counted within a block."""
Rows = list[tuple[str, list[EncodedChunk]]]
"""Deflated rows of HDF5 chunks, each with its dataset's name."""


class _Block:
    """A block while it is filled: its voxels once it is open, and how many visits each chunk row still waits for."""

    def __init__(self, array: ArrayPlan, box: Box) -> None:
        self.array = array
        self.box = box
        self.opened = asyncio.Event()
        self.voxels: Array = np.empty((0, 0, 0, 0), np.uint8)
        self._buffer = memoryview(b"")
        self.rows = -(-box.shape[2] // array.chunk[1])
        self._filled = [asyncio.Event() for _ in range(self.rows)]
        self._visits_left = [0] * self.rows

    def open(self, buffer: memoryview) -> None:
        dtype = np.dtype(np.uint32 if self.array.itemsize == 4 else np.uint8)
        count = int(np.prod(self.box.shape))
        self._buffer = buffer
        self.voxels = np.frombuffer(buffer, dtype, count).reshape(self.box.shape)
        self.opened.set()

    def expect(self, box: Box) -> None:
        """Count a visit that is to come."""
        for row in self._rows_of(box):
            self._visits_left[row] += 1

    def visited(self, box: Box) -> None:
        for row in self._rows_of(box):
            self._visits_left[row] -= 1
            if self._visits_left[row] == 0:
                self._filled[row].set()

    async def filled(self, share: Share) -> None:
        """Wait until all visits to the rows of a share have been made."""
        for row in {row for _, row in share}:
            await self._filled[row].wait()

    def nbytes(self, share: Share) -> int:
        """Voxels of a share, in bytes."""
        _, depth, height, width = self.box.shape
        rows = self.array.chunk[1]
        return sum(depth * min(rows, height - row * rows) * width * self.array.itemsize for _, row in share)

    def _rows_of(self, box: Box) -> range:
        """Chunk rows, counted within the block, that a box fills, each perhaps in part."""
        first = self.box.start[2]
        return met_tiles(box.start[2] - first, box.stop[2] - first, self.array.chunk[1], self.rows)

    def close(self) -> memoryview:
        """Give the buffer up for the next block."""
        self.voxels = self.voxels[:0]
        return self._buffer


class CropStream:
    """One crop's way from the bucket into an open file.

    Parameters
    ----------
    source, crop, plan, budget
        Where from, what is there, what to do, and in how much memory.
    executor
        Threads that decode and deflate.
    hdf5_thread
        A single thread: the only one that calls HDF5; fetched labels are spooled there, too.
    spool
        Keeps objects that are needed twice.
    on_fetched
        Called on the event loop with the size of each object that has been fetched and verified.

    Attributes
    ----------
    moved
        Bytes through each stage so far.
    """

    def __init__(
        self,
        source: Source,
        crop: CropSource,
        plan: CropPlan,
        budget: Budget,
        *,
        executor: Executor,
        hdf5_thread: Executor,
        spool: Spool,
        on_fetched: Callable[[int], None],
    ) -> None:
        self._source, self._crop, self._plan, self._budget = source, crop, plan, budget
        self._executor, self._hdf5_thread, self._spool = executor, hdf5_thread, spool
        self._on_fetched = on_fetched
        self._slots = _pool(budget.slots, budget.slot_bytes)
        self._buffers = _pool(budget.blocks, budget.block_bytes)
        self._labels, self._raw = _blocks(plan.labels), _blocks(plan.raw)
        before = plan.blocks_before_labels
        self._in_order = (*self._raw[:before], *self._labels, *self._raw[before:])
        # Set once a raw object that will be visited again is in the spool.
        self._spooled = {visit.key: asyncio.Event() for visit in plan.raw.visits if visit.again}
        self._is_one_piece = plan.labels.source.codec.sharding is None
        # Enough labels at a time to keep the threads busy, so few that what else waits for a thread soon has it.
        self._few = asyncio.Semaphore(_AT_A_TIME)
        self.moved = Moved()

    async def run(self, open_writer: Callable[[], CropWriter]) -> CropWriter:
        """Move the whole crop; `open_writer` creates the file.

        Returns
        -------
        CropWriter
            The writer with everything written, to be closed by the caller.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._open_blocks())
            table = group.create_task(self._number_labels(group))
            writing = group.create_task(self._write(group, open_writer, table))
        return writing.result()

    async def _open_blocks(self) -> None:
        for block in self._in_order:
            block.open(await self._buffers.get())

    async def _number_labels(self, group: asyncio.TaskGroup) -> Ids:
        """Fetch labels, and then raw; the table of labels' ids as soon as all have been seen."""
        scans = [
            group.create_task(self._scan_labels(visit, await self._slots.get()))
            for visit in self._plan.labels.visits
            if not visit.again
        ]
        group.create_task(self._fetch_raw(group))
        table = await run_in(self._executor, id_table, await asyncio.gather(*scans))
        group.create_task(self._fill_labels(table))
        return table

    async def _fetch_raw(self, group: asyncio.TaskGroup) -> None:
        for visit in self._plan.raw.visits:
            group.create_task(self._fill_raw(visit, await self._slots.get()))

    async def _write(
        self, group: asyncio.TaskGroup, open_writer: Callable[[], CropWriter], table: asyncio.Task[Ids]
    ) -> CropWriter:
        opening = self._hdf5_thread.submit(open_writer)
        try:
            writer = await asyncio.wrap_future(opening)
            await self._write_blocks(group, writer)
            await run_in(self._hdf5_thread, writer.write_ids, await table)
        except BaseException:
            self._hdf5_thread.submit(_close, opening)
            raise
        return writer

    async def _fetch(self, visit: Visit, slot: memoryview) -> memoryview | None:
        """A visit's bytes: from the bucket, or None for an absent chunk and for one that is in the spool."""
        if visit.item is None or visit.again:
            return None
        data = await self._source.read(self._crop.folder, visit.item, slot)
        self.moved.fetched += visit.item.size
        self._on_fetched(visit.item.size)
        return data

    async def _scan_labels(self, visit: Visit, slot: memoryview) -> Ids:
        data = await self._fetch(visit, slot)
        if data is not None:
            await run_in(self._hdf5_thread, self._spool.put, visit.key, data)
        self._slots.put_nowait(slot)
        async with self._few:
            return await run_in(self._executor, self._scan_chunk, visit)

    def _scan_chunk(self, visit: Visit) -> Ids:
        """The ids of a label object, whose runs are kept if they are small enough to be worth it."""
        data = None if visit.item is None else self._spool.get(visit.key)
        found = []
        for _, part in self._pieces(self._plan.labels, visit, data):
            runs = Runs.of(part)
            found.append(unique_ids(runs))
            if data is not None and self._is_one_piece and runs.packed_bytes <= _KEEP_RUNS * len(data):
                self._spool.put(_runs_key(visit), runs.pack())
        return np.unique(np.concatenate(found))

    async def _fill_labels(self, table: Ids) -> None:
        async def fill(visit: Visit) -> None:
            async with self._few:
                blocks = await self._opened(self._labels, visit)
                await run_in(self._executor, self._place_labels, visit, blocks, table)
            for block in blocks:
                block.visited(visit.box)

        async with asyncio.TaskGroup() as group:
            for visit in self._plan.labels.visits:
                group.create_task(fill(visit))

    def _place_labels(self, visit: Visit, blocks: Sequence[_Block], table: Ids) -> None:
        if (kept := self._spool.find(_runs_key(visit))) is not None:
            box = visit.box.overlap(self._plan.labels.region)
            if box is None:
                raise AssertionError("a visit meets the region")
            _place(box, relabel(Runs.unpack(kept, box.shape), table), blocks)
            return
        data = None if visit.item is None else self._spool.get(visit.key)
        for box, part in self._pieces(self._plan.labels, visit, data):
            _place(box, relabel(Runs.of(part), table), blocks)

    async def _fill_raw(self, visit: Visit, slot: memoryview) -> None:
        data = await self._fetch(visit, slot)
        if visit.again:
            await self._spooled[visit.key].wait()
        blocks = await self._opened(self._raw, visit)
        await run_in(self._executor, self._place_raw, visit, data, blocks)
        if visit.key in self._spooled:
            self._spooled[visit.key].set()
        self._slots.put_nowait(slot)
        for block in blocks:
            block.visited(visit.box)

    def _place_raw(self, visit: Visit, data: memoryview | None, blocks: Sequence[_Block]) -> None:
        if data is not None and visit.key in self._spooled:
            self._spool.put(visit.key, data)
        elif visit.again and visit.item is not None:
            data = self._spool.get(visit.key)
        for box, part in self._pieces(self._plan.raw, visit, data):
            _place(box, part, blocks)

    async def _opened(self, blocks: Sequence[_Block], visit: Visit) -> list[_Block]:
        chosen = [blocks[number] for number in visit.blocks]
        for block in chosen:
            await block.opened.wait()
        return chosen

    def _pieces(self, array: ArrayPlan, visit: Visit, data: Bytes | None) -> Any:
        """(box in the array, (C, Z, Y, X) voxels) pairs that tile the part of a visit's object inside the region."""
        try:
            yield from _pieces_in_region(array, visit.box, data)
        except DecodeError as error:
            raise SourceCorruptError(f"{self._crop.folder}: object {visit.key!r} {error}") from error

    async def _write_blocks(self, group: asyncio.TaskGroup, writer: CropWriter) -> None:
        encoded: asyncio.Queue[_Encoded] = asyncio.Queue()
        room = asyncio.Semaphore(_SHARES * self._budget.deflated_blocks)
        encoding = group.create_task(self._encode_blocks(group, encoded, room))
        for _ in range(sum(len(_shares(block)) for block in self._in_order)):
            share = await encoded.get()
            rows = await share.rows
            size = sum(len(chunk.data) for _, chunks in rows for chunk in chunks)
            self.moved.deflated += size
            if share.block is not None:
                self._buffers.put_nowait(share.block.close())
            await run_in(self._hdf5_thread, _write, writer, rows)
            self.moved.written += size
            room.release()
        await encoding

    async def _encode_blocks(
        self, group: asyncio.TaskGroup, encoded: asyncio.Queue[_Encoded], room: asyncio.Semaphore
    ) -> None:
        """Deflate shares as soon as they are filled, so many ahead of the first one that is not."""
        for block in self._in_order:
            shares = _shares(block)
            for number, share in enumerate(shares):
                await room.acquire()
                rows = group.create_task(self._encode(block, share))
                encoded.put_nowait(_Encoded(rows, block if number == len(shares) - 1 else None))

    async def _encode(self, block: _Block, share: Share) -> Rows:
        await block.filled(share)
        self.moved.decoded += block.nbytes(share)
        return await run_in(self._executor, _encode_rows, block, share)


@dataclass(frozen=True)
class _Encoded:
    """A share on its way through deflate, in canonical order; `block` is set on its last one."""

    rows: asyncio.Task[Rows]
    block: _Block | None


def _runs_key(visit: Visit) -> str:
    return f"{visit.key} as runs"


def _pool(count: int, size: int) -> asyncio.Queue[memoryview]:
    """Buffers whose pages the system provides when they are first written, not here, where nothing moves yet."""
    pool: asyncio.Queue[memoryview] = asyncio.Queue()
    for _ in range(count):
        pool.put_nowait(np.empty(size, np.uint8).data)
    return pool


def _blocks(array: ArrayPlan) -> list[_Block]:
    blocks = [_Block(array, box) for box in array.blocks]
    for visit in array.visits:
        for number in visit.blocks:
            blocks[number].expect(visit.box)
    return blocks


def _pieces_in_region(array: ArrayPlan, box: Box, data: Bytes | None) -> Any:
    source = array.source
    lead = (1,) * (4 - len(source.chunks))  # labels have no channel axis of their own
    whole = ((0,) * len(source.chunks), None)
    for origin, decoded in [whole] if data is None else source.codec.pieces(data, source.chunks):
        inner = source.chunks if data is None or source.codec.sharding is None else source.codec.sharding.inner
        start = tuple(a + o for a, o in zip(box.start, (*(0 for _ in lead), *origin), strict=True))
        piece = Box(start, tuple(a + n for a, n in zip(start, (*lead, *inner), strict=True)))
        part = piece.overlap(array.region)
        if part is None:
            continue
        if decoded is None:
            yield part, np.broadcast_to(np.array(source.fill_value, source.dtype), part.shape)
        else:
            cut = part.moved(tuple(-a for a in start)).slices()
            yield part, decoded.reshape(piece.shape)[cut]


def _place(box: Box, voxels: Array, blocks: Sequence[_Block]) -> None:
    for block in blocks:
        part = box.overlap(block.box)
        if part is not None:
            to = part.moved(tuple(-a for a in block.box.start)).slices()
            block.voxels[to] = voxels[part.moved(tuple(-a for a in box.start)).slices()]


def _shares(block: _Block) -> list[Share]:
    """A block's chunk rows in at most `_SHARES` runs of nearly equal length, in canonical order."""
    rows = [(channel, row) for channel in range(block.box.shape[0]) for row in range(block.rows)]
    size = -(-len(rows) // _SHARES)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _encode_rows(block: _Block, share: Share) -> Rows:
    return [_encode(block, *row) for row in share]


def _encode(block: _Block, channel: int, row: int) -> tuple[str, list[EncodedChunk]]:
    y = row * block.array.chunk[1]
    _, z0, y0, _ = (a - b for a, b in zip(block.box.start, block.array.region.start, strict=True))
    name = LABELS if block.array.itemsize == 4 else raw_dataset(block.box.start[0] + channel)
    voxels = block.voxels[channel, :, y : y + block.array.chunk[1]]
    return name, encode_row(voxels, (z0, y0 + y, 0), block.array.chunk)


def _close(opening: Future[CropWriter]) -> None:
    """Close what was opened; run in the thread that opens, so that it has ended or will not begin."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().__exit__(None, None, None)


def _write(writer: CropWriter, rows: Rows) -> None:
    for name, chunks in rows:
        writer.write(name, chunks)
