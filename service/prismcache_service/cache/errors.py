"""The one border where operating-system errors of the cache folder become prismcache's."""

from __future__ import annotations

import errno
import os

from prismcache.errors import NoSpaceError, StorageError, StorageUnwritableError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT})


def storage_error(error: OSError, path: str | os.PathLike[str]) -> StorageError:
    """The typed error for an operation on `path` that the system refused."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    kind = NoSpaceError if error.errno in _FULL else StorageUnwritableError if error.errno in _DENIED else StorageError
    return kind(f"{os.fspath(path)}: {reason}")
