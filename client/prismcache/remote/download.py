"""Download a file from the service: resumed where it broke off, checked, put in place when it is whole.

Any number of processes may want the same file: one downloads and the others wait for it. Should two do so
nevertheless, both publish the same bytes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
from anyio import to_thread

from prismcache.backend import ReceivedBytes
from prismcache.disk import disk_errors, stamp_of
from prismcache.errors import CropCorruptError, ServiceUnreachableError, SourceChangedError
from prismcache.layout import parse_crop_file_name
from prismcache.remote.claim import Claim
from prismcache.remote.http import Connection, StreamRefusedError
from prismcache.remote.part import Part, require_space
from prismcache.remote.retry import Attempts, Refusal
from prismcache.remote.verified import VerifiedFiles
from prismcache.schema import CropFile
from prismcache.units import format_bytes

if TYPE_CHECKING:
    import httpx2

CHUNK = 1 << 20
"""Bytes that are written and hashed at once, in a thread."""

POLL = 0.25
TRIES = 2
"""Whole downloads with a wrong digest before the file is refused."""

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
        Told of every file that was put in place.
    """

    def __init__(self, connection: Connection, verified: VerifiedFiles) -> None:
        self._connection = connection
        self._verified = verified

    async def fetch(
        self, file: CropFile, target: Path, is_there: Callable[[], Awaitable[bool]], report: ReceivedBytes
    ) -> None:
        """Have `file` at `target`.

        Parameters
        ----------
        file
            What is wanted.
        target
            Where it goes; its name is `prismcache.layout.crop_file_name`'s.
        is_there
            Asked whether another process has put it there meanwhile.
        report
            Hears how many bytes are here, those that an earlier process left included.

        Raises
        ------
        StorageError
            If there is no room, or the folder cannot be written.
        SourceChangedError
            If the service has another file by now.
        CropCorruptError
            If what comes is not what the service published.
        ServiceError
            If the service refuses, or gives no answer for longer than the connection's patience.
        """
        with disk_errors(target.parent):
            await to_thread.run_sync(partial(target.parent.mkdir, parents=True, exist_ok=True))
            claim = Claim(target.with_name(f".{target.name}.claim"))
            while not await is_there():
                if not await to_thread.run_sync(claim.acquire):
                    await anyio.sleep(POLL)
                    continue
                try:
                    if not await is_there():
                        await self._download(file, target, claim, report)
                    return
                except FileNotFoundError:
                    _log.debug("%s was taken over by another process", target)
                finally:
                    claim.release()

    async def _download(self, file: CropFile, target: Path, claim: Claim, report: ReceivedBytes) -> None:
        await to_thread.run_sync(require_space, file, target.parent)
        _log.info("downloading %s/%s, %s", file.split.value, file.crop, format_bytes(file.size))
        with Part(file, target) as part:
            await to_thread.run_sync(part.take_over)

            def came() -> None:
                claim.renew()
                report(part.size)

            for _ in range(TRIES):
                await self._complete(file, part, _channels_of(target), came)
                if part.is_right:
                    status = await to_thread.run_sync(part.publish)
                    self._verified.remember(target, stamp_of(status), file.sha256)
                    return
                _log.warning("%s/%s arrived damaged; downloading it again", file.split.value, file.crop)
                await to_thread.run_sync(part.restart)
        raise CropCorruptError(
            f"crop {file.split.value}/{file.crop}: what the service at {self._connection.url} sends has another "
            f"SHA-256 than what it published, {TRIES} times",
            remedy="Have `prismcache verify --repair` run on the service; something on the way may damage data, too.",
        )

    async def _complete(self, file: CropFile, part: Part, channels: str | None, came: Callable[[], None]) -> None:
        """Have as many bytes come as the file has, resuming after each break."""
        path = f"/v1/crops/{file.split.value}/{file.crop}/file"
        params = None if channels is None else {"channels": channels}
        attempts = Attempts()
        while part.size < file.size:
            before = part.size
            came()
            try:
                async with self._connection.stream(path, params=params, headers=_range(file, part.size)) as response:
                    await self._begin(file, part, response)
                    await _receive(response, part, came)
                refusal = Refusal(ServiceUnreachableError("the service ended a download early"), passing=True)
            except StreamRefusedError as refused:
                refusal = refused.refusal
            if part.size < file.size:
                attempts = await self._connection.pause(Attempts() if part.size > before else attempts, refusal)

    async def _begin(self, file: CropFile, part: Part, response: httpx2.Response) -> None:
        """Look at the head of an answer: whether it is the file, and goes on where the part ends.

        Raises
        ------
        SourceChangedError
            If it is another file.
        """
        etag = response.headers.get("etag", "").removeprefix("W/").strip('"')
        if etag != file.sha256:
            raise SourceChangedError(
                f"crop {file.split.value}/{file.crop} is another file on the service now", remedy="Ask for it again."
            )
        start = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
        if response.status_code != 206 or start is None or int(start[1]) != part.size:
            await to_thread.run_sync(part.restart)


async def _receive(response: httpx2.Response, part: Part, came: Callable[[], None]) -> None:
    """Add what comes to the part, and what came before a break, too."""
    pending = bytearray()
    try:
        async for data in response.aiter_raw():
            pending += data
            if len(pending) >= CHUNK:
                full, pending = pending, bytearray()
                await to_thread.run_sync(part.append, full)
                came()
    finally:
        part.append(pending)


def downloads_of(folder: Path, url: str) -> Path:
    """The folder for the files of one service.

    Examples
    --------
    >>> downloads_of(Path("downloads"), "https://prism.lab:8765/a").as_posix()
    'downloads/prism.lab_8765_a'
    """
    parts = urlsplit(url)
    host = (parts.hostname or "service") + (f"_{parts.port}" if parts.port else "") + parts.path
    return folder / re.sub(r"[^\w.-]", "_", host, flags=re.ASCII).strip(".")


def _range(file: CropFile, start: int) -> dict[str, str]:
    return {"Range": f"bytes={start}-", "If-Range": f'"{file.sha256}"'} if start else {}


def _channels_of(target: Path) -> str | None:
    """The subset that a file name stands for, as the service's query has it; None for all channels."""
    parsed = parse_crop_file_name(target.name)
    return None if parsed is None or parsed[1] is None else ",".join(map(str, parsed[1]))
