"""Run a plan: fetch → fill → deflate → write, all stages at once, in bounded memory.

* *Slots* bound the fetched objects in memory. The fetch stage takes them in the plan's order, the fill stage
  releases them.
* *Blocks* hold decoded voxels. They open in canonical order, as buffers come free; an object is decoded once every
  block it fills is open. A *share* of a block, some rows of its chunks, is deflated once it is full, and written in
  its turn; with its last share a block's buffer goes to the next block.
* Decoding, relabelling and deflating run in `threads.decode` and release the GIL; HDF5 has a thread of its own.

No deadlock is possible, because slots, blocks and shares are all given out in one order: the earliest unfinished
block holds what it needs, or is the next to get it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from prismcache_service.pipeline.plan import Budget, CropPlan, Visit
from prismcache_service.pipeline.progress import Moved
from prismcache_service.pipeline.write.blocks import SHARES, blocks_of, buffer_pool, open_blocks
from prismcache_service.pipeline.write.deflate import DeflateStage, write_shares
from prismcache_service.pipeline.write.fetch import FetchedQueue, FetchStage, Read
from prismcache_service.pipeline.write.fill import LabelsStage, RawStage
from prismcache_service.pipeline.write.hdf5 import CropWriter
from prismcache_service.pipeline.write.spool import Spool
from prismcache_service.pipeline.write.threads import Threads, run_in


async def stream_crop(
    read: Read,
    plan: CropPlan,
    budget: Budget,
    *,
    open_writer: Callable[[], CropWriter],
    threads: Threads,
    spool: Spool,
    on_fetched: Callable[[int], None],
    moved: Moved,
) -> CropWriter:
    """Move one crop from the bucket into an open file.

    Parameters
    ----------
    read
        Fetch and verify an object of the crop.
    plan, budget
        What to do, and in how much memory.
    open_writer
        Create the file; called in the HDF5 thread.
    threads
        Where the stages work.
    spool
        Keeps objects that are needed twice.
    on_fetched
        Called on the event loop with the size in bytes of each object that has been fetched and verified.
    moved
        Counts the bytes that went through each stage.

    Returns
    -------
    CropWriter
        The writer with everything written; the caller closes it.
    """
    slots = asyncio.Semaphore(budget.slots)
    buffers = buffer_pool(budget.blocks, budget.block_bytes)
    raw_blocks, before = blocks_of(plan.raw), plan.blocks_before_labels
    labels_blocks = [] if plan.labels is None else blocks_of(plan.labels)
    beside = [(array, blocks_of(array)) for array, _ in plan.arrays]
    in_order = (*raw_blocks[:before], *labels_blocks, *raw_blocks[before:])
    in_order += tuple(block for _, blocks in beside for block in blocks)

    fetch = FetchStage(read, slots, on_fetched, moved)
    visits: list[tuple[Visit, FetchedQueue]] = []
    labels: LabelsStage | None = None
    fetched_labels: FetchedQueue = asyncio.Queue(budget.slots)
    if plan.labels is not None:
        labels = LabelsStage(plan.labels, labels_blocks, slots, threads, spool)
        visits += [(visit, fetched_labels) for visit in plan.labels.visits if not visit.again]
    filling: list[tuple[RawStage, FetchedQueue]] = []
    for array, blocks in ((plan.raw, raw_blocks), *beside):
        fetched: FetchedQueue = asyncio.Queue(budget.slots)
        visits += [(visit, fetched) for visit in array.visits]
        filling.append((RawStage(array, blocks, slots, threads, spool), fetched))
    deflate = DeflateStage(threads.decode, SHARES * budget.deflated_blocks, moved)
    shares = sum(len(block.shares()) for block in in_order)

    opening = threads.hdf5.submit(open_writer)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(open_blocks(in_order, buffers))
            group.create_task(fetch.run(visits))
            for stage, fetched in filling:
                group.create_task(stage.run(fetched))
            group.create_task(deflate.run(in_order))
            scan = None if labels is None else group.create_task(labels.scan(fetched_labels))
            writer = await asyncio.wrap_future(opening)
            group.create_task(
                write_shares(deflate, shares, writer, buffers=buffers, hdf5_thread=threads.hdf5, moved=moved)
            )
            table = None if scan is None else await scan
            if labels is not None and table is not None:
                await labels.fill(table)
        if table is not None:
            await run_in(threads.hdf5, writer.write_ids, table)
    except BaseException:
        threads.hdf5.submit(_close, opening)
        raise
    return writer


def _close(opening: Future[CropWriter]) -> None:
    """Close the file if it was opened; runs in the thread that opens it, after the opening has ended or was dropped."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().__exit__(None, None, None)
