"""The embedded backend: the service's own rules and pipeline, driven by the caller's process, with no server.

The caller's process only looks files up and watches; crops are made in worker processes (`engine.local`), so that
neither its memory nor its life depends on them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from prismcache.backend import ReceivedBytes
from prismcache.cached_info import described
from prismcache.config import Settings
from prismcache.errors import UnknownCropError
from prismcache.schema import (
    ClearedQuarantine,
    CropFile,
    CropInfo,
    Job,
    JobRequest,
    ServiceStatus,
    Split,
    VerifyResult,
)
from prismcache.wishes import Wish, Wishes
from prismcache_service.factory import Factory
from prismcache_service.store import MemoryJobStore

_log = logging.getLogger("prismcache")  # the client's, whose warnings people see
# What the service would log is here the caller's exception; nobody should read it twice.
logging.getLogger("prismcache_service").addHandler(logging.NullHandler())


def create_backend(settings: Settings) -> EmbeddedBackend:
    """Return the embedded backend; to be called on the event loop that uses it."""
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
        self._wishes = Wishes(self._submit, self._factory.jobs.cancel)

    async def submit(self, request: JobRequest) -> Job:
        return await self._wishes.submit(Wish(request))

    async def _submit(self, wish: Wish) -> Job:
        return await self._factory.jobs.submit(wish.request, client=wish.name)

    async def wait(self, job: Job, timeout: float) -> Job:  # noqa: ASYNC109 - the deadline of a long poll
        return self._wishes.follow(await self._factory.jobs.wait(job.id, job.revision, timeout))

    async def cancel(self, job: Job) -> None:
        await self._wishes.cancel(job.id)

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
            return await asyncio.to_thread(lambda: [described(info) for info in found])
        return found

    async def describe(self, split: Split, crop: int) -> CropInfo:
        try:
            info = await self._factory.crops.describe(split, crop)
            return await asyncio.to_thread(described, info)
        except UnknownCropError as unknown:
            raise self._factory.catalog.failure or unknown from None

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        return await self._factory.crops.verify(split, crops, repair=repair)

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        return await self._factory.crops.remove(split, crops)

    async def status(self) -> ServiceStatus:
        """Return how full the cache folder is, and what this process makes."""
        return await self._factory.status()

    async def readiness(self) -> dict[str, str]:
        """Return "ok", or what is wrong, for each of storage, store, engine and source."""
        return await self._factory.readiness()

    async def clear_quarantine(self) -> ClearedQuarantine:
        """Delete everything that was set aside."""
        return await self._factory.crops.clear_quarantine()

    async def adopt(self, paths: Sequence[Path]) -> list[CropFile]:
        """Publish files that another cache made, if they are right; see `crops.adopt`."""
        from prismcache_service.crops.adopt import adopt  # here, since it needs h5py

        return [await adopt(path, self._factory.cache, self._factory.catalog, _log.warning) for path in paths]

    async def aclose(self) -> None:
        await self._wishes.end()
        await self._factory.aclose()
