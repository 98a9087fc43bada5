"""The remote backend: the lab's service over HTTP, and its files on this machine."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prismcache.backend import ReceivedBytes
from prismcache.config import Settings
from prismcache.errors import PrismError, ServiceBusyError, ServiceUnreachableError, UnknownJobError
from prismcache.remote.api import ServiceApi
from prismcache.remote.download import Downloader, downloads_of
from prismcache.remote.http import Connection
from prismcache.remote.leases import LeaseKeeper, keeper
from prismcache.remote.offline import known_job
from prismcache.remote.resolve import GRACE, Resolver
from prismcache.remote.retry import BRIEF, ONCE, Patience
from prismcache.remote.verified import VerifiedFiles
from prismcache.schema import (
    CropFile,
    CropInfo,
    Job,
    JobRequest,
    LeaseRequest,
    Split,
    State,
    VerifyRequest,
    VerifyResult,
)

if TYPE_CHECKING:
    import httpx2

_log = logging.getLogger("prismcache")


@dataclass(frozen=True)
class _Wish:
    """One call's wish for a job, under the name by which the service tells it from others for the same."""

    request: JobRequest
    client: str = field(default_factory=lambda: uuid.uuid4().hex)


def create_backend(settings: Settings) -> RemoteBackend:
    """Entry point ``remote`` of the group ``prismcache.backends``; to be called on the event loop that uses it."""
    return RemoteBackend(settings)


class RemoteBackend:
    """A `prismcache.backend.Backend` on a service.

    Restarts of the service are ridden out: it keeps its jobs, and a job that it forgot is submitted again, once. What
    the mount shows to be cached is found even while there is no service.

    Parameters
    ----------
    settings
        URL and token of the service; `root`, if it was given, is this machine's mount of the service's root.
    transport
        Send requests through this instead of the network. It remains yours.
    patience
        How long to go on asking a service that does not answer.
    leases
        Who renews leases; default: the process's own keeper.
    grace
        Seconds between further looks for a file that the mount does not show yet.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
        patience: Patience | None = None,
        leases: LeaseKeeper | None = None,
        grace: tuple[float, ...] = GRACE,
    ) -> None:
        self._settings = settings
        self._api = ServiceApi(Connection(settings, transport=transport, patience=patience))
        verified = VerifiedFiles(settings.downloads / ".verified")
        self._downloader = Downloader(self._api.connection, verified)
        downloads = downloads_of(settings.downloads, self._api.connection.url)
        self._resolver = Resolver(settings.mount, downloads, verified, self._fetch, grace=grace)
        self._leases = leases or keeper()
        self._holder = object()  # not this backend itself, which the keeper would keep alive
        self._leased: set[tuple[Split, int]] = set()
        self._wishes: dict[str, list[_Wish]] = {}
        self._forgotten: set[str] = set()

    async def submit(self, request: JobRequest) -> Job:
        wish = _Wish(request)
        try:
            job = await self._api.submit(request, client=wish.client, patience=ONCE)
        except (ServiceUnreachableError, ServiceBusyError) as error:
            known = await asyncio.to_thread(known_job, request, self._resolver.mount)
            if known is not None:
                _log.info("%s; what is asked for is cached on %s", error, self._resolver.mount)
                return known
            job = await self._api.submit(request, client=wish.client)
        return await self._begin(job, wish)

    async def wait(self, job: Job, timeout: float) -> Job:  # noqa: ASYNC109 - the deadline of a long poll
        if job.state.is_final:
            return job
        try:
            return await self._follow(await self._api.wait(job, timeout))
        except UnknownJobError:
            wish = self._end_wish(job.id)
            if wish is None or job.id in self._forgotten:
                raise
            newer = await self._api.submit(wish.request, client=wish.client)
            self._forgotten.add(newer.id)
            return await self._begin(newer, wish)

    async def cancel(self, job: Job) -> None:
        if (wish := self._end_wish(job.id)) is not None:
            with suppress(UnknownJobError, ServiceUnreachableError):
                await self._api.cancel(job.id, client=wish.client, patience=BRIEF)

    async def paths_here(self, files: Sequence[CropFile]) -> Mapping[int, str]:
        known = await self._resolver.known(files)
        return {file.crop: self._told(file, path) for file, path in known}

    async def local_path(self, file: CropFile, report: ReceivedBytes) -> str:
        return self._told(file, await self._resolver.path(file, report))

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        return await self._api.catalog(split, refresh=refresh)

    async def describe(self, split: Split, crop: int) -> CropInfo:
        return await self._api.crop(split, crop)

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        chosen = None if crops is None else tuple(dict.fromkeys(crops))
        return await self._api.verify(VerifyRequest(split=split, crops=chosen, repair=repair))

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        cached = [info.crop for info in await self._api.catalog(split) if info.files]
        chosen = [crop for crop in cached if crops is None or crop in crops]
        await self._unlease(split, chosen)
        return [file for crop in chosen for file in await self._api.evict(split, crop)]

    async def aclose(self) -> None:
        """Cancel unfinished jobs, let go of the leases, close the connection."""
        self._leases.release(self._holder)
        wishes, self._wishes = [(job, wish.client) for job, all_ in self._wishes.items() for wish in all_], {}
        ending = (self._api.cancel(job, client=client, patience=ONCE) for job, client in wishes)
        with suppress(PrismError):
            await asyncio.gather(*ending, return_exceptions=True)
        await self._api.aclose()

    def hand_over(self) -> None:
        """Leave the leases to the process, for a client that was dropped without being closed."""
        self._leases.hand_over(self._holder)

    async def _begin(self, job: Job, wish: _Wish) -> Job:
        self._wishes.setdefault(job.id, []).append(wish)
        return await self._follow(job)

    def _end_wish(self, job_id: str) -> _Wish | None:
        """Any of the calls that wait for the same job: they are alike."""
        wishes = self._wishes.get(job_id, [])
        wish = wishes.pop() if wishes else None
        if not wishes:
            self._wishes.pop(job_id, None)
        return wish

    async def _follow(self, job: Job) -> Job:
        """Take note of a snapshot, and protect what it says is ready before anybody is told."""
        if job.state.is_final:
            self._wishes.pop(job.id, None)
        await self._lease(job.split, (crop.crop for crop in job.crops if crop.state is State.DONE))
        return job

    async def _lease(self, split: Split, crops: Iterable[int]) -> None:
        fresh = [crop for crop in crops if (split, crop) not in self._leased]
        if not fresh:
            return
        self._leased.update((split, crop) for crop in fresh)
        try:
            lease = await self._api.lease(LeaseRequest(split=split, crops=tuple(fresh)))
        except PrismError as error:  # a crop without a lease is as good, only easier to evict
            _log.debug("no lease on %s/%s: %s", split.value, fresh, error)
            self._leased.difference_update((split, crop) for crop in fresh)
            return
        self._leases.keep(self._settings, lease, self._holder)

    async def _unlease(self, split: Split, crops: Sequence[int]) -> None:
        """Let go of these crops at once, so that this client's own leases do not keep it from removing them."""
        for lease, wanted in self._leases.take_back(self._holder):
            if lease.split is not split or wanted.isdisjoint(crops):
                self._leases.keep(self._settings, lease, self._holder)
                continue
            with suppress(PrismError):
                await self._api.release(lease.id)
            self._leased.difference_update((split, crop) for crop in wanted)
            await self._lease(split, sorted(wanted.difference(crops)))

    async def _fetch(self, file: CropFile, target: Path, report: ReceivedBytes) -> None:
        await self._downloader.fetch(file, target, lambda: self._resolver.is_downloaded(file), report)

    def _told(self, file: CropFile, path: Path) -> str:
        """A file's path as the caller gets it."""
        if self._resolver.mount is None or not path.is_relative_to(self._resolver.mount):
            self._leases.release(self._holder, [(file.split.value, file.crop)])  # its copy here cannot be evicted there
        return str(path)
