"""Deflate rows of voxels into HDF5 chunks.

The streams are those of HDF5's gzip filter (zlib format, RFC 1950), made by ISA-L, which deflates microscopy at
200-400 MB/s a core where zlib's lowest level does 60 for the same size.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from isal import isal_zlib

from prismcache_service.pipeline.codec.decode import ScratchPad

Array = np.ndarray[Any, np.dtype[Any]]

ISAL_LEVEL = 1  # 2 and 3 are slower for the same size on crops
RECIPE = f"isal-deflate-{ISAL_LEVEL}-after-8"
_PRIMING = 8  # bytes; more than the 4 of a match
_ZLIB_HEADER = b"\x78\x01"  # RFC 1950: deflate, window of 32 KiB, no preset dictionary, fastest level
_LAST_BLOCK = b"\x03\x00"  # RFC 1951: an empty block of fixed codes, marked as the last one

_scratch = ScratchPad()


@dataclass(frozen=True)
class EncodedChunk:
    """One HDF5 chunk: its first voxel (Z,Y,X) in the dataset and its deflated bytes."""

    origin: tuple[int, int, int]
    data: bytes


class _Deflater(threading.local):
    """ISA-L's state and output buffer, kept for each thread: the GIL is released once a call.

    A new stream for each chunk releases the GIL each time its output grows, and takes a sixth longer. The class that
    keeps the state is private to python-isal (``isal.igzip_threaded`` uses it): pyproject.toml therefore bounds the
    version from above.
    """

    def __init__(self) -> None:
        self._largest = -1  # bytes of data that the output buffer has room for
        self._kept: Any = None

    def blocks(self, data: memoryview, history: memoryview) -> bytes:
        """Return deflated blocks (RFC 1951), none the last, of `data`, which may refer to `history` before it."""
        if len(data) > self._largest:
            self._largest = len(data)
            # What cannot be deflated is stored, in blocks with a few bytes before each; more would be an error.
            room = len(data) + len(data) // 8 + (1 << 12)
            self._kept = isal_zlib._ParallelCompress(room, ISAL_LEVEL)  # noqa: SLF001 - see the class's docstring
        blocks: bytes = self._kept.compress_and_crc(data, history)[0]
        return blocks


_deflater = _Deflater()


def deflate(data: Array) -> bytes:
    """Return a zlib stream (RFC 1950) of a C-contiguous array, the same bytes in every thread and process.

    ISA-L (2.32) hashes an address of its own in place of the data's third byte when its assembly begins a stream, so
    that a plain ``isal_zlib.compress`` differs from thread to thread for one chunk in ten thousand. A stream that has
    a history does not begin: the first bytes are stored as they are, and are the history of the rest.
    """
    view = data.reshape(-1).view(np.uint8).data
    begin = view[:_PRIMING]
    size = len(begin).to_bytes(2, "little")
    stored = b"\x00" + size + bytes(255 - byte for byte in size) + begin  # RFC 1951, 3.2.4
    blocks = _deflater.blocks(view[_PRIMING:], begin)
    return b"".join((_ZLIB_HEADER, stored, blocks, _LAST_BLOCK, isal_zlib.adler32(view).to_bytes(4, "big")))


def encode_row(row: Array, origin: tuple[int, int, int], chunk: tuple[int, int, int]) -> list[EncodedChunk]:
    """Deflate a row of chunks along X; return them in order.

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
