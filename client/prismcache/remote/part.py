"""A file on its way: written to by one process only, hashed as it grows, put in place when it is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from prismcache.disk import HASH_BYTES
from prismcache.errors import NoSpaceError
from prismcache.schema import CropFile
from prismcache.units import format_bytes

MARGIN = 16 << 20
"""Bytes that a download leaves free."""


class Part:
    """A part of `file` beside `target`, under a name of its own.

    Nobody else ever writes to it, so what was hashed is what is put in place, whatever other processes do. What an
    earlier one left is copied, since its writer may yet live. All methods block and raise `OSError`.

    Parameters
    ----------
    file
        Size and SHA-256 to reach.
    target
        Where the whole goes.
    """

    def __init__(self, file: CropFile, target: Path) -> None:
        self._file = file
        self._target = target
        self._pattern = f".{target.name}.{file.sha256[:16]}.*.part"
        self.path = target.with_name(self._pattern.replace("*", uuid.uuid4().hex))
        self._digest = hashlib.sha256()
        self.size = 0
        self._done = False

    def __enter__(self) -> Self:
        self._output = self.path.open("xb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.close()
        if self._done or not self.size or isinstance(error, OSError):  # a full disk needs the room
            with suppress(OSError):
                self.path.unlink()

    def take_over(self) -> None:
        """Begin with the longest part that an earlier process left, and delete those."""
        left = [path for path in self._target.parent.glob(self._pattern) if path != self.path]
        left.sort(key=_size)
        if left:
            with suppress(FileNotFoundError), left[-1].open("rb", buffering=0) as earlier:
                while self.size < self._file.size and (data := earlier.read(HASH_BYTES)):
                    self.append(data)
        for path in left:
            with suppress(OSError):
                path.unlink()

    def append(self, data: bytes | bytearray) -> None:
        """Add what came; what is more than the file has is dropped."""
        rest = whole = memoryview(data)[: self._file.size - self.size]
        while rest:
            rest = rest[self._output.write(rest) :]
        self._digest.update(whole)
        self.size += len(whole)

    def restart(self) -> None:
        """Forget what came so far."""
        self._output.seek(0)
        self._output.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def is_right(self) -> bool:
        """Whether what came is the file, whole."""
        return self.size == self._file.size and self._digest.hexdigest() == self._file.sha256

    def publish(self) -> os.stat_result:
        """Put the whole file in place, for good; answers what the system says of it.

        Raises
        ------
        FileNotFoundError
            If another process believed this one dead and took the part over.
        """
        os.fsync(self._output.fileno())
        self._output.close()
        self.path.replace(self._target)
        self._done = True
        return self._target.stat()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def require_space(file: CropFile, folder: Path) -> None:
    """Refuse a download that the disk has no room for.

    Raises
    ------
    NoSpaceError
        Names what is needed and what is there.
    OSError
        If the disk cannot be asked.
    """
    free = shutil.disk_usage(folder).free
    if free < file.size + MARGIN:
        raise NoSpaceError(
            f"{folder}: crop {file.split.value}/{file.crop} needs {format_bytes(file.size)}, "
            f"{format_bytes(free)} are free",
            remedy="Free space, or point PRISMCACHE_DOWNLOADS at a larger disk.",
        )
