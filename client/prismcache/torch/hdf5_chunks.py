"""Boxes of voxels out of a crop's file, fast: its deflated chunks are read as they lie and inflated by ISA-L.

HDF5 inflates with zlib, in one thread and under a lock. Here HDF5 is asked once where each chunk lies; then a read
needs neither HDF5 nor its locks, works in threads, and goes on after a fork. Where ISA-L is not installed, or a
dataset is stored another way than gzip chunks, h5py reads instead.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prismcache.crop import open_file
from prismcache.crop.boxes import Shape3, Slices3
from prismcache.crop.chunks import ChunkTable, chunk_table
from prismcache.errors import CropCorruptError

_ISAL: Any
try:
    from isal import isal_zlib as _ISAL  # noqa: N812 - the module, or nothing
except ImportError:  # h5py alone does
    _ISAL = None
_UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError) if _ISAL is None else (OSError, EOFError, _ISAL.error)

Array = np.ndarray[Any, np.dtype[Any]]

_READ_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_CHUNKS_A_THREAD = 4  # fewer are not worth waking one for
_CACHE_BYTES = 8 << 20  # of h5py's chunk cache, so that one row of chunks of a patch is inflated once


@dataclass(frozen=True)
class Piece:
    """What a box needs of one chunk: the chunk's place in the grid, the part in it, and where that lies in the box."""

    index: Shape3
    inside: Slices3
    target: Slices3


def pieces(box: Slices3, chunk: Shape3) -> list[Piece]:
    """The pieces that make up a box, in the order of the file.

    Parameters
    ----------
    box
        (Z, Y, X) in voxels, with start and stop.
    chunk
        Shape of a chunk.
    """
    axes = [list(_pieces_along(part.start, part.stop, size)) for part, size in zip(box, chunk, strict=True)]
    return [
        Piece((z[0], y[0], x[0]), (z[1], y[1], x[1]), (z[2], y[2], x[2]))
        for z, y, x in itertools.product(axes[0], axes[1], axes[2])
    ]


def _pieces_along(start: int, stop: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    for number in range(start // size, -(-stop // size)):
        first = number * size
        begin, end = max(start, first), min(stop, first + size)
        yield number, slice(begin - first, end - first), slice(begin - start, end - start)


class CropReader:
    """Reads boxes of one crop's file; for one process and the forks of it, any number of threads.

    Parameters
    ----------
    path
        The file.
    names
        The datasets that will be read.
    threads
        How many inflate one box.

    Raises
    ------
    PrismError
        As `prismcache.Crop`, if the file cannot be opened.
    """

    def __init__(self, path: Path, names: Iterable[str], threads: int = 1) -> None:
        self.path = path
        self._threads = threads
        self._fd = -1
        self._h5py: tuple[int, h5py.File] | None = None
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        with open_file(path) as file:
            if _ISAL is None or not hasattr(os, "pread"):
                self._tables: dict[str, ChunkTable | None] = dict.fromkeys(names)
            else:
                self._fd = os.open(path, _READ_FLAGS)
                self._tables = {name: chunk_table(file[name]) for name in names}

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        fd, self._fd = getattr(self, "_fd", -1), -1  # without: the file could not be opened
        if fd >= 0:
            os.close(fd)
        opened, self._h5py = getattr(self, "_h5py", None), None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()
        pool, self._pool = getattr(self, "_pool", None), None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown(wait=False)

    def read(self, name: str, box: Slices3, out: Array, ids: Array | None = None) -> None:
        """Read a box of a dataset.

        Parameters
        ----------
        name
            Of the dataset, such as ``labels``.
        box
            (Z, Y, X) in voxels, with start and stop, within the dataset.
        out
            Of the box's shape and any dtype: gets the voxels, cast.
        ids
            What to put in place of each value v: ``ids[v]``.

        Raises
        ------
        CropCorruptError
            If a chunk cannot be read or inflated; names it.
        """
        table = self._tables[name]
        if table is None:
            voxels = self._through_h5py(name, box)
            out[...] = voxels if ids is None else ids[voxels]
            return
        wanted = pieces(box, table.chunk)
        threads = min(self._threads, len(wanted) // _CHUNKS_A_THREAD)
        if threads < 2:
            self._fill(name, table, wanted, out, ids)
            return
        parts = [wanted[number::threads] for number in range(threads)]
        for _ in self._executor().map(lambda part: self._fill(name, table, part, out, ids), parts):
            pass

    def _fill(self, name: str, table: ChunkTable, wanted: Iterable[Piece], out: Array, ids: Array | None) -> None:
        for piece in wanted:
            part = self._chunk(name, table, piece.index)
            if part is None:
                out[piece.target] = 0
            else:
                voxels = part[piece.inside]
                out[piece.target] = voxels if ids is None else ids[voxels]

    def _chunk(self, name: str, table: ChunkTable, index: Shape3) -> Array | None:
        size = int(table.sizes[index])
        if size == 0:
            return None
        count = math.prod(table.chunk) * table.dtype.itemsize
        try:
            data = os.pread(self._fd, size, int(table.offsets[index]))
            inflated = _ISAL.decompress(data, 15, count)
        except _UNREADABLE as error:
            raise CropCorruptError(f"{self.path}: chunk {index} of {name} cannot be read: {error}") from error
        if len(inflated) != count:
            raise CropCorruptError(f"{self.path}: chunk {index} of {name} has {len(inflated)} bytes, not {count}")
        return np.frombuffer(inflated, table.dtype).reshape(table.chunk)

    def _through_h5py(self, name: str, box: Slices3) -> Array:
        if self._h5py is None or self._h5py[0] != os.getpid():  # HDF5's handles do not survive a fork
            self._h5py = os.getpid(), open_file(self.path, rdcc_nbytes=_CACHE_BYTES)
        try:
            voxels: Array = self._h5py[1][name][box]
        except OSError as error:
            raise CropCorruptError(f"{self.path}: {name} cannot be read: {error}") from error
        return voxels

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self._threads, thread_name_prefix="prismcache-inflate")
        return self._pool[1]
