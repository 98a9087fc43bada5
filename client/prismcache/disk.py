"""Single files: stamps, atomic replacement, SHA-256, notes on files that were read, and the system's errors as ours.

Both sides use this module: the client for downloads, the service for the cache folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from prismcache.errors import NoSpaceError, StorageError, StorageUnwritableError
from prismcache.layout import FileStamp

TEMPORARY = ".tmp"
"""The end of the name of every unfinished file; the name begins with a dot."""

HASH_BYTES = 4 << 20  # at 1 MiB, handing buffers from thread to thread takes a twentieth more
_FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT})


# These say that no regular file is there. Every other error says only that this machine cannot read now.
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO})
_ATTEMPTS = 4
_PAUSE_S = 0.05  # at most, before the second attempt; twice as long before each further one

T = TypeVar("T")


class StoppedError(Exception):
    """A long reading was told to stop."""


def storage_error(error: OSError, path: str | os.PathLike[str], setting: str = "PRISMCACHE_ROOT") -> StorageError:
    """Return the typed error for an operation on `path` that the system refused.

    Parameters
    ----------
    error
        What the system raised.
    path
        The file or folder that the message names.
    setting
        The setting that the remedy tells to change.
    """
    message = f"{os.fspath(path)}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in _FULL:
        freed = " (`prismcache rm`)" if setting == "PRISMCACHE_ROOT" else ""
        return NoSpaceError(message, remedy=f"Free space{freed}, or point {setting} at a larger disk.")
    if error.errno in _DENIED:
        remedy = f"Point {setting} at a folder you may write, or have its permissions changed."
        return StorageUnwritableError(message, remedy=_umask_remedy(Path(path), error) or remedy)
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        return StorageError(message, remedy="Close files, or raise the limit of open files (`ulimit -n 4096`).")
    return StorageError(message, remedy=f"{StorageError.default_remedy} {setting} can name another place.")


def _umask_remedy(path: Path, error: OSError) -> str:
    """Return what to do about a folder that its owner's umask closed to the group; empty if no folder is closed."""
    if error.errno not in {errno.EACCES, errno.EPERM} or not hasattr(os, "getgroups"):
        return ""
    with suppress(OSError, KeyError):
        groups = {os.getegid(), *os.getgroups()}
        for folder in path.parents:
            try:
                status = folder.stat()
            except OSError:
                continue  # it is behind a folder that cannot be searched
            closed = status.st_mode & 0o070 != 0o070
            if status.st_gid in groups and status.st_uid != os.geteuid() and closed:
                return (
                    f"{folder} is closed to its group: it was made with a umask such as 022. Have its owner run "
                    f"`chmod g+rwxs {folder}`, or set umask 002 and make it again."
                )
            if status.st_uid == os.geteuid() or not closed:
                break
    return ""


def patiently(operation: Callable[[], T], path: Path) -> T:
    """Return what a reading operation returns, and try it again a few times if the system's error may pass.

    Raises
    ------
    OSError
        If no regular file is there.
    StorageError
        If any other error stays.
    """
    try:
        return operation()
    except OSError as error:
        if error.errno in _NO_FILE:
            raise
    # Made here, since a warm `ensure` needs no second attempt; imported above, since a process without descriptors
    # cannot import.
    again = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, OSError) and error.errno not in _NO_FILE),
        stop=stop_after_attempt(_ATTEMPTS - 1),
        wait=wait_random_exponential(multiplier=_PAUSE_S),
        reraise=True,
    )
    try:
        return again(operation)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise
        raise storage_error(error, path) from error


@contextmanager
def disk_errors(path: str | os.PathLike[str], setting: str = "PRISMCACHE_DOWNLOADS") -> Iterator[None]:
    """Raise what the system raises in the block as a `StorageError` that names `path`; see `storage_error`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, setting) from error


def stamp_of(status: os.stat_result) -> FileStamp:
    """Return a file's size in bytes and its times in ns."""
    return FileStamp(size=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)


def temporary_beside(target: Path, token: str) -> Path:
    """Return the path for an unfinished `target`, in the same folder; `token` says who is writing there."""
    return target.with_name(f".{target.name}.{token}{TEMPORARY}")


def share_with_group(path: Path, like: Path) -> None:
    """Give a new file or folder the group permissions of the folder `like`, which a umask may have taken away.

    A file system without permissions is not an error.
    """
    with suppress(OSError):
        wanted, mode = like.stat().st_mode, path.stat().st_mode
        bits = wanted & (stat.S_IRWXG | stat.S_ISGID if stat.S_ISDIR(mode) else stat.S_IRGRP | stat.S_IWGRP)
        if mode & bits != bits:
            path.chmod(stat.S_IMODE(mode | bits))


def write_new(path: Path, data: bytes, like: Path | None = None) -> None:
    """Write and fsync a file that does not exist yet; no part of a file stays behind if that fails.

    The file gets the group permissions of the folder `like`.
    """
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if like is not None:
            share_with_group(path, like)
    except FileExistsError:
        raise
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def write_atomically(
    path: Path, data: bytes, token: str = "", *, durable: bool = False, like: Path | None = None
) -> None:
    """Replace `path`, so that a reader sees the old or the new content.

    Parameters
    ----------
    path, data
        The file and its new content.
    token
        Marks the temporary file; default: a random one.
    durable
        Return when the replacement would survive a power cut.
    like
        Folder whose group permissions the file gets; default: what the umask leaves.

    Raises
    ------
    OSError
        If the file cannot be written; no temporary file stays behind.
    """
    temporary = temporary_beside(path, token or uuid.uuid4().hex)
    try:
        if durable:
            write_new(temporary, data)
        else:
            temporary.write_bytes(data)
        if like is not None:
            share_with_group(temporary, like)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Return when the renames in a folder would survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_of(file: Path | int, stop: Callable[[], bool] = lambda: False) -> str:
    """Return the SHA-256 of a whole file in hex; a second thread reads ahead, so that hashing never waits for the disk.

    Parameters
    ----------
    file
        A path, or a descriptor, which stays open and is read from its beginning.
    stop
        Called for every 4 MiB.

    Raises
    ------
    StoppedError
        As soon as `stop` returns true.
    OSError
        If the file cannot be read.
    """
    digest = hashlib.sha256()
    buffer, spare = bytearray(HASH_BYTES), bytearray(HASH_BYTES)
    fd = os.dup(file) if isinstance(file, int) else os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    with os.fdopen(fd, "rb", buffering=0) as source, ThreadPoolExecutor(1) as reader:
        source.seek(0)
        ahead = reader.submit(source.readinto, buffer)
        while count := ahead.result():
            if stop():
                raise StoppedError
            ahead = reader.submit(source.readinto, spare)
            digest.update(memoryview(buffer)[:count])
            buffer, spare = spare, buffer
    return digest.hexdigest()


class Reading(BaseModel):
    """The SHA-256 of `path`'s content when the file system reported `stamp` for it."""

    model_config = ConfigDict(defer_build=True)

    path: str
    stamp: FileStamp
    sha256: str


class VerifiedFiles:
    """Remembers which files of this machine were read and found right, so that a warm ensure does not read them again.

    Each reading is a small JSON file of its own, so processes do not overwrite each other's. The notes only save
    reading; a folder that cannot be written is not an error.

    Parameters
    ----------
    folder
        Holds the notes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Reading] = {}

    def recall(self, path: Path, stamp: FileStamp) -> str | None:
        """Return the SHA-256 that `path` was found to have, if the file system still reports the same stamp."""
        reading = self._known.get(str(path)) or self._read(path)
        if reading is None or reading.path != str(path) or reading.stamp != stamp:
            self._known.pop(str(path), None)
            return None
        self._known[str(path)] = reading
        return reading.sha256

    def remember(self, path: Path, stamp: FileStamp, sha256: str) -> None:
        """Note the content of `path`. `stamp` must have been the same before and after the file was read."""
        reading = self._known[str(path)] = Reading(path=str(path), stamp=stamp, sha256=sha256)
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._note(path), reading.model_dump_json().encode())

    def last_used(self, path: Path) -> float:
        """Return when `path` was last recalled by a process that had not used it before, in seconds since the epoch."""
        with suppress(OSError):
            return self._note(path).stat().st_mtime
        return 0.0

    def forget(self, path: Path) -> None:
        """Delete the note on `path`."""
        self._known.pop(str(path), None)
        with suppress(OSError):
            self._note(path).unlink()

    def _read(self, path: Path) -> Reading | None:
        note = self._note(path)
        try:
            reading = Reading.model_validate_json(note.read_bytes())
        except (OSError, ValueError):
            return None
        with suppress(OSError):
            os.utime(note)  # the file is in use: see `last_used`
        return reading

    def _note(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:32]}.json"
