"""Decodes crops once, into plain arrays: in memory that processes share, or in files mapped into memory.

A decoded file is ``<folder>/<key>/ch_00.uint8.npy``, uncompressed. The key is the SHA-256 of the crop's file, so a
decoded file is found again wherever the crop's file lies; for a file without a manifest the key is made of its path,
size and time stamp. A decoded file appears by a rename, synced and complete, so two processes may write the same one at
once. Decoded files may be deleted at any time; processes that have them mapped can go on reading. If a new one would
exceed the limit, those used longest ago are deleted first. Temporary files are deleted after a day.
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
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import numpy as np

from prismcache.crop.boxes import Shape3, Slices3, shifted
from prismcache.disk import disk_errors, stamp_of
from prismcache.errors import NoSpaceError, StorageError
from prismcache.layout import manifest_of
from prismcache.numbers import format_bytes
from prismcache.torch.hdf5_chunks import CropReader, FilesReader
from prismcache.torch.memory import MemoryFile

Array = np.ndarray[Any, np.dtype[Any]]

_SLAB_BYTES = 32 << 20  # bytes that are decoded at a time
_RESERVE = 1_000_000_000  # bytes that are left free on the disk
_TEMPORARY_SECONDS = 86_400.0
_ALIGNED = 64  # bytes; each dataset in shared memory begins at a multiple of this number


@dataclass(frozen=True)
class Layout:
    """The part of a crop that is decoded.

    Attributes
    ----------
    shape
        (Z, Y, X) of the labels, in voxels.
    dtypes
        The dtype of each dataset, by its name.
    before, after
        Voxels (Z, Y, X) of raw beyond the labels: before their first voxel, and after their last one.
    files
        The file of each dataset that does not lie in the crop's file: those of products.
    boxes
        The box of each further array, in voxels counted from the labels' first one.
    """

    shape: Shape3
    dtypes: Mapping[str, str]
    before: Shape3 = (0, 0, 0)
    after: Shape3 = (0, 0, 0)
    files: Mapping[str, Path] = field(default_factory=dict)
    boxes: Mapping[str, Slices3] = field(default_factory=dict)

    def box(self, name: str) -> Slices3:
        """Return the decoded box of a dataset, in voxels counted from the labels' first one."""
        if name in self.boxes:
            return self.boxes[name]
        if name.startswith("raw/"):
            return grown(self.shape, self.before, self.after)
        return grown(self.shape, (0, 0, 0), (0, 0, 0))

    def shape_of(self, name: str) -> Shape3:
        """Return the shape (Z, Y, X) of a decoded dataset."""
        z, y, x = (part.stop - part.start for part in self.box(name))
        return z, y, x

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each dataset."""
        return {name: math.prod(self.shape_of(name)) * np.dtype(dtype).itemsize for name, dtype in self.dtypes.items()}

    @property
    def size(self) -> int:
        """The bytes of all datasets."""
        return sum(self.sizes.values())


def grown(shape: Shape3, before: Shape3, after: Shape3) -> Slices3:
    """Return the box of the labels, larger by `before` and `after` voxels (Z, Y, X)."""
    z, y, x = (slice(-b, extent + a) for b, extent, a in zip(before, shape, after, strict=True))
    return z, y, x


def labels_dtype(largest: int) -> str:
    """Return the smallest dtype that holds labels from 0 to `largest`."""
    return next(name for name in ("uint8", "uint16", "uint32") if largest <= np.iinfo(name).max)


class ArrayReader:
    """Reads boxes of arrays in memory, as `CropReader` does of a file.

    Parameters
    ----------
    arrays
        The decoded datasets, by name.
    layout
        The box of each.
    """

    def __init__(self, arrays: Mapping[str, Array], layout: Layout) -> None:
        self._arrays, self._layout = arrays, layout

    def read(self, name: str, box: Slices3, out: Array, ids: Array | None = None) -> None:
        """Read a box of a dataset; see `CropReader.read`."""
        voxels = self._arrays[name][shifted(box, self._layout.box(name))]
        out[...] = voxels if ids is None else ids[voxels]

    def close(self) -> None:
        """Drop the arrays; the memory is freed with the last array that refers to it."""
        self._arrays = {}


class SharedMemory:
    """A crop's voxels in memory that a process shares with those it forks or spawns.

    The memory has no name, so none is left over when the processes end.

    Parameters
    ----------
    layout
        The largest part of a crop that the memory will hold; all voxels are 0 at first.
    """

    def __init__(self, layout: Layout) -> None:
        size = layout.size + _ALIGNED * len(layout.dtypes)
        linux = hasattr(os, "memfd_create")
        self._memory: Any = MemoryFile(size) if linux else RawArray(ctypes.c_uint8, size)

    def fill(self, reader: CropReader | FilesReader, layout: Layout) -> None:
        """Decode all that the layout names."""
        for name, array in self.arrays(layout).items():
            for box in slabs(layout.box(name), array.itemsize):
                reader.read(name, box, array[shifted(box, layout.box(name))])

    def arrays(self, layout: Layout) -> dict[str, Array]:
        """Return the datasets, each (Z, Y, X), as the layout places them."""
        found: dict[str, Array] = {}
        first = 0
        shared = self._memory.map if isinstance(self._memory, MemoryFile) else self._memory
        memory = np.frombuffer(shared, np.uint8)
        for name, size in layout.sizes.items():
            values = memory[first : first + size].view(layout.dtypes[name])
            found[name] = values.reshape(layout.shape_of(name))
            first += -(-size // _ALIGNED) * _ALIGNED
        return found


class Sidecars:
    """A folder of decoded datasets.

    Parameters
    ----------
    folder
        A folder on a local disk; made when it is needed.
    limit
        Bytes that the folder may take; None leaves 1 GB of the disk free.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder = folder
        self._limit = limit

    def missing(self, path: Path, layout: Layout) -> dict[str, int]:
        """Return the bytes of the datasets of a crop's file that are not decoded yet, by name."""
        return {name: size for name, size in layout.sizes.items() if not self._is_there(path, name, layout)}

    def make_room(self, needed: int, kept: Sequence[tuple[Path, Layout]]) -> None:
        """Delete the datasets used longest ago until `needed` more bytes are within the limit, but none of `kept`.

        Raises
        ------
        NoSpaceError
            If there would not be room even then, in which case nothing is deleted; the message gives the numbers.
        """
        for temporary in self._folder.glob("*/.*.tmp"):
            with suppress(OSError):
                if time.time() - temporary.stat().st_mtime > _TEMPORARY_SECONDS:
                    temporary.unlink()
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
            with suppress(OSError):  # another process may have deleted it
                place.unlink()
                room += status.st_size
                place.parent.rmdir()

    def arrays(
        self, path: Path, layout: Layout, open_reader: Callable[[], CropReader | FilesReader]
    ) -> dict[str, Array]:
        """Return the datasets of a crop's file, each (Z, Y, X), mapped; those that are missing are decoded first.

        Parameters
        ----------
        path, layout
            The crop's file, and the part of it that is decoded.
        open_reader
            Opens the file; called only if a dataset is missing.

        Raises
        ------
        StorageError
            If the folder cannot be written, or a decoded file is damaged.
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
            if found[name].shape != layout.shape_of(name):
                raise StorageError(
                    f"{place} is not a decoded crop of shape {layout.shape_of(name)}", remedy="Delete it."
                )
        return found

    def _write(self, place: Path, name: str, layout: Layout, reader: CropReader | FilesReader) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
        dtype = np.dtype(layout.dtypes[name])
        try:
            with temporary.open("xb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": dtype.str, "fortran_order": False, "shape": layout.shape_of(name)}
                )
                for box in slabs(layout.box(name), dtype.itemsize):
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
        around = ".ctx" if name.startswith("raw/") and any(layout.before + layout.after) else ""
        if around:
            around += "-".join(map(str, layout.before + layout.after))
        folder = self._folder / content_key(layout.files.get(name, path))
        return folder / f"{name.rpartition('/')[2]}.{layout.dtypes[name]}{around}.npy"

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


def slabs(box: Slices3, itemsize: int) -> Iterator[Slices3]:
    """Iterate over boxes of whole planes, each of some 32 MB, that together are `box`."""
    z, y, x = box
    plane = (y.stop - y.start) * (x.stop - x.start) * itemsize
    planes = max(16, _SLAB_BYTES // plane // 16 * 16)  # whole rows of chunks where there is no context
    for start in range(z.start, z.stop, planes):
        yield slice(start, min(start + planes, z.stop)), y, x


def content_key(path: Path) -> str:
    """Return a name for the content of a crop's file: the manifest's SHA-256, else of path, size and time stamp."""
    with disk_errors(path):
        stamp = stamp_of(path.stat())
    manifest = manifest_of(path)
    if manifest is not None and (manifest.size, manifest.stamp.mtime_ns) == (stamp.size, stamp.mtime_ns):
        return manifest.sha256[:32]
    return "by-stamp-" + hashlib.sha256(f"{path}|{stamp.size}|{stamp.mtime_ns}".encode()).hexdigest()[:32]
