"""A block in memory to deflated HDF5 chunks.

The streams are those of HDF5's gzip filter (zlib format, RFC 1950), made by ISA-L, which deflates microscopy at
200-400 MB/s a core where zlib's lowest level does 60 for the same size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from isal import isal_zlib

from prismcache_service.pipeline.codecs import ScratchPad

Array = np.ndarray[Any, np.dtype[Any]]

ISAL_LEVEL = 1  # 2 and 3 are slower for the same size on crops
RECIPE = f"isal-deflate-{ISAL_LEVEL}"
_PRIMING = 8  # bytes; more than the 4 of a match, fewer than the 16 from which on the assembly takes over

_scratch = ScratchPad()


@dataclass(frozen=True)
class EncodedChunk:
    """One HDF5 chunk: its first voxel (Z,Y,X) in the dataset and its deflated bytes."""

    origin: tuple[int, int, int]
    data: bytes


def deflate(data: Array) -> bytes:
    """A zlib stream (RFC 1950) of a C-contiguous array, the same bytes in every thread and process.

    ISA-L (2.31) hashes an address of its own in place of the data's third byte when its assembly begins a stream, so
    that a plain ``isal_zlib.compress`` differs from thread to thread for one chunk in ten thousand. A few bytes that
    are flushed first go through another routine, which does not; they cost nine bytes a chunk.
    """
    view = data.reshape(-1).view(np.uint8).data
    stream = isal_zlib.compressobj(ISAL_LEVEL)
    begin = stream.compress(view[:_PRIMING]), stream.flush(isal_zlib.Z_SYNC_FLUSH)
    return b"".join((*begin, stream.compress(view[_PRIMING:]), stream.flush()))


def encode_row(row: Array, origin: tuple[int, int, int], chunk: tuple[int, int, int]) -> list[EncodedChunk]:
    """Deflate a row of chunks along X.

    Parameters
    ----------
    row
        (Z, Y, X) voxels, at most one chunk in Z and Y; what a chunk at the border lacks is filled with 0.
    origin
        Voxel of ``row[0, 0, 0]`` in the dataset (Z,Y,X), at a chunk's corner.
    chunk
        The chunk's shape (Z,Y,X).
    """
    depth, height, width = row.shape
    whole = width // chunk[2]
    shape = (-(-width // chunk[2]), *chunk)
    chunks = np.frombuffer(_scratch.take("chunks", math.prod(shape) * row.itemsize), row.dtype, math.prod(shape))
    chunks = chunks.reshape(shape)
    chunks[whole if (depth, height) == chunk[:2] else 0 :] = 0
    # All whole chunks at once: along X, as the row lies in memory, and with the GIL given up once, not once a chunk.
    cut = row[:, :, : whole * chunk[2]].reshape(depth, height, whole, chunk[2])
    chunks[:whole, :depth, :height].transpose(1, 2, 0, 3)[...] = cut
    for number in range(whole, len(chunks)):  # the last one, if it is cut off
        chunks[number, :depth, :height, : width - number * chunk[2]] = row[:, :, number * chunk[2] :]
    return [
        EncodedChunk((origin[0], origin[1], origin[2] + number * chunk[2]), deflate(each))
        for number, each in enumerate(chunks)
    ]
