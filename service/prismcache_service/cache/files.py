"""A published file compared with its manifest."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from prismcache.disk import patiently, sha256_of, stamp_of
from prismcache.errors import CropCorruptError
from prismcache.layout import HDF5_SIGNATURE, FileStamp, Manifest
from prismcache.schema import Product

# Not through a link, and without waiting for the other end of a pipe.
READ_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))


def compare(path: Path, manifest: Manifest, shown: Path, *, full: bool) -> FileStamp:
    """Compare a file with its manifest, and return the stamp that the file has.

    Parameters
    ----------
    path, manifest
        What is compared: kind, size, signature.
    shown
        What errors call the file.
    full
        Compare the SHA-256, too, for which the whole file is read.

    Raises
    ------
    CropCorruptError
        If the file is not what the manifest says; the message says in what they differ.
    StorageError
        If the file cannot be read, which says nothing about its content.
    """
    try:
        return patiently(lambda: _compare(path, manifest, shown, full=full), path)
    except OSError as error:
        raise CropCorruptError(f"{shown} cannot be opened: {error.strerror}") from None


def _compare(path: Path, manifest: Manifest, shown: Path, *, full: bool) -> FileStamp:
    fd = os.open(path, READ_FLAGS)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CropCorruptError(f"{shown} is not a regular file")
        if status.st_size != manifest.size:
            raise CropCorruptError(f"{shown} has {status.st_size} bytes, its manifest says {manifest.size}")
        if manifest.product is not Product.FACTS and os.read(fd, len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            raise CropCorruptError(f"{shown} does not begin as an HDF5 file")
        if full and (found := sha256_of(fd)) != manifest.sha256:
            raise CropCorruptError(f"{shown} has SHA-256 {found}, its manifest says {manifest.sha256}")
        return stamp_of(status)
    finally:
        with suppress(OSError):  # a descriptor that was only read from has nothing left to lose
            os.close(fd)


def mode_of(path: Path) -> int | None:
    """Return the mode of what lies at a path, links not followed; None if nothing is there."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
