"""Previews: drawn in a process of their own, one at a time, and kept by the SHA-256 of what they show."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prismcache.errors import CropNotCachedError, ServiceBusyError
from prismcache.schema import CropFile, Split
from prismcache_service.cache import CropCache, CropName
from prismcache_service.engine.programs import run_program

COMMAND = (sys.executable, "-m", "prismcache_service.engine.local.preview")

_KEPT = 64  # pictures, of at most 0.8 MB
_WAITING = 32  # requests that may wait for their picture
_DRAWING_S = 20.0


@dataclass(frozen=True)
class Preview:
    """A picture and its etag, which changes with the content; the picture is None for a client that has it already."""

    etag: str
    png: bytes | None


class PreviewService:
    """Draws pictures of the cached crops of one folder.

    `command` is the program that draws a picture: it is given a file and a channel, and writes what
    `engine.local.preview` writes.
    """

    def __init__(self, cache: CropCache, command: Sequence[str] = COMMAND) -> None:
        self._cache, self._command = cache, command
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def preview(self, split: Split, crop: int, channel: int, is_known: Callable[[str], bool]) -> Preview:
        """Return the middle slice of a channel with labels; no picture if its etag is known. Does not count as use.

        Raise `CropNotCachedError` if no right file has this channel, `ServiceBusyError` if too many requests wait
        already, and `PrismError` if the picture cannot be drawn.
        """
        file = await self._find(split, crop, channel)
        etag = f'"{file.sha256}-{channel}"'
        if is_known(etag):
            return Preview(etag, None)
        if etag not in self._pictures:
            await self._draw_in_turn(etag, file, channel)
        self._pictures.move_to_end(etag)
        return Preview(etag, self._pictures[etag])

    async def _find(self, split: Split, crop: int, channel: int) -> CropFile:
        found = await self._cache.find(CropName(split, crop, (channel,)))
        if found.file is None:
            raise CropNotCachedError(f"crop {split.value}/{crop} is not cached with channel {channel}")
        return found.file

    async def _draw_in_turn(self, etag: str, file: CropFile, channel: int) -> None:
        if self._waiting >= _WAITING:
            raise ServiceBusyError(f"{self._waiting} previews are waiting to be drawn")
        self._waiting += 1
        try:
            async with self._turn:
                if etag in self._pictures:  # drawn for another request meanwhile
                    return
                command = (*self._command, str(self._cache.local_path(file)), str(channel))
                png = await run_program(f"drawing {file.path}", *command, seconds=_DRAWING_S)
                if (await self._find(file.split, file.crop, channel)).sha256 != file.sha256:
                    raise CropNotCachedError(f"{file.path} was replaced while it was drawn")
                self._pictures[etag] = png
        finally:
            self._waiting -= 1
        while len(self._pictures) > _KEPT:
            self._pictures.popitem(last=False)
