"""Fetched objects that are needed again: kept, still compressed, in an unnamed file beside the target.

Labels are read twice (ids first, then numbers), and so is a chunk that crosses two columns of blocks. Keeping the
compressed bytes means that every object is fetched once and memory stays bounded. Labels' runs are kept beside them.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from prismcache.disk import TEMPORARY, storage_error
from prismcache.errors import StorageError
from prismcache_service.pipeline.codec import Bytes, ScratchPad

_scratch = ScratchPad()


class Spool:
    """Compressed objects by key; safe to use from several threads.

    The spool lies beside the unfinished file `target`. It has no name there and is gone when closed, or when the
    process dies. Where the file system needs a name for a moment, the name begins as the target's does, so that a sweep
    knows its owner. Every method raises `StorageError` if the disk refuses (`NoSpaceError` when it is full).
    """

    def __init__(self, target: Path) -> None:
        self._folder = folder = target.parent
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        self._lock = threading.Lock()
        try:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 - closed by __exit__
                dir=folder, prefix=f"{target.name.removesuffix(TEMPORARY)}.", suffix=TEMPORARY, buffering=0
            )
        except OSError as error:
            raise storage_error(error, folder) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the disk space, which takes the system a while; a second call does nothing."""
        self._file.close()

    def put(self, key: str, data: Bytes) -> None:
        """Keep an object."""
        view = memoryview(data)
        with self._lock:
            start, self._end = self._end, self._end + len(view)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], start + done)
        except OSError as error:
            raise storage_error(error, self._folder) from error
        self._places[key] = start, len(view)  # only now: until then there may be a hole, which reads as zeros

    def find(self, key: str) -> memoryview | None:
        """Return what `get` returns, or None for a key that was never put."""
        return self.get(key) if key in self._places else None

    def get(self, key: str) -> memoryview:
        """Return the object, in memory that this thread's next `get` reuses."""
        start, size = self._places[key]
        view = _scratch.take("spool", size)
        done = 0
        try:
            while done < size:
                count = os.preadv(self._file.fileno(), [view[done:]], start + done)
                if count == 0:
                    raise StorageError(f"{self._folder}: {key!r} reads back {done} of {size} bytes")
                done += count
        except OSError as error:
            raise storage_error(error, self._folder) from error
        return view
