"""How a crop is read so that a product is made in bounded memory: columns with all planes, each slab by slab.

The cut depends only on the crop and the product, never on the memory limit: chunks are written in its order, and the
same crop gives the same bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismcache.crop import Crop
from prismcache.errors import MemoryLimitError
from prismcache_service.pipeline.products.arrays import Bytes, Labels
from prismcache_service.pipeline.system import resident_bytes

Pair = tuple[int, int]
Box = tuple[slice, slice]

CHUNK = (16, 64, 64)
"""Voxels (Z, Y, X) of the HDF5 chunks of products; crops are read in slabs as high."""

_COLUMN_BYTES = 48 << 20
_SLACK_BYTES = 16 << 20  # HDF5's caches, deflated rows


@dataclass(frozen=True)
class Column:
    """A part of a crop's planes, (Y, X), of whole HDF5 chunks.

    Attributes
    ----------
    box
        The voxels that a product is made for.
    wide
        `box` and the margin that is read around it, cut off at the crop's border.
    """

    box: Box
    wide: Box

    @property
    def inner(self) -> Box:
        """`box` in the coordinates of `wide`."""
        y, x = (slice(b.start - w.start, b.stop - w.start) for b, w in zip(self.box, self.wide, strict=True))
        return y, x


def columns(shape: Pair, chunk: Pair, margin: Pair, most: int) -> list[Column]:
    """Cut planes into boxes of whole chunks, in C order.

    Parameters
    ----------
    shape, chunk, margin
        (Y, X), in voxels: of the crop, of a chunk, and what is read around a box.
    most
        Voxels that a box with its margin has at most, unless a single chunk needs more.
    """
    size = list(chunk)
    for axis, other in ((1, 0), (0, 1)):
        length = most // min(size[other] + 2 * margin[other], shape[other])
        whole = (length - 2 * margin[axis]) // chunk[axis] * chunk[axis]
        size[axis] = shape[axis] if length >= shape[axis] else max(chunk[axis], whole)
    found = []
    for start in itertools.product(*(range(0, n, step) for n, step in zip(shape, size, strict=True))):
        stop = [min(first + step, n) for first, step, n in zip(start, size, shape, strict=True)]
        y, x = map(slice, start, stop)
        wide_y, wide_x = (
            slice(max(0, first - by), min(n, last + by))
            for first, last, by, n in zip(start, stop, margin, shape, strict=True)
        )
        found.append(Column((y, x), (wide_y, wide_x)))
    return found


class SlabReader:
    """Reads a crop column by column and slab by slab.

    Parameters
    ----------
    crop
        The crop.
    margin
        (Y, X) voxels of labels that are read around each column.
    pixel_bytes
        Bytes of memory that one pixel of a column's planes takes, slabs and what is made of them.
    on_read
        Called with the number of voxels of a column that have been used.

    Attributes
    ----------
    columns
        The columns, in the order in which they are read and written.
    """

    def __init__(self, crop: Crop, margin: Pair, pixel_bytes: int, on_read: Callable[[int], None]) -> None:
        self._crop, self._pixel_bytes, self._on_read = crop, pixel_bytes, on_read
        (_, *shape), (_, *chunk) = crop.shape, CHUNK
        self.columns = columns((shape[0], shape[1]), (chunk[0], chunk[1]), margin, _COLUMN_BYTES // pixel_bytes)

    def check_memory(self, limit: int, table_bytes: int) -> None:
        """Check that a column, and tables with an entry for each label, fit into memory beside what the process has.

        Raises
        ------
        MemoryLimitError
            If they do not fit below `limit` bytes; the message gives what is needed.
        """
        pixels = max(math.prod(_extents(column.wide)) for column in self.columns)
        needed = resident_bytes() + _SLACK_BYTES + pixels * self._pixel_bytes + table_bytes
        if needed > limit:
            crop, labels = self._crop, len(self._crop.labels_ids) - 1
            raise MemoryLimitError(
                f"this product of crop {crop.split}/{crop.crop_id}, which has {labels} labels, needs "
                f"{needed / 1e6:.0f} MB of memory, the limit is {limit / 1e6:.0f} MB"
            )

    def labels(self, column: Column) -> Iterator[tuple[int, Labels]]:
        """Yield (first plane, labels with their margin) of each slab, which is valid until the next is asked for."""
        buffer: Labels = np.empty((CHUNK[0], *_extents(column.wide)), np.uint32)
        for z in range(0, self._crop.shape[0], CHUNK[0]):
            slab = buffer[: self._crop.shape[0] - z]
            self._crop.labels.read_direct(slab, (slice(z, z + len(slab)), *column.wide))
            yield z, slab
            self._on_read(len(slab) * math.prod(_extents(column.box)))

    def raw(self, column: Column, z: int) -> Iterator[Bytes]:
        """Yield the slab of each channel that begins at plane `z`, which is valid until the next is asked for."""
        slab: Bytes = np.empty((min(CHUNK[0], self._crop.shape[0] - z), *_extents(column.box)), np.uint8)
        for channel in self._crop.channels:
            self._crop.channel(channel).read_direct(slab, (slice(z, z + len(slab)), *column.box))
            yield slab


def _extents(box: Box) -> Any:
    return [part.stop - part.start for part in box]
