"""Download a file from the service: resumed where it broke off, checked, put in place when it is complete.

Any number of processes may want the same file: one downloads and the others wait for it. Where the file system has no
locks, two may download the file; both then publish the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import anyio
from anyio import to_thread
from filelock import FileLock, Timeout

from prismcache.backend import ReceivedBytes
from prismcache.disk import HASH_BYTES, VerifiedFiles, disk_errors, stamp_of
from prismcache.errors import (
    CropCorruptError,
    NoSpaceError,
    ServiceError,
    ServiceUnreachableError,
    SourceChangedError,
)
from prismcache.layout import parse_file_name
from prismcache.numbers import format_bytes
from prismcache.remote.http import Connection, raised_as_ours
from prismcache.remote.retry import AttemptFailedError, retrying, start_over
from prismcache.schema import NO_CONTEXT, CropFile, Product

if TYPE_CHECKING:
    import httpx2

CHUNK = 1 << 20
"""Bytes that are written and hashed at once, in a thread."""

POLL = 0.25
"""Seconds between tries to lock a file that another process downloads."""

WAITING_IS_SAID = 3.0
"""Seconds of waiting for another process after which the user is told."""

TRIES = 2
"""Complete downloads with a wrong digest before the file is refused."""

MARGIN = 16 << 20
"""Bytes that a download leaves free on the disk."""

UNUSED = 30 * 86_400.0
"""Seconds without use after which a download is deleted."""

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)", re.ASCII)
_log = logging.getLogger("prismcache")


class Downloader:
    """Downloads files of one service.

    A cancelled call waits for the thread that writes (anyio's threads do), which must not meet a closed file.

    Parameters
    ----------
    connection
        To the service.
    verified
        Takes a note of every file that was put in place.
    folder
        The folder for downloads of this service; files that were not used for a month are deleted from it.
    """

    def __init__(self, connection: Connection, verified: VerifiedFiles, folder: Path) -> None:
        self._connection = connection
        self._verified = verified
        self._folder = folder
        self._is_pruned = False

    async def fetch(
        self, file: CropFile, target: Path, is_there: Callable[[], Awaitable[bool]], report: ReceivedBytes
    ) -> None:
        """Download `file` to `target`, unless another process does.

        Parameters
        ----------
        file
            The file that the service published.
        target
            The path to publish it at; its name is `prismcache.layout.crop_file_name`'s.
        is_there
            Returns whether the file is at `target`, since another process may have downloaded it meanwhile.
        report
            Called with the number of bytes that are here, including those that an earlier process left.

        Raises
        ------
        StorageError
            If the disk is full, or the folder cannot be written.
        SourceChangedError
            If the service has published another file meanwhile.
        CropCorruptError
            If the bytes that arrive are not those that the service published.
        ServiceError
            If the service refuses, or does not respond for longer than the connection's patience.
        """
        with disk_errors(target.parent):
            await to_thread.run_sync(partial(target.parent.mkdir, parents=True, exist_ok=True))
            if not self._is_pruned:
                self._is_pruned = True
                await to_thread.run_sync(prune, self._folder, self._verified, time.time())
            async with self._alone(file, target):
                while not await is_there():
                    try:
                        await self._download(file, target, report)
                    except FileNotFoundError:  # where locks do not work, another process may take over the part
                        _log.debug("%s was taken over by another process", target)

    @asynccontextmanager
    async def _alone(self, file: CropFile, target: Path) -> AsyncGenerator[None]:
        """Hold the lock on `target`; the system releases it when the process dies."""
        lock = FileLock(
            target.with_name(f".{target.name}.lock"), thread_local=False, blocking=False, fallback_to_soft=False
        )
        began, is_said = time.monotonic(), False
        while True:
            try:
                await to_thread.run_sync(lock.acquire)
                break
            except Timeout:
                if not is_said and time.monotonic() - began > WAITING_IS_SAID:
                    is_said = True
                    _log.warning("waiting for another process, which downloads %s/%s", file.split.value, file.crop)
                await anyio.sleep(POLL)
            except NotImplementedError:  # a file system without locks
                break
        try:
            yield
        finally:
            lock.release()

    async def _download(self, file: CropFile, target: Path, report: ReceivedBytes) -> None:
        await to_thread.run_sync(_require_space, file, target.parent)
        _log.info("downloading %s/%s, %s", file.split.value, file.crop, format_bytes(file.size))
        with Part(file, target) as part:
            await to_thread.run_sync(part.take_over)
            for _ in range(TRIES):
                with raised_as_ours():
                    await self._complete(file, part, report)
                if part.is_right:
                    status = await to_thread.run_sync(part.publish)
                    self._verified.remember(target, stamp_of(status), file.sha256)
                    return
                _log.warning("%s/%s arrived damaged; downloading it again", file.split.value, file.crop)
                await to_thread.run_sync(part.restart)
        raise CropCorruptError(
            f"crop {file.split.value}/{file.crop}: the service at {self._connection.url} sends a file with another "
            f"SHA-256 than the one it published, {TRIES} times",
            remedy="Have `prismcache verify --repair` run on the service; the network may damage data, too.",
        )

    async def _complete(self, file: CropFile, part: Part, report: ReceivedBytes) -> None:
        """Receive bytes until the part is as long as the file, resuming after each break."""
        path = f"/v1/crops/{file.split.value}/{file.crop}/file"
        params = _query(part.target.name)
        report(part.size)
        async for attempt in retrying(self._connection.patience):
            with attempt:
                if part.size >= file.size:
                    return
                before = part.size
                headers = {"Range": f"bytes={before}-", "If-Range": f'"{file.sha256}"'} if before else {}
                try:
                    async with self._connection.stream(path, params=params, headers=headers) as response:
                        await _check_head(file, part, response)
                        await _receive(response, part, report)
                finally:
                    report(part.size)
                    if part.size > before:
                        start_over(attempt.retry_state)
                if part.size < file.size:
                    early = ServiceUnreachableError(f"the service at {self._connection.url} ended a download early")
                    raise AttemptFailedError(early, may_pass=True)


def _query(name: str) -> dict[str, str]:
    """Return the query fields that ask for the file with this name."""
    parsed = parse_file_name(name)
    if parsed is None:
        return {}
    query = {}
    if parsed.channels is not None:
        query["channels"] = ",".join(map(str, parsed.channels))
    if parsed.context != NO_CONTEXT:
        query["context"] = parsed.context if parsed.context == "all" else ",".join(map(str, parsed.context))
    if parsed.product is not Product.CROP:
        query["product"] = parsed.product.value
    return query


async def _check_head(file: CropFile, part: Part, response: httpx2.Response) -> None:
    """Check that the response is the file; empty the part if the response does not go on where the part ends.

    Raises
    ------
    SourceChangedError
        If the response is another file.
    ServiceError
        If the response is not a file of the service.
    """
    etag = response.headers.get("etag", "").removeprefix("W/").strip('"')
    sha256 = response.headers.get("x-prismcache-sha256", etag)  # proxies may remove or replace an ETag
    if not sha256:
        kind = response.headers.get("content-type", "no type")
        raise ServiceError(
            f"{response.request.url.copy_with(query=None)} sent something else than a crop ({kind})",
            remedy="Look at PRISMCACHE_URL in a browser: a proxy or the network's login page may have responded.",
        )
    if sha256 != file.sha256:
        raise SourceChangedError(
            f"crop {file.split.value}/{file.crop} is another file on the service now", remedy="Ask for it again."
        )
    start = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
    if response.status_code != 206 or start is None or int(start[1]) != part.size:
        await to_thread.run_sync(part.restart)


async def _receive(response: httpx2.Response, part: Part, report: ReceivedBytes) -> None:
    """Append the body to the part, also what came before a break."""
    pending = bytearray()
    try:
        async for data in response.aiter_raw():
            pending += data
            if len(pending) >= CHUNK:
                full, pending = pending, bytearray()
                await to_thread.run_sync(part.append, full)
                report(part.size)
    finally:
        part.append(pending)


class Part:
    """A partial download of `file` beside `target`: written by one process only, hashed as it grows.

    The part has a name of its own, so other processes cannot change it: the bytes that were hashed are the
    bytes that are published. Parts of earlier processes are copied, since their writers may still live where locks do
    not work. All methods block and raise `OSError`.

    Parameters
    ----------
    file
        Size in bytes and SHA-256 to reach.
    target
        The path to publish the complete file at.
    """

    def __init__(self, file: CropFile, target: Path) -> None:
        self.target = target
        self._file = file
        self._prefix = f".{target.name}.{file.sha256[:16]}."
        self.path = target.with_name(f"{self._prefix}{uuid.uuid4().hex}.part")
        self._digest = hashlib.sha256()
        self.size = 0
        self._is_published = False

    def __enter__(self) -> Self:
        self._output = self.path.open("xb", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.close()
        if self._is_published or not self.size or isinstance(error, OSError):  # a full disk needs the room
            with suppress(OSError):
                self.path.unlink()

    def take_over(self) -> None:
        """Begin with the longest part of this file that an earlier process left; delete all earlier parts.

        Parts of an older version of the file are deleted, too.
        """
        left = [path for path in self.target.parent.glob(f".{self.target.name}.*.part") if path != self.path]
        usable = sorted((path for path in left if path.name.startswith(self._prefix)), key=_size)
        if usable:
            with suppress(FileNotFoundError), usable[-1].open("rb", buffering=0) as earlier:
                while self.size < self._file.size and (data := earlier.read(HASH_BYTES)):
                    self.append(data)
        for path in left:
            with suppress(OSError):
                path.unlink()

    def append(self, data: bytes | bytearray) -> None:
        """Write and hash `data`; bytes beyond the file's size are dropped."""
        rest = kept = memoryview(data)[: self._file.size - self.size]
        while rest:
            rest = rest[self._output.write(rest) :]
        self._digest.update(kept)
        self.size += len(kept)

    def restart(self) -> None:
        """Empty the part."""
        self._output.seek(0)
        self._output.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def is_right(self) -> bool:
        """Whether the part is the complete file."""
        return self.size == self._file.size and self._digest.hexdigest() == self._file.sha256

    def publish(self) -> os.stat_result:
        """Move the complete file to `target`; return its status.

        Raises
        ------
        FileNotFoundError
            If another process took the part over.
        """
        os.fsync(self._output.fileno())
        self._output.close()
        self.path.replace(self.target)
        self._is_published = True
        return self.target.stat()


def prune(folder: Path, verified: VerifiedFiles, now: float) -> None:
    """Delete downloads and parts that were not used for a month.

    Parameters
    ----------
    folder
        The folder for downloads of one service.
    verified
        Knows when a file was used last.
    now
        Seconds since the epoch.
    """
    for path in [*folder.glob("*/*.h5"), *folder.glob("*/.*.part")]:
        with suppress(OSError):
            status = path.stat()
            if now - max(status.st_mtime, status.st_atime, verified.last_used(path)) > UNUSED:
                path.unlink()
                verified.forget(path)
                _log.info("%s was not used for a month; deleted", path)


def downloads_of(folder: Path, url: str) -> Path:
    """Return the folder for the files of one service.

    Examples
    --------
    >>> downloads_of(Path("downloads"), "https://prism.lab:8765/a").as_posix()
    'downloads/prism.lab_8765_a'
    """
    parts = urlsplit(url)
    host = (parts.hostname or "service") + (f"_{parts.port}" if parts.port else "") + parts.path
    return folder / re.sub(r"[^\w.-]", "_", host, flags=re.ASCII).strip(".")


def _require_space(file: CropFile, folder: Path) -> None:
    """Raise `NoSpaceError` if the disk has no room for the file."""
    free = shutil.disk_usage(folder).free
    if free < file.size + MARGIN:
        raise NoSpaceError(
            f"{folder}: crop {file.split.value}/{file.crop} needs {format_bytes(file.size)}, "
            f"{format_bytes(free)} are free",
            remedy="Free space, or point PRISMCACHE_DOWNLOADS at a larger disk.",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
