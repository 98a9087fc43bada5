"""The embedded backend: the service's own rules and pipeline, driven by the caller's process, with no server.

The caller's process only looks files up and watches; crops are made in worker processes (`engine.local`), so that
neither its memory nor its life depends on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence

import anyio

from prismcache.backend import ReceivedBytes
from prismcache.config import Settings
from prismcache.errors import PrismError, UnknownCropError
from prismcache.schema import CropFile, CropInfo, Job, JobRequest, Split, VerifyResult
from prismcache_service.factory import Factory
from prismcache_service.store.base import MemoryJobStore

_PATIENCE_S = 1.0  # for taking back what was just submitted
_log = logging.getLogger("prismcache")  # the client's, whose warnings people see
# What the service would log is here the caller's exception; nobody should read it twice.
logging.getLogger("prismcache_service").addHandler(logging.NullHandler())


def create_backend(settings: Settings) -> EmbeddedBackend:
    """Entry point ``embedded`` of the group ``prismcache.backends``; to be called on the event loop that uses it."""
    return EmbeddedBackend(settings)


class EmbeddedBackend:
    """A `prismcache.backend.Backend` on a cache folder of this machine.

    Parameters
    ----------
    settings
        Cache folder, bucket and limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._factory = Factory(settings, MemoryJobStore())
        self._wishes: dict[str, list[str]] = {}  # by job: a name for each call that wants it
        self._taking_back: set[asyncio.Task[None]] = set()

    async def submit(self, request: JobRequest) -> Job:
        submitting = asyncio.create_task(self._submit(request))
        try:
            return await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The caller never learns which job it was, so nobody else could cancel it. Which crops there are may have
            # to be asked of a bucket that does not answer; the caller need not wait for that.
            taking_back = asyncio.create_task(self._take_back(submitting))
            self._taking_back.add(taking_back)
            taking_back.add_done_callback(self._taking_back.discard)
            with anyio.move_on_after(_PATIENCE_S, shield=True):
                await asyncio.wait({taking_back})
            raise

    async def _take_back(self, submitting: asyncio.Task[Job]) -> None:
        with contextlib.suppress(PrismError):
            await self.cancel(await submitting)

    async def _submit(self, request: JobRequest) -> Job:
        wish = uuid.uuid4().hex
        job = await self._factory.jobs.submit(request, client=wish)
        if not job.state.is_final:
            self._wishes.setdefault(job.id, []).append(wish)
        return job

    async def wait(self, job: Job, timeout: float) -> Job:  # noqa: ASYNC109 - the deadline of a long poll
        return self._follow(await self._factory.jobs.wait(job.id, job.revision, timeout))

    async def cancel(self, job: Job) -> None:
        if wishes := self._wishes.get(job.id):
            self._follow(await self._factory.jobs.cancel(job.id, wishes.pop()))

    def _follow(self, job: Job) -> Job:
        if job.state.is_final:
            self._wishes.pop(job.id, None)
        return job

    async def paths_here(self, files: Sequence[CropFile]) -> Mapping[int, str]:
        return {file.crop: file.path for file in files}

    async def local_path(self, file: CropFile, report: ReceivedBytes) -> str:  # noqa: ARG002 - nothing is downloaded
        return file.path  # it has been opened and compared with its manifest

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        found = await self._factory.crops.catalog(split, refresh=refresh)
        if failure := self._factory.catalog.failure:
            if not found:
                raise failure
            _log.warning("the bucket cannot be read, so this is what was known before: %s", failure)
        return found

    async def describe(self, split: Split, crop: int) -> CropInfo:
        try:
            return await self._factory.crops.describe(split, crop)
        except UnknownCropError as unknown:
            raise self._factory.catalog.failure or unknown from None

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        return await self._factory.crops.verify(split, crops, repair=repair)

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        return await self._factory.crops.remove(split, crops)

    async def aclose(self) -> None:
        for task in self._taking_back:
            task.cancel()
        await self._factory.aclose()
