"""Last stages: deflate the shares of filled blocks side by side, and write them in canonical order.

`DeflateStage` starts shares in order, and never has more of them under way than the writer has places for;
`write_shares` takes them in the same order. A block's buffer is free again once the last of its shares is deflated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from prismcache_service.pipeline.codec import EncodedChunk, encode_row
from prismcache_service.pipeline.progress import Moved
from prismcache_service.pipeline.write.blocks import Block, Share
from prismcache_service.pipeline.write.hdf5 import CropWriter
from prismcache_service.pipeline.write.threads import run_in

Rows = list[tuple[str, list[EncodedChunk]]]
"""Deflated rows of HDF5 chunks, each with its dataset's name."""


@dataclass(frozen=True)
class Deflating:
    """A share that is being deflated; `block` is set on the last share of a block."""

    rows: asyncio.Task[Rows]
    block: Block | None


class DeflateStage:
    """Deflate the shares of blocks as soon as they are filled.

    Parameters
    ----------
    executor
        Threads that deflate.
    places
        How many shares may be waited for, deflated, or waiting to be written.
    moved
        Where decoded bytes are counted.

    Attributes
    ----------
    started
        The shares under way, in canonical order.
    """

    def __init__(self, executor: Executor, places: int, moved: Moved) -> None:
        self._executor, self._moved = executor, moved
        self._places = asyncio.Semaphore(places)
        self.started: asyncio.Queue[Deflating] = asyncio.Queue()

    async def run(self, blocks: Sequence[Block]) -> None:
        """Start every share of every block, in order, as places come free."""
        async with asyncio.TaskGroup() as group:
            for block in blocks:
                shares = block.shares()
                for number, share in enumerate(shares):
                    await self._places.acquire()
                    rows = group.create_task(self._deflate(block, share))
                    self.started.put_nowait(Deflating(rows, block if number == len(shares) - 1 else None))

    def written(self) -> None:
        """Free the place of a share that has been written."""
        self._places.release()

    async def _deflate(self, block: Block, share: Share) -> Rows:
        await block.filled(share)
        self._moved.decoded += block.nbytes(share)
        return await run_in(self._executor, _encode_share, block, share)


async def write_shares(
    deflate: DeflateStage,
    count: int,
    writer: CropWriter,
    *,
    buffers: asyncio.Queue[memoryview],
    hdf5_thread: Executor,
    moved: Moved,
) -> None:
    """Write `count` shares in canonical order, and put the buffer of each block that is deflated back into the pool."""
    for _ in range(count):
        share = await deflate.started.get()
        rows = await share.rows
        size = sum(len(chunk.data) for _, chunks in rows for chunk in chunks)
        moved.deflated += size
        if share.block is not None:
            buffers.put_nowait(share.block.close())
        await run_in(hdf5_thread, _write, writer, rows)
        moved.written += size
        deflate.written()


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
