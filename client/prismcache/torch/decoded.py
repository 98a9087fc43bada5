"""Crops decoded once: their voxels as plain arrays, in memory that processes share or in files mapped into memory.

Sidecars lie in ``<folder>/<key>/ch_00.npy``, uncompressed. The key is the SHA-256 of the crop's file, so that what is
decoded is found again wherever the file lies; a file without a manifest goes by its path, size and time stamp. A
sidecar appears by a rename, synced and complete, so two processes may make the same one at once. None is ever needed:
they may be deleted at any time, and those that are mapped stay readable. Where a limit would be passed, those used
longest ago are deleted first; temporary files go after a day.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import numpy as np

from prismcache.crop import manifest_of
from prismcache.crop.boxes import Shape3, Slices3
from prismcache.disk import disk_errors, stamp_of
from prismcache.errors import NoSpaceError, StorageError
from prismcache.torch.hdf5_chunks import CropReader
from prismcache.torch.memory import MemoryFile
from prismcache.units import format_bytes

Array = np.ndarray[Any, np.dtype[Any]]

_SLAB_BYTES = 32 << 20  # what is decoded at a time
_RESERVE = 1_000_000_000  # bytes that a disk keeps free
_TEMPORARY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Layout:
    """What is decoded of a crop: the shape, (Z, Y, X) in voxels, and the dtype of each dataset by its name."""

    shape: Shape3
    dtypes: Mapping[str, str]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each dataset."""
        return {name: math.prod(self.shape) * np.dtype(dtype).itemsize for name, dtype in self.dtypes.items()}

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(self.sizes.values())


def labels_dtype(largest: int) -> str:
    """The smallest dtype that holds labels from 0 to `largest`."""
    return next(name for name in ("uint8", "uint16", "uint32") if largest <= np.iinfo(name).max)


class ArrayReader:
    """Reads boxes of arrays in memory, as `CropReader` does of a file."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays

    def read(self, name: str, box: Slices3, out: Array, ids: Array | None = None) -> None:
        """Read a box of a dataset; see `CropReader.read`."""
        voxels = self._arrays[name][box]
        out[...] = voxels if ids is None else ids[voxels]

    def close(self) -> None:
        """Forget the arrays; memory and maps go with the last array that shows them."""
        self._arrays = {}


class SharedMemory:
    """A crop's voxels in memory that a process shares with those it forks or spawns; nameless, so never left over.

    Parameters
    ----------
    layout
        What it will hold; all 0 at first.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        linux = hasattr(os, "memfd_create")
        self._memory: Any = MemoryFile(layout.size) if linux else RawArray(ctypes.c_uint8, layout.size)

    def fill(self, reader: CropReader) -> None:
        """Decode everything."""
        for name, array in self.arrays().items():
            for box in slabs(self._layout.shape, array.itemsize):
                reader.read(name, box, array[box])

    def arrays(self) -> dict[str, Array]:
        """The datasets, each (Z, Y, X)."""
        found: dict[str, Array] = {}
        first = 0
        shared = self._memory.map if isinstance(self._memory, MemoryFile) else self._memory
        memory = np.frombuffer(shared, np.uint8)
        for name, size in sorted(self._layout.sizes.items(), key=lambda item: -item[1]):  # so that all are aligned
            values = memory[first : first + size].view(self._layout.dtypes[name])
            found[name] = values.reshape(self._layout.shape)
            first += size
        return found


class Sidecars:
    """A folder of decoded datasets.

    Parameters
    ----------
    folder
        On a local disk; made when it is needed.
    limit
        Bytes that it may take; None leaves 1 GB of the disk free.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder = folder
        self._limit = limit

    def missing(self, path: Path, layout: Layout) -> dict[str, int]:
        """Bytes of the datasets of a crop's file that are not there yet, by name."""
        return {name: size for name, size in layout.sizes.items() if not self._is_there(path, name, layout)}

    def make_room(self, needed: int, kept: Sequence[tuple[Path, Layout]]) -> None:
        """Delete what was used longest ago until `needed` more bytes are within the limit, but nothing of `kept`.

        Raises
        ------
        NoSpaceError
            If they would not be; gives the numbers.
        """
        self._sweep_temporaries()
        ours = {self._place(path, name, layout) for path, layout in kept for name in layout.dtypes}
        others = {place: place.stat() for place in self._all() if place not in ours}
        room = self._room()
        if room + sum(status.st_size for status in others.values()) < needed:
            raise NoSpaceError(
                f'cache="mmap" needs {format_bytes(needed)} more in {self._folder}, '
                f"where there is room for {format_bytes(max(room, 0))}",
                remedy="Take fewer crops or channels, raise cache_limit, or point PRISMCACHE_DECODED at a larger disk.",
            )
        for place, status in sorted(others.items(), key=lambda item: item[1].st_mtime):
            if room >= needed:
                break
            with suppress(OSError):  # another process may be at it
                place.unlink()
                room += status.st_size
                place.parent.rmdir()

    def arrays(self, path: Path, layout: Layout, open_reader: Callable[[], CropReader]) -> dict[str, Array]:
        """The datasets of a crop's file, each (Z, Y, X), mapped; decoded first where they are missing.

        Parameters
        ----------
        path, layout
            Of the crop.
        open_reader
            Opens its file, where that is needed.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        found: dict[str, Array] = {}
        for name in layout.dtypes:
            place = self._place(path, name, layout)
            if not self._is_there(path, name, layout):
                with disk_errors(place):
                    self._write(place, name, layout, open_reader())
            with suppress(OSError):
                os.utime(place)
            try:
                found[name] = np.load(place, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise StorageError(f"{place} cannot be mapped: {error}", remedy="Delete it.") from error
            if found[name].shape != layout.shape:
                raise StorageError(f"{place} is no decoded crop of shape {layout.shape}", remedy="Delete it.")
        return found

    def _write(self, place: Path, name: str, layout: Layout, reader: CropReader) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
        dtype = np.dtype(layout.dtypes[name])
        try:
            with temporary.open("xb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": dtype.str, "fortran_order": False, "shape": layout.shape}
                )
                for box in slabs(layout.shape, dtype.itemsize):
                    slab = np.empty([part.stop - part.start for part in box], dtype)
                    reader.read(name, box, slab)
                    file.write(slab.data)
                file.flush()
                os.fsync(file.fileno())  # a rename may reach the disk before what was written
            temporary.replace(place)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _is_there(self, path: Path, name: str, layout: Layout) -> bool:
        try:
            return self._place(path, name, layout).stat().st_size >= layout.sizes[name]
        except OSError:
            return False

    def _place(self, path: Path, name: str, layout: Layout) -> Path:
        return self._folder / content_key(path) / f"{name.removeprefix('raw/')}.{layout.dtypes[name]}.npy"

    def _all(self) -> Iterator[Path]:
        return self._folder.glob("*/*.npy")

    def _room(self) -> int:
        folder = self._folder
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free - _RESERVE
        if self._limit is None:
            return free
        return min(free, self._limit - sum(place.stat().st_size for place in self._all()))

    def _sweep_temporaries(self) -> None:
        for temporary in self._folder.glob("*/.*.tmp"):
            with suppress(OSError):
                if time.time() - temporary.stat().st_mtime > _TEMPORARY_SECONDS:
                    temporary.unlink()


def slabs(shape: Shape3, itemsize: int) -> Iterator[Slices3]:
    """Boxes of whole planes that together are a crop, each of some 32 MB."""
    planes = max(16, _SLAB_BYTES // (shape[1] * shape[2] * itemsize) // 16 * 16)  # rows of chunks, each inflated once
    for start in range(0, shape[0], planes):
        yield slice(start, min(start + planes, shape[0])), slice(0, shape[1]), slice(0, shape[2])


def content_key(path: Path) -> str:
    """What names the content of a crop's file: its SHA-256 from the manifest, else its path, size and time stamp."""
    with disk_errors(path):
        stamp = stamp_of(path.stat())
    manifest = manifest_of(path)
    if manifest is not None and (manifest.size, manifest.stamp.mtime_ns) == (stamp.size, stamp.mtime_ns):
        return manifest.sha256[:32]
    return "by-stamp-" + hashlib.sha256(f"{path}|{stamp.size}|{stamp.mtime_ns}".encode()).hexdigest()[:32]
