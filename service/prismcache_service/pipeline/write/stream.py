"""Run a plan: fetch → fill → deflate → write, all stages at once, in bounded memory.

* *Slots* bound the fetched objects in memory: `fill.fetch` takes them in the plan's order, and the stages that decode
  the objects release them.
* *Blocks* hold decoded voxels. They open in canonical order, as buffers come free; an object is decoded once every
  block it fills is open. A *share* of a block, some rows of its chunks, is deflated once it is full, and written in
  its turn; with its last share a block's buffer goes to the next block.
* Decoding, relabelling and deflating run in `threads.decode` and release the GIL; HDF5 has a thread of its own.

No deadlock is possible, because slots, blocks and shares are all given out in one order: the earliest unfinished
block holds what it needs, or is the next to get it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from prismcache_service.pipeline.codec import EncodedChunk, encode_row
from prismcache_service.pipeline.plan import Budget, CropPlan
from prismcache_service.pipeline.system import Threads, run_in
from prismcache_service.pipeline.write.blocks import SHARES, Block, Share, buffer_pool, open_blocks
from prismcache_service.pipeline.write.fill import LabelsStage, RawStage, Read, fetch
from prismcache_service.pipeline.write.hdf5 import CropWriter
from prismcache_service.pipeline.write.spool import Spool

Rows = list[tuple[str, list[EncodedChunk]]]
"""Deflated rows of HDF5 chunks, each with its dataset's name."""


async def stream_crop(
    read: Read,
    plan: CropPlan,
    budget: Budget,
    *,
    open_writer: Callable[[], CropWriter],
    threads: Threads,
    spool: Spool,
    on_fetched: Callable[[int], None],
) -> CropWriter:
    """Move one crop from the bucket into an open file.

    Parameters
    ----------
    read
        Fetches and verifies an object of the crop.
    plan, budget
        What to do, and in how much memory.
    open_writer
        Creates the file; called in the HDF5 thread.
    threads, spool
        Where the stages work, and what keeps the objects that are needed twice.
    on_fetched
        Called on the event loop with the size in bytes of each object that has been fetched and verified.

    Returns
    -------
    CropWriter
        The writer with everything written; the caller closes it.
    """
    slots = asyncio.Semaphore(budget.slots)
    buffers = buffer_pool(budget.blocks, budget.block_bytes)
    raw, *beside = (RawStage(array, slots, threads, spool) for array in (plan.raw, *(each for each, _ in plan.arrays)))
    labels = [] if plan.labels is None else [LabelsStage(plan.labels, slots, threads, spool)]
    before = plan.blocks_before_labels
    blocks = [*raw.blocks[:before], *(block for stage in labels for block in stage.blocks), *raw.blocks[before:]]
    blocks += [block for stage in beside for block in stage.blocks]
    deflating = Deflating(threads, SHARES * budget.deflated_blocks)
    opening = threads.hdf5.submit(open_writer)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(open_blocks(blocks, buffers))
            group.create_task(fetch([*labels, raw, *beside], read, slots, on_fetched))
            for stage in (raw, *beside):
                group.create_task(stage.run())
            numbering = [group.create_task(stage.run()) for stage in labels]
            group.create_task(deflating.run(blocks))
            writer = await asyncio.wrap_future(opening)
            group.create_task(deflating.write(blocks, writer, buffers))
        for table in numbering:
            await run_in(threads.hdf5, writer.write_ids, table.result())
    except BaseException:
        threads.hdf5.submit(_close, opening)
        raise
    return writer


def _close(opening: Future[CropWriter]) -> None:
    """Close the file if it was opened; runs in the thread that opens it, after the opening has ended or was dropped."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().__exit__(None, None, None)


class Deflating:
    """The last stages: `run` deflates the shares of filled blocks side by side, `write` writes them in order.

    `places` is the number of shares that may be waited for, deflated, or waiting to be written.
    """

    def __init__(self, threads: Threads, places: int) -> None:
        self._threads = threads
        self._places = asyncio.Semaphore(places)
        self._started: asyncio.Queue[asyncio.Task[Rows]] = asyncio.Queue()

    async def run(self, blocks: Sequence[Block]) -> None:
        """Start every share of every block, in order, as places come free."""
        async with asyncio.TaskGroup() as group:
            for block in blocks:
                for share in block.shares():
                    await self._places.acquire()
                    self._started.put_nowait(group.create_task(self._deflate(block, share)))

    async def write(self, blocks: Sequence[Block], writer: CropWriter, buffers: asyncio.Queue[memoryview]) -> None:
        """Write the shares in the same order, and put the buffer of each block that is deflated back into the pool."""
        for block in blocks:
            shares = block.shares()
            for number in range(len(shares)):
                rows = await (await self._started.get())
                if number == len(shares) - 1:
                    buffers.put_nowait(block.close())
                await run_in(self._threads.hdf5, _write, writer, rows)
                self._places.release()

    async def _deflate(self, block: Block, share: Share) -> Rows:
        await block.filled(share)
        return await run_in(self._threads.decode, _encode_share, block, share)


def _encode_share(block: Block, share: Share) -> Rows:
    rows: Rows = []
    for channel, row in share:
        y = row * block.array.chunk[1]
        _, z0, y0, _ = (a - b for a, b in zip(block.box.start, block.array.region.start, strict=True))
        name = block.array.dataset(block.box.start[0] + channel)
        voxels = block.voxels[channel, :, y : y + block.array.chunk[1]]
        rows.append((name, encode_row(voxels, (z0, y0 + y, 0), block.array.chunk)))
    return rows


def _write(writer: CropWriter, rows: Rows) -> None:
    for name, chunks in rows:
        writer.write(name, chunks)
