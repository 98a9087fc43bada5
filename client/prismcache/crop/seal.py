"""The seal of a file: a checksum of everything in it except the chunks, appended after HDF5's last byte.

A chunk is a zlib stream, which ends with a checksum of its own. What lies between the chunks has none: superblock,
object headers, attributes, B-trees, heaps. HDF5 would take a flipped bit in an offset for the offset, and HDF5 2.0
crashes its process on some damaged heaps. HDF5 ignores what follows the end that its superblock names, so every reader
of HDF5 reads a sealed file, and our readers check the seal before HDF5 sees a byte.

=========  =========================================================================================
bytes      content
=========  =========================================================================================
16 n       n pairs of uint64: start and stop of a range of bytes, ascending; all ranges outside of the chunks
32         SHA-256 of these pairs and of the bytes of these ranges
8          n, as uint64
8          ``PRISMSUM``
=========  =========================================================================================

Numbers are little-endian. Files without a seal (of other programs, or of an earlier prismcache) are read unchecked.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Table = np.ndarray[Any, np.dtype[Any]]
Read = Callable[[int, int], bytes]
"""Takes an offset in the file and a count, both in bytes; returns that many bytes, or fewer at the end of the file."""

_MAGIC = b"PRISMSUM"
_FOOT = 32 + 8 + len(_MAGIC)
_PAIR = 16


def seal_of(path: Path) -> bytes:
    """Return what to append to a file that HDF5 has closed.

    Raises
    ------
    OSError, RuntimeError, KeyError
        Of h5py or the system, if the file cannot be read back.
    """
    places = array("q")  # first byte and length of each chunk

    def note(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.chunks is not None:
            item.id.chunk_iter(lambda chunk: places.extend((chunk.byte_offset, chunk.size)))

    with h5py.File(path, "r", locking=False) as file:
        file.visititems(note)
    chunks = np.array(places).reshape(-1, 2)
    chunks = chunks[np.argsort(chunks[:, 0])]
    with path.open("rb", buffering=0) as stream:

        def read(start: int, count: int) -> bytes:
            stream.seek(start)
            return stream.read(count)

        starts = np.concatenate([[0], chunks.sum(axis=1)])
        stops = np.concatenate([chunks[:, 0], [stream.seek(0, os.SEEK_END)]])
        table = np.stack([starts, stops], axis=1)[starts < stops].astype("<u8")
        return table.tobytes() + _digest(table, read) + len(table).to_bytes(8, "little") + _MAGIC


def is_intact(size: int, read: Read) -> bool:
    """Return whether everything except the chunks is as it was written; True for a file without a seal.

    Parameters
    ----------
    size
        Length of the file with its seal, in bytes.
    read
        Reads the file.
    """
    foot = read(max(0, size - _FOOT), _FOOT)
    if not foot.endswith(_MAGIC):
        return True
    count, end = int.from_bytes(foot[32:40], "little"), size - _FOOT
    if not 0 < count <= end // _PAIR:
        return False
    first = end - count * _PAIR
    table = np.frombuffer(read(first, count * _PAIR), "<u8")
    is_table = bool((table[1:] > table[:-1]).all()) and int(table[-1]) <= first
    return is_table and _digest(table.reshape(-1, 2), read) == foot[:32]


def _digest(table: Table, read: Read) -> bytes:
    digest = hashlib.sha256(table.tobytes())
    for start, stop in table.tolist():
        digest.update(read(start, stop - start))
    return digest.digest()
