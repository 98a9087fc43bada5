"""The remote backend: the lab's service over HTTP, and its files on this machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from prismcache.backend import ReceivedBytes
from prismcache.cached_info import catalog_of, files_downloaded, files_on_mount, known_job, splits_below
from prismcache.config import Settings
from prismcache.disk import VerifiedFiles
from prismcache.errors import PrismError, ServiceBusyError, ServiceUnreachableError, UnknownJobError
from prismcache.remote.api import ServiceApi
from prismcache.remote.download import Downloader, downloads_of
from prismcache.remote.http import Connection
from prismcache.remote.leases import LeaseKeeper, keeper
from prismcache.remote.resolve import GRACE, Resolver
from prismcache.remote.retry import BRIEF, ONCE, Patience
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
from prismcache.wishes import Wish, Wishes

if TYPE_CHECKING:
    import httpx2

ON_SERVICE = "on the service"
"""In place of the path of a file that this machine does not have."""

_log = logging.getLogger("prismcache")


def create_backend(settings: Settings) -> RemoteBackend:
    """Return a backend for the service of `settings`; to be called on the event loop that uses it."""
    return RemoteBackend(settings)


class RemoteBackend:
    """A `prismcache.backend.Backend` that asks a service.

    A restart of the service goes unnoticed: the service keeps its jobs, and a job that it forgot is submitted again,
    once. Crops that the mount shows to be cached are found even while no service responds.

    Parameters
    ----------
    settings
        URL and token of the service; `root`, if it was given, is this machine's mount of the service's root.
    transport
        Send requests through this transport instead of the network. It is not closed here.
    patience
        How long to go on trying a service that does not respond.
    leases
        Renews the retention leases; default: the keeper of the process.
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
        self._verified = VerifiedFiles(settings.downloads / ".verified")
        self._downloads = downloads_of(settings.downloads, self._api.connection.url)
        self._downloader = Downloader(self._api.connection, self._verified, self._downloads)
        self._resolver = Resolver(settings.mount, self._downloads, self._verified, self._fetch, grace=grace)
        self._leases = leases or keeper()
        self._holder = object()  # not this backend itself, which the keeper would keep alive
        self._leased: set[tuple[Split, int]] = set()
        self._given_up: set[tuple[Split, int]] = set()
        self._wishes = Wishes(self._submit, self._cancel)
        self._forgotten: set[str] = set()

    async def submit(self, request: JobRequest) -> Job:
        self._leased -= self._given_up  # wanted again: the service has to protect them again
        self._given_up.clear()
        return await self._wishes.submit(Wish(request))

    async def _submit(self, wish: Wish) -> Job:
        try:
            job = await self._api.submit(wish.request, client=wish.name, patience=ONCE)
        except (ServiceUnreachableError, ServiceBusyError) as error:
            known = await asyncio.to_thread(known_job, wish.request, self._resolver.mount)
            if known is not None:
                _log.info("%s; the crops are cached on %s", error, self._resolver.mount)
                return known
            job = await self._api.submit(wish.request, client=wish.name)
        return await self._lease_ready(job)

    async def wait(self, job: Job, timeout: float) -> Job:  # noqa: ASYNC109 - the deadline of a long poll
        if job.state.is_final:
            return job
        try:
            return await self._lease_ready(self._wishes.follow(await self._api.wait(job, timeout)))
        except UnknownJobError:
            wish = self._wishes.take(job.id)
            if wish is None or job.id in self._forgotten:
                raise
            newer = await self._wishes.submit(wish)
            self._forgotten.add(newer.id)
            return newer

    async def cancel(self, job: Job) -> None:
        await self._wishes.cancel(job.id)

    async def _cancel(self, job_id: str, name: str) -> None:
        with suppress(UnknownJobError, ServiceUnreachableError):
            await self._api.cancel(job_id, client=name, patience=BRIEF)

    async def paths_here(self, files: Sequence[CropFile]) -> Mapping[int, str]:
        known = await self._resolver.known(files)
        return {file.crop: self._told(file, path) for file, path in known}

    async def local_path(self, file: CropFile, report: ReceivedBytes) -> str:
        return self._told(file, await self._resolver.path(file, report))

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        try:
            return await self._api.catalog(split, refresh=refresh, patience=ONCE)
        except (ServiceUnreachableError, ServiceBusyError) as error:
            if found := await self._cached_here(error, split):
                return found
            return await self._api.catalog(split, refresh=refresh)

    async def describe(self, split: Split, crop: int) -> CropInfo:
        try:
            info = await self._api.crop(split, crop, patience=ONCE)
        except (ServiceUnreachableError, ServiceBusyError) as error:
            if found := [info for info in await self._cached_here(error, split) if info.crop == crop]:
                return found[0]
            info = await self._api.crop(split, crop)
        here = dict(await self._resolver.known(info.files, unread=True))
        files = (file.model_copy(update={"path": str(here.get(file, ON_SERVICE))}) for file in info.files)
        return info.model_copy(update={"files": tuple(files)})

    async def _cached_here(self, error: PrismError, split: Split | None) -> list[CropInfo]:
        """Return a catalog of the files on this machine, for when the service does not respond."""

        def look() -> list[CropInfo]:
            files: list[CropFile] = []
            folder = self._resolver.mount or self._downloads
            for each in splits_below(folder) if split is None else (split,):
                if self._resolver.mount is not None:
                    files += files_on_mount(self._resolver.mount, each)
                else:
                    files += files_downloaded(self._downloads, each, self._verified)
            return catalog_of(files)

        if found := await asyncio.to_thread(look):
            _log.warning("%s; these are the crops that this machine has. %s", error, error.remedy)
        return found

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
        """Cancel unfinished jobs, release the retention leases, close the connection."""
        self._leases.release(self._holder)
        await self._wishes.end()
        await self._api.aclose()

    def hand_over(self) -> None:
        """Leave the retention leases to the process, for a client that was dropped without being closed."""
        self._leases.hand_over(self._holder)

    async def _lease_ready(self, job: Job) -> Job:
        """Lease the crops that a snapshot says are ready, before the caller is told; return the snapshot."""
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
        """Release these crops at once, so that this client's own leases do not keep it from removing them."""
        for lease, wanted in self._leases.take_back(self._holder):
            if lease.split != split or wanted.isdisjoint(crops):
                self._leases.keep(self._settings, lease, self._holder)
                continue
            with suppress(PrismError):
                await self._api.release(lease.id)
            self._leased.difference_update((split, crop) for crop in wanted)
            await self._lease(split, sorted(wanted.difference(crops)))

    async def _fetch(self, file: CropFile, target: Path, report: ReceivedBytes) -> None:
        await self._downloader.fetch(file, target, lambda: self._resolver.is_downloaded(file), report)

    def _told(self, file: CropFile, path: Path) -> str:
        """Return a file's path as the caller gets it; a copy on this machine needs no lease on the service."""
        if self._resolver.mount is None or not path.is_relative_to(self._resolver.mount):
            self._leases.release(self._holder, [(file.split.value, file.crop)])
            self._given_up.add((file.split, file.crop))
        return str(path)
