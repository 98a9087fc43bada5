"""A crop's HDF5 file, opened for reading. Here errors of h5py and the system become prismcache's. Needs h5py.

HDF5 reads through a `SteadyFile` rather than the path. Three things follow: a read that fails for a moment is retried,
the system's error number reaches the message, and other libraries of the same process (torch_em) may open the file too,
before or after, with or without HDF5's locks.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from prismcache.catalog import published
from prismcache.errors import CropCorruptError, CropNotCachedError, MissingExtraError, StorageError
from prismcache.layout import LABELS, LABELS_IDS
from prismcache.splits import SplitEntry

try:
    import h5py
    import numpy as np

    from prismcache.crop.seal import is_intact
except ImportError as error:
    raise MissingExtraError(
        "reading crops needs h5py, which is not installed", remedy='pip install "prismcache[torch]"'
    ) from error

Result = TypeVar("Result")

_ATTEMPTS = 4
_WAIT = wait_exponential(multiplier=0.05, max=1.0)  # seconds: 0.05, 0.1, 0.2
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class SteadyFile:
    """A file opened for reading. A read that the system refuses is retried three times, with the file opened anew.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OSError
        If the file cannot be opened, or a read fails four times in a row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0
        for attempt in _retrying():
            with attempt:
                self._file = path.open("rb", buffering=0)
        self.close = weakref.finalize(self, _close, self._file)
        self._stamp = self._stamp_of(self._file.fileno())

    def _retried(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except OSError:
            for attempt in _retrying():
                with attempt:
                    self._open_anew()
                    return read()
        raise AssertionError("tenacity raises the last error")

    def _open_anew(self) -> None:
        """Put a new handle in place of one that a network file system calls stale, under the same number.

        Other threads may be reading, so the number must never be free.
        """
        with self.path.open("rb", buffering=0) as fresh:
            if self._stamp_of(fresh.fileno()) != self._stamp:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # another file lies there now: offsets differ
            os.dup2(fresh.fileno(), self._file.fileno(), inheritable=False)

    @staticmethod
    def _stamp_of(descriptor: int) -> tuple[int, int]:
        status = os.fstat(descriptor)
        return status.st_size, status.st_mtime_ns

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to `size` bytes from `offset` (bytes from the start); for any number of threads, not on Windows."""
        return self._retried(lambda: os.pread(self._file.fileno(), size, offset))

    @property
    def size(self) -> int:
        """Length of the file in bytes, when it was opened."""
        return self._stamp[0]

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; moves the place of the next `readinto`."""
        self.seek(offset)
        return self.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the place of the next `readinto`, as io's files do."""
        self._position = offset + (self._stamp[0] if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """Return the place of the next `readinto`, as io's files do."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer from the current place, as io's files do."""

        def read() -> int:
            self._file.seek(self._position)
            return self._file.readinto(buffer) or 0

        count = self._retried(read)
        self._position += count
        return count

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes from the current place, as io's files do."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])


def _close(file: io.FileIO) -> None:
    with suppress(OSError):  # of a file that was only read nothing can be lost
        file.close()


def _retrying() -> Retrying:
    kinds = retry_if_exception_type(OSError) & retry_if_not_exception_type(_FINAL)
    return Retrying(stop=stop_after_attempt(_ATTEMPTS), wait=_WAIT, retry=kinds, reraise=True)


@contextmanager
def read_errors(path: Path, what: str = "") -> Iterator[None]:
    """Raise what h5py or the system raises in the block as one of prismcache's errors.

    Parameters
    ----------
    path
        The crop's file.
    what
        What is read of it, for the message; empty for the file itself.

    Raises
    ------
    CropNotCachedError
        If there is no such file.
    StorageError
        If the system refuses, with its error number; the file may be good.
    CropCorruptError
        If HDF5 refuses the content.
    """
    subject = f"{path}: {what}" if what else str(path)
    try:
        yield
    except _FINAL as error:
        raise CropNotCachedError(f"there is no file {path}") from error
    except OSError as error:
        if error.errno is None:
            raise CropCorruptError(f"{subject} cannot be read as HDF5: {error}") from error
        raise StorageError(
            f"{subject} cannot be read: {os.strerror(error.errno)} (errno {error.errno})",
            remedy="Try again. If that does not help, look at the disk, the mount and the permissions of the file.",
        ) from error
    except (RuntimeError, KeyError, OverflowError) as error:
        raise CropCorruptError(f"{subject} cannot be read as HDF5: {error}") from error


class CropDataset(h5py.Dataset):  # type: ignore[misc]  # h5py is Any where mypy runs
    """A dataset of a crop's file: h5py's, except that reading raises the errors of `read_errors`."""

    def __init__(self, dataset: h5py.Dataset, path: Path) -> None:
        super().__init__(dataset.id, readonly=True)
        self._path = path

    def __getitem__(self, args: Any, new_dtype: Any = None) -> Any:
        """Return the voxels that an index of h5py selects."""
        with read_errors(self._path, self.name):
            return super().__getitem__(args, new_dtype)

    def read_direct(self, dest: Any, source_sel: Any = None, dest_sel: Any = None) -> None:
        """Read into an array, as h5py does."""
        with read_errors(self._path, self.name):
            super().read_direct(dest, source_sel, dest_sel)


def open_file(path: Path, needed: Sequence[str] = ("raw", LABELS), **options: Any) -> h5py.File:
    """Open a crop's file for reading.

    Parameters
    ----------
    path
        The file.
    needed
        Names of groups or datasets without which the file is refused.
    **options
        For `h5py.File`.

    Raises
    ------
    CropNotCachedError, StorageError, CropCorruptError
        As `read_errors` raises them, and `CropCorruptError` if the file does not match its seal, or lacks one of
        `needed`.
    """
    with read_errors(path):
        steady = SteadyFile(path)
        if not is_intact(steady.size, steady.read_at):  # before HDF5, which may crash on damage, or not notice it
            raise CropCorruptError(f"{path} is damaged: its HDF5 structures do not match their checksum")
        file = h5py.File(steady, "r", **options)  # h5py keeps `steady`, which closes its file when nothing refers to it
        if all(name in file for name in needed):
            return file
    file.close()
    raise CropCorruptError(f"{path} is not a crop: it lacks {' or '.join(map(repr, needed))}")


def open_crop(path: Path) -> h5py.File:
    """Open a crop's file, which has raw, and labels unless its split has none; errors as those of `open_file`."""
    file = open_file(path, ("raw",))
    try:
        if LABELS in file:
            return file
        with read_errors(path, "attributes"):
            name = str(file.attrs.get("split", ""))
        entry = entry_of(file, path) or published().get(name)
        if entry is not None and not entry.labels:
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    raise CropCorruptError(f"{path} is not a crop: it lacks {LABELS!r}")


def entry_of(file: h5py.File, path: Path) -> SplitEntry | None:
    """Return the catalog's entry that a file of a lab's own split carries; None where it carries none.

    Raises
    ------
    CropCorruptError
        If it cannot be read.
    """
    with read_errors(path, "attribute 'catalog'"):
        text = file.attrs.get("catalog")
    try:
        return None if text is None else SplitEntry.from_json(str(text))
    except ValueError as error:
        raise CropCorruptError(f"{path}: attribute 'catalog': {error}") from error


def open_dataset(file: h5py.File, name: str, path: Path) -> CropDataset:
    """Return a dataset of an open file.

    Raises
    ------
    CropCorruptError
        If the file has no dataset of this name, or HDF5 cannot open it.
    """
    with read_errors(path, name):
        found = file[name]
        if not isinstance(found, h5py.Dataset):
            raise CropCorruptError(f"{path} is not a crop: {name!r} is not a dataset")
        return CropDataset(found, path)


def read_ids(file: h5py.File, path: Path) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return the original ids, (n+1,) uint64.

    Raises
    ------
    CropCorruptError
        If the table does not match its checksum, or is not ascending from 0.
    """
    dataset = open_dataset(file, LABELS_IDS, path)
    ids: np.ndarray[Any, np.dtype[np.uint64]] = dataset[...]
    with read_errors(path, LABELS_IDS):
        expected = dataset.attrs.get("sha256")  # files of format 1 have none
    is_table = ids.ndim == 1 and ids.size > 0 and ids[0] == 0 and not (ids[1:] <= ids[:-1]).any()
    digest = hashlib.sha256(ids.astype("<u8").tobytes()).hexdigest()
    if not is_table or expected not in {None, digest}:
        raise CropCorruptError(
            f"{path}: the table {LABELS_IDS!r} is damaged",
            remedy="Run `prismcache verify`, then `prismcache ensure` makes the crop again.",
        )
    return ids
