"""Previews: drawn in a process of their own, one at a time, and kept by the SHA-256 of what they show."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prismcache.errors import CropNotCachedError, ServiceBusyError, WorkerError, error_from_problem
from prismcache.schema import CropFile, Problem, Split
from prismcache_service.cache import CropCache, CropName

COMMAND = (sys.executable, "-m", "prismcache_service.engine.local.preview")

_FAILED = 3  # `engine.preview.FAILED`; importing it would bring numpy and h5py into this process
_KEPT = 64  # pictures, of at most 0.8 MB
_WAITING = 32  # requests that may wait for their picture
_DRAWING_S = 20.0
_LAST_WORDS = 200  # characters of a crash that an error may quote


@dataclass(frozen=True)
class Preview:
    """A picture and its etag, which changes with what it shows; no picture for a client that has it already."""

    etag: str
    png: bytes | None


class PreviewService:
    """Draws pictures of the cached crops of one folder.

    Parameters
    ----------
    cache
        The folder.
    command
        The program that draws one: it is given a file and a channel, and writes what `engine.local.preview` writes.
    """

    def __init__(self, cache: CropCache, command: Sequence[str] = COMMAND) -> None:
        self._cache, self._command = cache, command
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def preview(self, split: Split, crop: int, channel: int, is_known: Callable[[str], bool]) -> Preview:
        """Return the middle slice of a channel with labels; no picture if its etag is known. Does not count as use.

        Raises
        ------
        CropNotCachedError
            If no right file has this channel.
        ServiceBusyError
            If too many wait already.
        PrismError
            If it cannot be drawn.
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
                png = await self._draw(file, channel)
                if (await self._find(file.split, file.crop, channel)).sha256 != file.sha256:
                    raise CropNotCachedError(f"{file.path} was replaced while it was drawn")
                self._pictures[etag] = png
        finally:
            self._waiting -= 1
        while len(self._pictures) > _KEPT:
            self._pictures.popitem(last=False)

    async def _draw(self, file: CropFile, channel: int) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *self._command, str(self._cache.local_path(file)), str(channel),
            stdout=PIPE, stderr=PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_DRAWING_S):
                output, words = await process.communicate()
        except TimeoutError:
            raise WorkerError(f"drawing {file.path} took longer than {_DRAWING_S:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode == _FAILED:
            raise error_from_problem(Problem.model_validate_json(output))
        if process.returncode != 0:
            said = words.decode(errors="replace").strip()[-_LAST_WORDS:]
            raise WorkerError(f"drawing {file.path} ended with exit code {process.returncode}: {said}")
        return output
