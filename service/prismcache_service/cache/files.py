"""Single files of the cache folder: written so that they survive, and compared with what is known of them."""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel

from prismcache.errors import CropCorruptError
from prismcache.layout import HDF5_SIGNATURE, FileStamp, Manifest

FILE_MODE = 0o664
FOLDER_MODE = 0o775
TEMPORARY = ".tmp"

_HASH_BYTES = 4 << 20  # at 1 MiB, handing buffers over takes a twentieth more
# Not through a link, and without waiting for the other end of a pipe.
_READ_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))


def temporary_beside(target: Path, token: str) -> Path:
    """A place for what is to become `target`, which tells whose it is."""
    return target.with_name(f".{target.name}.{token}{TEMPORARY}")


def write_synced(path: Path, document: BaseModel) -> None:
    """Write a new file so that it survives a power cut; nothing is left of it if that fails."""
    try:
        with path.open("xb") as file:
            file.write(document.model_dump_json(indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Let renames in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def stamp_of(status: os.stat_result) -> FileStamp:
    """Size and times of a file."""
    return FileStamp(size=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)


def file_sha256(fd: int) -> str:
    """SHA-256 (hex) of an open file from its beginning; another thread reads ahead, so that no disk waits for it."""
    digest = hashlib.sha256()
    buffer, spare = bytearray(_HASH_BYTES), bytearray(_HASH_BYTES)
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(os.dup(fd), "rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(file.readinto, buffer)
        while count := ahead.result():
            ahead = reader.submit(file.readinto, spare)
            digest.update(memoryview(buffer)[:count])
            buffer, spare = spare, buffer
    return digest.hexdigest()


def compare(path: Path, manifest: Manifest, shown: Path, *, full: bool = False) -> FileStamp:
    """See that a file is what its manifest says; answers its stamp, which may be another than the manifest's.

    Parameters
    ----------
    path, manifest
        What is compared.
    shown
        What errors call the file.
    full
        Read every byte even if nothing hints at a change.

    Raises
    ------
    CropCorruptError
        If it is not; says why.
    """
    try:
        fd = os.open(path, _READ_FLAGS)
    except OSError as error:
        raise CropCorruptError(f"{shown} cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CropCorruptError(f"{shown} is no regular file")
        if status.st_size != manifest.size:
            raise CropCorruptError(f"{shown} has {status.st_size} bytes, its manifest says {manifest.size}")
        if os.read(fd, len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            raise CropCorruptError(f"{shown} does not begin as an HDF5 file")
        stamp = stamp_of(status)
        if (full or stamp != manifest.stamp) and (found := file_sha256(fd)) != manifest.sha256:
            raise CropCorruptError(f"{shown} has SHA-256 {found}, its manifest says {manifest.sha256}")
        return stamp
    except OSError as error:
        raise CropCorruptError(f"{shown} cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
