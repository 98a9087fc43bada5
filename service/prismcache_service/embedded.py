"""The embedded backend: the service's rules and pipeline in the caller's process, without a server.

The caller's process looks files up and shows progress; worker processes (`engine.local`) make the crops, so that
neither their memory nor a crash harms the caller.
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
from prismcache_service.crops import adopt
from prismcache_service.factory import Factory
from prismcache_service.store import MemoryJobStore

_log = logging.getLogger("prismcache")  # the client's logger, whose warnings people see
# Errors that a service logs are exceptions here, so logging them too would show each one twice.
logging.getLogger("prismcache_service").addHandler(logging.NullHandler())


def create_backend(settings: Settings) -> EmbeddedBackend:
    """Return the embedded backend; to be called on the event loop that uses it."""
    return EmbeddedBackend(settings)


class EmbeddedBackend:
    """A `prismcache.backend.Backend` on a cache folder of this machine."""

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
        return file.path  # the service has compared the file with its manifest

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        found = await self._factory.crops.catalog(split, refresh=refresh)
        if failure := self._factory.catalog.failure:
            if not found:
                raise failure
            if not self._factory.catalog.is_partial:  # it has warned of these itself
                _log.warning("the bucket cannot be read, so the list is the one that was read last: %s", failure)
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
        """Return the cache folder's usage, and the jobs and crops of this process."""
        return await self._factory.status()

    async def check_source(self) -> None:
        """List the bucket; raise a `SourceError` or `ConfigError` if that fails."""
        await self._factory.catalog.check()

    async def clear_quarantine(self) -> ClearedQuarantine:
        """Delete all files that were set aside."""
        return await self._factory.crops.clear_quarantine()

    async def adopt(self, paths: Sequence[Path]) -> list[CropFile]:
        """Publish files that another cache made, if they are right; see `adopt`."""
        return [await adopt(path, self._factory.cache, self._factory.catalog, _log.warning) for path in paths]

    async def aclose(self) -> None:
        await self._wishes.end()
        await self._factory.aclose()
