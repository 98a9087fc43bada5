"""Write a crop's HDF5 file: the same bytes for the same input, and no crash of HDF5 on a full disk.

HDF5 may crash the process when a write fails. It therefore writes through a `Sink` that never fails towards HDF5:
it keeps the first error, drops what comes after, and raises once HDF5 has closed the file.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from prismcache.crop.seal import seal_of
from prismcache.disk import storage_error
from prismcache.errors import StorageError
from prismcache.layout import AXIS_NAMES, LABELS_IDS, UNITS, VOXEL_UNITS
from prismcache_service.pipeline.codec import EncodedChunk
from prismcache_service.pipeline.plan import CropPlan
from prismcache_service.pipeline.system import call_if_there

_SYNC_FILE_RANGE_WRITE = 2  # <linux/fs.h>
_WRITE_BYTES = 1 << 20
_FLUSH_BYTES = 64 << 20  # start writing back early, so that the last fsync is short


class Sink(io.RawIOBase):
    """The file object that HDF5 writes to."""

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._position = 0
        self._size = 0
        self._unflushed = 0
        self.error: OSError | None = None
        self.fd = -1  # a sink whose file cannot be opened is closed all the same
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self._attempt(lambda: self._write_all(view))
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        os.lseek(self.fd, self._position, os.SEEK_SET)
        data = os.read(self.fd, len(view))
        view[:] = data.ljust(len(view), b"\0")  # what a failed write dropped reads as zeros
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        self._size = self._position if size is None else size
        self._attempt(lambda: os.ftruncate(self.fd, self._size))
        return self._size

    def raise_error(self) -> None:
        """Raise the first error of any operation so far."""
        if self.error is not None:
            raise storage_error(self.error, self._path) from self.error

    def sync(self) -> None:
        """Put everything on the disk."""
        self._attempt(lambda: os.fsync(self.fd))
        self.raise_error()

    def close(self) -> None:
        if not self.closed and self.fd >= 0:
            os.close(self.fd)
        super().close()

    def _write_all(self, view: memoryview) -> None:
        os.lseek(self.fd, self._position, os.SEEK_SET)
        done = 0
        while done < len(view):
            done += os.write(self.fd, view[done:])
        self._unflushed += done
        if self._unflushed >= _FLUSH_BYTES:
            start_writeback(self.fd, self._size - self._unflushed)
            self._unflushed = 0

    def _attempt(self, operation: Any) -> None:
        if self.error is None:
            try:
                operation()
            except OSError as error:
                self.error = error


class _Gathered(io.BufferedRandom):
    """Gathers what HDF5 writes one after the other, a chunk at a time: a few large writes cost half as much."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and offset == self.tell():
            return offset  # the base class would write what it has, and HDF5 seeks before each chunk
        return super().seek(offset, whence)


def start_writeback(fd: int, start: int) -> None:
    """Have the system begin to write a file's pages from `start` on to the disk, without waiting for it.

    They stay in memory, where the file is hashed and first trained from. Systems other than Linux begin when it suits
    them.
    """
    call_if_there("sync_file_range", fd, ctypes.c_int64(start), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


class SafeFile:
    """An HDF5 file while it is made; used from one thread at a time. Leave it through ``with``.

    `shapes` has the shape (Z, Y, X) of each chunked dataset, in voxels, by its name. Every method raises `StorageError`
    if the disk refused this or an earlier write (`NoSpaceError` when it is full).
    """

    def __init__(self, path: Path, attributes: Mapping[str, Any], mode: int) -> None:
        self._path = path
        try:
            self._sink = Sink(path, mode)
        except OSError as error:
            raise storage_error(error, path) from error
        self._buffered = _Gathered(self._sink, _WRITE_BYTES)
        self._file = h5py.File(self._buffered, "w", libver="earliest")
        self._datasets: dict[str, h5py.Dataset] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        try:
            self._file.attrs.update(attributes)
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # HDF5 crashes the process at its end if a file is left open
        self._buffered.close()

    def create(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any,
        *,
        chunk: Sequence[int],
        offset: Sequence[int],
        resolution: Sequence[int],
        has_voxel_size: bool = True,
        exact_nm: Mapping[str, Sequence[float] | None] | None = None,
    ) -> None:
        """Create a dataset in gzip chunks; shape and chunk are (Z, Y, X) in voxels, offset and resolution in nm.

        Without a voxel size, offset and resolution are in voxels. `exact_nm` are float attributes in nm, by name.
        """
        dataset = self._file.create_dataset(
            name, shape=shape, dtype=dtype, chunks=tuple(chunk), compression="gzip", track_times=False
        )
        dataset.attrs["offset"] = np.array(offset, np.int64)
        dataset.attrs["resolution"] = np.array(resolution, np.int64)
        dataset.attrs["voxel_size"] = np.array(resolution, np.int64)
        dataset.attrs["axis_names"] = list(AXIS_NAMES)
        dataset.attrs["units"] = list(UNITS if has_voxel_size else VOXEL_UNITS)
        for key, exact in (exact_nm or {}).items():
            if exact is not None:
                dataset.attrs[key] = np.array(exact, np.float64)
        self._datasets[name], self.shapes[name] = dataset, tuple(shape)

    def chunk(self, name: str) -> tuple[int, ...]:
        """Return the shape (Z, Y, X) of a dataset's chunks, in voxels."""
        return tuple(self._datasets[name].chunks)

    def write(self, name: str, chunks: Sequence[EncodedChunk]) -> None:
        """Write deflated chunks of one dataset."""
        dataset = self._datasets[name]
        for chunk in chunks:
            dataset.id.write_direct_chunk(chunk.origin, chunk.data)
        self._sink.raise_error()

    def close_file(self) -> int:
        """Close the HDF5 file and seal it: its bytes are final. The descriptor is returned, open until `__exit__`."""
        self._file.close()
        self._buffered.flush()
        self._sink.raise_error()
        with _reading_back(self._path):
            seal = seal_of(self._path)
        self._sink.seek(0, io.SEEK_END)
        self._sink.write(seal)
        self._sink.raise_error()
        return self._sink.fd

    def sync(self) -> None:
        """Put everything on the disk."""
        self._sink.sync()


class CropWriter(SafeFile):
    """A crop's file while it is made, with the datasets that a plan says."""

    def __init__(self, path: Path, plan: CropPlan, attributes: Mapping[str, Any], mode: int) -> None:
        super().__init__(path, attributes, mode)
        place = plan.alignment
        try:
            for dataset in plan.datasets():
                self.create(
                    dataset.name,
                    dataset.array.region.shape[1:],
                    dataset.array.dtype,
                    chunk=dataset.array.chunk,
                    offset=dataset.offset,
                    resolution=place.resolution,
                    has_voxel_size=place.has_voxel_size,
                    exact_nm={"offset_nm": dataset.offset_nm, "voxel_size_nm": place.voxel_size_nm},
                )
            self._sink.raise_error()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def write_ids(self, labels_ids: np.ndarray[Any, Any]) -> None:
        """Write the table of original ids, (n+1,) uint64, with its SHA-256 for readers; errors as in `write`."""
        table = self._file.create_dataset(LABELS_IDS, data=labels_ids, compression="gzip", track_times=False)
        table.attrs["sha256"] = hashlib.sha256(labels_ids.astype("<u8").tobytes()).hexdigest()
        self._sink.raise_error()


def check_file(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Reopen a finished file and see that every chunk of every dataset is there.

    Raise `StorageError` if the file does not hold what was written: `shapes` are those of `SafeFile`.
    """
    with _reading_back(path), h5py.File(path, "r", locking=False) as file:
        for name, shape in shapes.items():
            dataset = file[name]
            count = math.prod(-(-n // c) for n, c in zip(shape, dataset.chunks, strict=True))
            if dataset.shape != tuple(shape) or dataset.id.get_num_chunks() != count:
                raise StorageError(f"{path}: dataset {name} reads back incomplete")


@contextmanager
def _reading_back(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:  # HDF5 raises RuntimeError when a later read, or closing, fails
        raise StorageError(f"{path}: the file just written cannot be read: {error}") from error
