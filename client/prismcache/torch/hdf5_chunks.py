"""Reads boxes of voxels from a crop's file, fast: its deflated chunks are read as they lie and inflated by ISA-L.

HDF5 inflates with zlib, in one thread and under a lock. Here HDF5 only says once where each chunk lies. After that a
read needs neither HDF5 nor its locks, works in threads, and works after a fork. h5py reads where ISA-L is not installed
or a dataset is not stored in gzip chunks.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prismcache.crop.boxes import Shape3, Slices3
from prismcache.crop.chunks import ChunkTable, chunk_table
from prismcache.crop.files import SteadyFile, open_dataset, open_file, read_errors
from prismcache.errors import CropCorruptError
from prismcache.layout import LABELS

_ISAL: Any
try:
    from isal import isal_zlib as _ISAL  # noqa: N812 - the module, or None
except ImportError:  # then h5py reads
    _ISAL = None

Array = np.ndarray[Any, np.dtype[Any]]

_CHUNKS_A_THREAD = 4  # waking a thread for fewer chunks costs more than it saves
_CACHE_BYTES = 8 << 20  # size of h5py's chunk cache: it holds a row of chunks, so that each is inflated once a patch


@dataclass(frozen=True)
class Piece:
    """The part of one chunk that a box needs.

    Attributes
    ----------
    index
        (z, y, x) of the chunk in the grid of chunks.
    inside, target
        Where the part lies in the chunk, and where in the box.
    """

    index: Shape3
    inside: Slices3
    target: Slices3


def pieces(box: Slices3, chunk: Shape3) -> list[Piece]:
    """Return the pieces that make up a box, in the order of the file.

    Parameters
    ----------
    box
        (Z, Y, X) in voxels, with start and stop.
    chunk
        Shape of a chunk.
    """
    axes: list[list[tuple[int, slice, slice]]] = [[], [], []]
    for axis, part, size in zip(axes, box, chunk, strict=True):
        for number in range(part.start // size, -(-part.stop // size)):
            first = number * size
            begin, end = max(part.start, first), min(part.stop, first + size)
            axis.append((number, slice(begin - first, end - first), slice(begin - part.start, end - part.start)))
    return [
        Piece((z[0], y[0], x[0]), (z[1], y[1], x[1]), (z[2], y[2], x[2]))
        for z, y, x in itertools.product(axes[0], axes[1], axes[2])
    ]


class CropReader:
    """Reads boxes of one crop's file, in any number of threads, in one process and in its forks.

    Parameters
    ----------
    path
        The file.
    names
        The datasets that will be read.
    threads
        How many threads inflate one box.
    before
        Voxels (Z, Y, X) of raw before the labels' first one, in a file with context.
    starts
        The first voxel (Z, Y, X) of each further array, counted from the labels' first one.

    Raises
    ------
    PrismError
        As `prismcache.Crop`, if the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        names: Iterable[str],
        threads: int = 1,
        before: Shape3 = (0, 0, 0),
        starts: Mapping[str, Shape3] | None = None,
    ) -> None:
        self.path = path
        self._before = before
        self._starts = starts or {}
        self._threads = threads
        self._h5py: tuple[int, h5py.File] | None = None
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._tables: dict[str, ChunkTable | None] = dict.fromkeys(names)
        self._needed = ("raw", LABELS) if LABELS in self._tables else tuple(self._tables)
        if _ISAL is None or not hasattr(os, "pread"):
            open_file(path, self._needed).close()  # raises now if the file cannot be read
            return
        with read_errors(path):
            self._bytes = SteadyFile(path)
        with open_file(path, self._needed) as file:
            for name in self._tables:
                dataset = open_dataset(file, name, path)
                with read_errors(path, name):
                    self._tables[name] = chunk_table(dataset)

    def close(self) -> None:
        """Close what this process has open; the reader cannot be used afterwards."""
        if hasattr(self, "_bytes"):
            self._bytes.close()
        if self._h5py is not None and self._h5py[0] == os.getpid():
            self._h5py[1].close()
        if self._pool is not None and self._pool[0] == os.getpid():
            self._pool[1].shutdown(wait=False)
        self._h5py = self._pool = None

    def read(self, name: str, box: Slices3, out: Array, ids: Array | None = None) -> None:
        """Read a box of a dataset into an array.

        Parameters
        ----------
        name
            Name of the dataset, such as ``labels``.
        box
            (Z, Y, X) in voxels counted from the labels' first one, with start and stop, within the dataset.
        out
            Array of the box's shape and any dtype; the voxels are cast to it.
        ids
            (n+1,): each value v is replaced by ``ids[v]``. None leaves the values.

        Raises
        ------
        CropCorruptError
            If a chunk cannot be inflated, or a value is larger than `ids` knows; the message names the chunk.
        StorageError
            If the system refuses to read, four times in a row.
        """
        if name.startswith("raw/"):
            z, y, x = (slice(part.start + b, part.stop + b) for part, b in zip(box, self._before, strict=True))
            box = z, y, x
        elif name in self._starts:
            z, y, x = (slice(part.start - s, part.stop - s) for part, s in zip(box, self._starts[name], strict=True))
            box = z, y, x
        table = self._tables[name]
        if table is None:
            if self._h5py is None or self._h5py[0] != os.getpid():  # HDF5's handles do not survive a fork
                self._h5py = os.getpid(), open_file(self.path, self._needed, rdcc_nbytes=_CACHE_BYTES)
            self._put(name, open_dataset(self._h5py[1], name, self.path)[box], out, ids)
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
                self._put(f"chunk {piece.index} of {name}", part[piece.inside], out[piece.target], ids)

    def _put(self, what: str, voxels: Array, out: Array, ids: Array | None) -> None:
        try:
            out[...] = voxels if ids is None else ids[voxels]
        except IndexError as error:
            raise CropCorruptError(f"{self.path}: {what} has a label without an original id") from error

    def _chunk(self, name: str, table: ChunkTable, index: Shape3) -> Array | None:
        size = int(table.sizes[index])
        if size == 0:
            return None
        count = math.prod(table.chunk) * table.dtype.itemsize
        what = f"chunk {index} of {name}"
        with read_errors(self.path, what):
            data = self._bytes.pread(size, int(table.offsets[index]))
        try:
            inflated = _ISAL.decompress(data, 15, count)
        except (EOFError, _ISAL.error) as error:
            raise CropCorruptError(f"{self.path}: {what} cannot be inflated: {error}") from error
        if len(inflated) != count:
            raise CropCorruptError(f"{self.path}: {what} has {len(inflated)} bytes, not {count}")
        return np.frombuffer(inflated, table.dtype).reshape(table.chunk)

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self._threads, thread_name_prefix="prismcache-inflate")
        return self._pool[1]


class FilesReader:
    """Reads datasets that lie in several files, as `CropReader` reads those of one.

    Parameters
    ----------
    readers
        The reader of each dataset, by the dataset's name.
    """

    def __init__(self, readers: Mapping[str, CropReader]) -> None:
        self._readers = readers

    def read(self, name: str, box: Slices3, out: Array, ids: Array | None = None) -> None:
        """Read a box of a dataset; see `CropReader.read`."""
        self._readers[name].read(name, box, out, ids)

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers.values():
            reader.close()
