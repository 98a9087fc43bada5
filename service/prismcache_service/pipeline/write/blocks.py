"""Blocks of decoded voxels while they are filled, and the pools of buffers that blocks and fetched objects live in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from prismcache_service.pipeline.plan import ArrayPlan, Box, Visit, met_tiles

SHARES = 6  # of a block, deflated side by side; each costs the event loop a round trip

Array = np.ndarray[Any, np.dtype[Any]]
Share = Sequence[tuple[int, int]]
"""(channel, row of HDF5 chunks) pairs, counted within a block."""


def buffer_pool(count: int, size: int) -> asyncio.Queue[memoryview]:
    """Return a pool of `count` buffers of `size` bytes; each buffer that is taken is put back.

    The system provides a buffer's pages when they are first written: later uses of the same buffer cost nothing.
    """
    pool: asyncio.Queue[memoryview] = asyncio.Queue()
    for _ in range(count):
        pool.put_nowait(np.empty(size, np.uint8).data)
    return pool


class Block:
    """One block: its voxels once it is open, and how many visits each of its chunk rows still waits for."""

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
        """Give the block the buffer that its voxels are decoded into."""
        count = int(np.prod(self.box.shape))
        self._buffer = buffer
        self.voxels = np.frombuffer(buffer, self.array.dtype, count).reshape(self.box.shape)
        self.opened.set()

    def close(self) -> memoryview:
        """Return the buffer, for the next block; the voxels are gone."""
        self.voxels = self.voxels[:0]
        return self._buffer

    def expect(self, box: Box) -> None:
        """Count a visit that will fill this box."""
        for row in self._rows_of(box):
            self._visits_left[row] += 1

    def visited(self, box: Box) -> None:
        """Count a visit that has filled this box."""
        for row in self._rows_of(box):
            self._visits_left[row] -= 1
            if self._visits_left[row] == 0:
                self._filled[row].set()

    async def filled(self, share: Share) -> None:
        """Wait until all visits to the rows of a share have been made."""
        for row in {row for _, row in share}:
            await self._filled[row].wait()

    def place(self, box: Box, voxels: Array) -> None:
        """Copy the part of `voxels`, which fill `box` of the array, that lies in this block."""
        part = box.overlap(self.box)
        if part is not None:
            to = part.moved(tuple(-a for a in self.box.start)).slices()
            self.voxels[to] = voxels[part.moved(tuple(-a for a in box.start)).slices()]

    def shares(self) -> list[Share]:
        """Return the block's chunk rows in at most `SHARES` runs of nearly equal length, in canonical order."""
        rows = [(channel, row) for channel in range(self.box.shape[0]) for row in range(self.rows)]
        size = -(-len(rows) // SHARES)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _rows_of(self, box: Box) -> range:
        """Return the chunk rows, counted within the block, that a box fills, each perhaps in part."""
        first = self.box.start[2]
        return met_tiles(box.start[2] - first, box.stop[2] - first, self.array.chunk[1], self.rows)


def blocks_of(array: ArrayPlan) -> list[Block]:
    """Return the blocks of an array in canonical order; each expects the visits that the plan lists for it."""
    blocks = [Block(array, box) for box in array.blocks]
    for visit in array.visits:
        for number in visit.blocks:
            blocks[number].expect(visit.box)
    return blocks


async def opened(blocks: Sequence[Block], visit: Visit) -> list[Block]:
    """Wait until every block that a visit fills is open, and return these blocks."""
    chosen = [blocks[number] for number in visit.blocks]
    for block in chosen:
        await block.opened.wait()
    return chosen


async def open_blocks(blocks: Sequence[Block], buffers: asyncio.Queue[memoryview]) -> None:
    """Open the blocks one after the other, as buffers come free."""
    for block in blocks:
        block.open(await buffers.get())
