"""Files of this machine: stamps, atomic writing, digests; and the border where the system's errors become ours."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prismcache.errors import NoSpaceError, StorageError, StorageUnwritableError
from prismcache.layout import FileStamp

HASH_BYTES = 1 << 20
_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT})


class StoppedError(Exception):
    """A long reading was told to stop."""


@contextmanager
def disk_errors(path: str | os.PathLike[str], place: str = "PRISMCACHE_DOWNLOADS") -> Iterator[None]:
    """Translate what the system says of `path`; `place` is what the remedy says to put elsewhere."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        said = f"{os.fspath(path)}: {reason}"
        if error.errno in _FULL:
            remedy = f"Free space, or point {place} at a larger disk."
            raise NoSpaceError(said, remedy=remedy) from error
        if error.errno in _DENIED:
            remedy = f"Point {place} at a folder you may write, or have its permissions changed."
            raise StorageUnwritableError(said, remedy=remedy) from error
        raise StorageError(said) from error


def stamp_of(status: os.stat_result) -> FileStamp:
    """What `os.stat` says of a file's identity in time."""
    return FileStamp(size=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path`; a reader sees the old or the new content.

    Raises
    ------
    OSError
        If it cannot be written; no temporary file stays behind.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def sha256_of(path: Path, stop: Callable[[], bool] = lambda: False) -> str:
    """Digest of a file's content, in hex.

    Raises
    ------
    StoppedError
        As soon as `stop` answers true.
    OSError
        If it cannot be read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(HASH_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if stop():
                raise StoppedError
            digest.update(view[:count])
    return digest.hexdigest()
