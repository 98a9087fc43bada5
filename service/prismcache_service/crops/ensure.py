"""Hit, wait or make: one crop becomes cached, and is made by one process at a time where a lease can tell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from prismcache.errors import MissingChunksError, PrismError
from prismcache.schema import CropFile, CropProgress, JobRequest, State
from prismcache_service.cache.cache import CropCache, CropName
from prismcache_service.cache.making_lock import Watch, acquire
from prismcache_service.engine.base import CropTask, Engine, Outcome
from prismcache_service.pipeline.progress import Report

Room = Callable[[CropName], AbstractAsyncContextManager[None]]


class EnsureService:
    """Gets crops into one cache folder.

    Parameters
    ----------
    cache
        The folder.
    engine
        Who makes what is not there.
    room
        Holds room for a file while it is made; None where the disk is the only bound.
    """

    def __init__(self, cache: CropCache, engine: Engine, room: Room | None = None) -> None:
        self._cache = cache
        self._engine = engine
        self._room: Room = room or (lambda _: contextlib.nullcontext())

    async def ensure(self, name: CropName, report: Report, *, strict: bool = False) -> Outcome:
        """A right file with the crop's channels, from the cache or made now; or the problem of who was to make it.

        Parameters
        ----------
        name
            The crop and the channels wanted (None: all).
        report
            Hears of progress, if the crop is made here.
        strict
            Refuse a crop with absent chunks, also a cached one.

        Raises
        ------
        PrismError
            Why the crop cannot be had.
        """
        found = await self.find(name, strict=strict)
        if found is not None:
            return found
        await asyncio.to_thread(self._cache.prepare, name.split)
        watch = Watch()
        while True:
            token = await acquire(self._cache.leases, name.lease, watch)
            if token is not None:
                return await self._make(CropTask(name, token, strict), report)
            found = await self.find(name, strict=strict)
            if found is not None:
                return found

    async def find(self, name: CropName, *, strict: bool = False) -> CropFile | None:
        """A right file in the cache, or None.

        Raises
        ------
        MissingChunksError
            If `strict` and the cached file has absent chunks.
        """
        return await asyncio.to_thread(self._find, name, strict=strict)

    async def find_all(self, request: JobRequest, crops: Sequence[int]) -> list[CropProgress]:
        """What the cache has of a request's crops: done with its file, failed (strict), or queued."""
        channels = None if request.channels is None else tuple(sorted(set(request.channels)))

        def look(crop: int) -> CropProgress:
            try:
                found = self._find(CropName(request.split, crop, channels), strict=request.strict)
            except PrismError as error:
                return CropProgress(crop=crop, state=State.FAILED, problem=error.to_problem())
            return CropProgress(crop=crop, state=State.DONE if found else State.QUEUED, file=found)

        return await asyncio.to_thread(lambda: [look(crop) for crop in crops])

    def _find(self, name: CropName, *, strict: bool) -> CropFile | None:
        found = self._cache.find(name.split, name.crop, name.channels)
        if found is not None and strict and found.missing_chunks:
            raise MissingChunksError(f"{found.path} was made with {found.missing_chunks} absent chunks")
        return found

    async def _make(self, task: CropTask, report: Report) -> Outcome:
        async with self._cache.leases.held(task.name.lease, task.token):
            await asyncio.to_thread(self._cache.sweep)
            # Somebody may have published between our look and our lease.
            found = await self.find(task.name, strict=task.strict)
            outcome: Outcome | None = found
            if outcome is None:
                name = task.name
                await asyncio.to_thread(self._cache.set_aside_wrong, name.split, name.crop, name.channels)
                async with self._room(name):
                    outcome = await self._engine.run(task, report)
                if isinstance(outcome, CropFile):
                    outcome = self._cache.shown(outcome)
            return outcome
