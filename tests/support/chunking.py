"""Chunk grids, object keys and zarr v2's automatic chunk shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

KIB = 1024
MIB = 1024 * KIB


def guess_chunks(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Chunk shape that zarr v2 picks where none is given.

    The wanted chunk size is 256 KiB, doubled for every tenfold of the array's size above 1 MiB and kept within
    128 KiB and 64 MiB. Axes are halved in turn, first axis first, rounding up, until a chunk takes less than one and
    a half times that.

    Parameters
    ----------
    shape
        Shape of the array, any number of axes.
    itemsize
        Bytes of one element.

    Returns
    -------
    tuple of int
        Chunk shape, one entry per axis.
    """
    chunks = [max(1, extent) for extent in shape]
    wanted = 256 * KIB * 2 ** math.log10(math.prod(chunks) * itemsize / MIB)
    limit = min(1.5 * min(max(wanted, 128 * KIB), 64 * MIB), 64 * MIB)
    for axis in itertools.cycle(range(len(chunks))):
        if math.prod(chunks) * itemsize < limit or math.prod(chunks) == 1:
            break
        chunks[axis] = math.ceil(chunks[axis] / 2)
    return tuple(chunks)


def grid_shape(shape: Sequence[int], chunks: Sequence[int]) -> tuple[int, ...]:
    """Number of chunks along each axis; the last one of an axis may reach past the array."""
    return tuple(math.ceil(extent / chunk) for extent, chunk in zip(shape, chunks, strict=True))


def grid_indices(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every chunk's index in the grid, last axis fastest."""
    return itertools.product(*map(range, grid_shape(shape, chunks)))


def chunk_key(index: Sequence[int], zarr_format: int, separator: str) -> str:
    """Key of a chunk's object below its array, e.g. ``1.0.2`` (zarr v2) or ``c/1/0/2`` (zarr v3)."""
    parts = [str(i) for i in index]
    return separator.join(parts if zarr_format == 2 else ["c", *parts])
