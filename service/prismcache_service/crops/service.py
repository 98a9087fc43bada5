"""The crops of a cache folder: catalog, files, verification, removal, pins and retention leases."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

from prismcache.errors import (
    CropInUseError,
    CropNotCachedError,
    MissingExtraError,
    PrismError,
    ServiceBusyError,
    SourceError,
    UnknownCropError,
    UnknownLeaseError,
    error_from_problem,
)
from prismcache.layout import cache_state
from prismcache.schema import (
    ClearedQuarantine,
    CropFile,
    CropInfo,
    Lease,
    LeaseRequest,
    Problem,
    Split,
    Verdict,
    VerifyResult,
)
from prismcache_service.cache import CropCache, CropName, SingleFlight
from prismcache_service.crops.catalog import CatalogService
from prismcache_service.crops.ensure import EnsureService
from prismcache_service.crops.space import LastUsed
from prismcache_service.store import CropKey, JobStore, LeaseRecord, steady_now

T = TypeVar("T")


class CropService:
    """The cached crops of one folder.

    `making` returns the crops that unfinished jobs lack. `lease_seconds` is the life of a retention lease, `patience`
    the time in s that the catalog and a download wait for files to be read again (None: without end).
    """

    def __init__(
        self,
        cache: CropCache,
        catalog: CatalogService,
        ensure: EnsureService,
        store: JobStore,
        last_used: LastUsed,
        *,
        making: Callable[[], Collection[CropKey]] = tuple,
        lease_seconds: float = 300.0,
        patience: float | None = None,
    ) -> None:
        self._cache, self._catalog, self._ensure = cache, catalog, ensure
        self.threads = cache.threads
        self._store, self._last_used = store, last_used
        self._making = making
        self._lease_life = timedelta(seconds=lease_seconds)
        self._patience = patience
        self._verifying = SingleFlight()

    async def start(self) -> None:
        """Shorten retention leases that end later than a new one would: the clock was ahead when they were made."""
        for record in await self._store.leases(steady_now()):
            if record.expires_at > self._expiry():
                await self._store.put_lease(replace(record, expires_at=self._expiry()))

    async def aclose(self) -> None:
        """Stop verifying."""
        await self._verifying.aclose()

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        """Return every published or cached crop, by split and id; an unreachable source is not an error."""
        try:
            published = await self._catalog.crops(refresh=refresh)
        except (SourceError, MissingExtraError):
            published = await self._catalog.recall()
        cached = await self._cached(split)
        known = {(info.split, info.crop): info for info in published if split in {None, info.split}}
        for key in cached.keys() - known.keys():
            known[key] = CropInfo(split=key[0], crop=key[1])
        splits = self._cache.splits
        pins, leases, used = await self._store.pins(), await self._leased(), await self._last_used.all()
        making = self._making()

        def with_files(key: CropKey) -> CropInfo:
            files = tuple(cached.get(key, ()))
            state = cache_state(files, is_making=key in making)
            update = splits.about(*key) | {
                "state": state,
                "files": files,
                "pinned": key in pins,
                "leases": leases.count(key),
                "last_used_at": used.get(key),
            }
            return known[key].model_copy(update=update)

        return [with_files(key) for key in sorted(known)]

    async def describe(self, split: Split, crop: int) -> CropInfo:
        """Return one crop; the source is read again if the crop is not known.

        Raises
        ------
        UnknownCropError
            If it is neither published nor cached.
        """
        for refresh in (False, True):
            for info in await self.catalog(split, refresh=refresh):
                if info.crop == crop:
                    return info
        raise UnknownCropError(f"crop {crop} of split {split.value!r} is neither published nor cached")

    async def file(self, wanted: CropName) -> CropFile:
        """Return a right file that serves `wanted`: with its channels and context, or more; counts as use.

        Raises
        ------
        CropNotCachedError
            If there is none.
        ServiceBusyError
            If a file has to be read again first, which takes longer than a client waits; the reading goes on.
        """
        found = await self._within_patience(self._cache.find(wanted))
        if found is None:
            raise ServiceBusyError(
                f"crop {wanted.split.value}/{wanted.crop} is being read again, because its time stamps changed"
            )
        if found.file is None:
            raise CropNotCachedError(f"crop {wanted.split.value}/{wanted.crop} is not cached as {wanted.file_name}")
        self._last_used.note(wanted.split, [wanted.crop])
        return found.file

    async def _within_patience(self, work: Awaitable[T]) -> T | None:
        try:
            async with asyncio.timeout(self._patience):
                return await work
        except TimeoutError:
            return None

    def local_path(self, file: CropFile) -> Path:
        """Return where this machine has a file that `file` returned."""
        return self._cache.local_path(file)

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        """Read files again and compare them with their manifests; `repair` sets bad ones aside and makes them again.

        A request that is equal to a running one joins it, and a cancelled one goes on: a client whose time ran out
        sends its request again and gets the results of the first reading.

        Raises
        ------
        CropNotCachedError
            If a crop that was named has no file.
        """
        wanted = None if crops is None else tuple(sorted(set(crops)))
        start = partial(self._verify_all, split, wanted, repair=repair)
        return await self._verifying.run((split, wanted, repair), start)

    async def _verify_all(
        self, split: Split | None, crops: tuple[int, ...] | None, *, repair: bool
    ) -> list[VerifyResult]:
        results = []
        names = await self._cache.threads.run(lambda: {*self._cache.names(split), *self._cache.strays(split)})
        for name in sorted(names, key=lambda name: (name.split, name.crop, name.channels or (), name.file_name)):
            if crops is not None and name.crop not in crops:
                continue
            reason = await self._cache.read_again(name)
            manifest = await self._cache.threads.run(self._cache.manifest, name)
            result = VerifyResult(
                split=name.split,
                crop=name.crop,
                channels=manifest.channels if manifest else name.channels or (),
                path=str(self._cache.shown_path(name)),
                verdict=Verdict.CORRUPT if reason else Verdict.OK,
                reason=reason,
            )
            results.append(await self._repair(name, result) if repair and reason else result)
        absent = sorted(set(crops or ()) - {result.crop for result in results})
        if absent:
            raise CropNotCachedError(f"not in {self._cache.shown_root}: crops {', '.join(map(str, absent))}")
        return results

    async def _repair(self, name: CropName, result: VerifyResult) -> VerifyResult:
        """Set a bad file aside and make it again, unless another right file holds its channels already."""
        try:
            await self._cache.threads.run(self._cache.set_aside, name)
            made = await self._ensure.ensure(name, lambda _: None)
            if isinstance(made, Problem):
                raise error_from_problem(made)
            if made.path != result.path:
                await self._cache.threads.run(self._cache.forget, name)
        except PrismError as error:  # the others are still to be looked at
            reason = f"{result.reason}; not made again: error[{error.code}]: {error}"
            return result.model_copy(update={"reason": reason})
        if made.path == result.path:
            return result.model_copy(update={"verdict": Verdict.REPAIRED})
        reason = f"{result.reason}; set aside and not made again, since {made.path} holds its channels"
        return result.model_copy(update={"verdict": Verdict.REPAIRED, "reason": reason, "path": made.path})

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        """Delete files, all of the split when `crops` is None; return what was deleted.

        Raises
        ------
        CropInUseError
            If one of them is pinned or leased; then nothing is deleted.
        """
        in_use = await self.in_use()
        found = await self._cache.threads.run(lambda: list(self._cache.names(split)))
        names = [name for name in found if crops is None or name.crop in crops]
        for name in names:
            if (split, name.crop) in in_use:
                raise CropInUseError(f"crop {split.value}/{name.crop} is pinned or leased")
        return await self._cache.threads.run(self._remove, names)

    async def clear_quarantine(self) -> ClearedQuarantine:
        """Delete everything that was set aside, and return how much that was."""
        quarantine = self._cache.quarantine
        gone = await self._cache.threads.read(lambda: quarantine.delete(quarantine.entries()))
        return ClearedQuarantine(files=len(gone), bytes=sum(entry.size for entry in gone))

    async def pin(self, split: Split, crop: int, owner: str = "") -> CropInfo:
        """Keep a crop from eviction until it is unpinned; one that is not cached yet may be pinned too."""
        info = await self.describe(split, crop)
        await self._store.pin(split, crop, owner)
        return info.model_copy(update={"pinned": True})

    async def unpin(self, split: Split, crop: int) -> CropInfo:
        """Let a crop be evicted again."""
        info = await self.describe(split, crop)
        await self._store.unpin(split, crop)
        return info.model_copy(update={"pinned": False})

    async def lease(self, request: LeaseRequest, owner: str = "") -> Lease:
        """Return a new retention lease, which keeps crops from eviction as long as it is renewed.

        Raises
        ------
        UnknownSplitError
            If the catalog has no such split.
        """
        self._cache.splits.entry(request.split)
        record = LeaseRecord(
            uuid.uuid4().hex, owner, request.split, tuple(dict.fromkeys(request.crops)), self._expiry()
        )
        await self._store.put_lease(record)
        return self._lease_of(record)

    async def renew(self, lease_id: str, owner: str = "") -> Lease:
        """Extend a retention lease by its whole life.

        Raises
        ------
        UnknownLeaseError
            If the owner has no such lease, or it has run out.
        """
        known = await self._store.lease(lease_id)
        if known is None or known.owner != owner or known.expires_at <= steady_now():
            raise UnknownLeaseError(f"there is no lease {lease_id!r}, or it has run out")
        record = LeaseRecord(known.id, owner, known.split, known.crops, self._expiry())
        await self._store.put_lease(record)
        self._last_used.note(record.split, record.crops)
        return self._lease_of(record)

    async def release(self, lease_id: str, owner: str = "") -> None:
        """End a retention lease; an ended or unknown lease is not an error."""
        known = await self._store.lease(lease_id)
        if known is not None and known.owner == owner:
            await self._store.drop_lease(lease_id)

    def _expiry(self) -> datetime:
        return steady_now() + self._lease_life

    def _lease_of(self, record: LeaseRecord) -> Lease:
        return Lease(id=record.id, split=record.split, crops=record.crops, seconds=self._lease_life.total_seconds())

    async def in_use(self) -> set[CropKey]:
        """Return the crops that are pinned or leased."""
        return {*await self._store.pins(), *await self._leased()}

    async def _leased(self) -> list[CropKey]:
        """Return the leased crops, each as often as it is leased."""
        return [(lease.split, crop) for lease in await self._store.leases(steady_now()) for crop in lease.crops]

    async def _cached(self, split: Split | None) -> dict[CropKey, list[CropFile]]:
        """Return the files that are right. A doubtful one is read again, and missing here until that is done."""
        files, doubtful = await self._cache.threads.run(self._cache.files, split)
        if doubtful:
            reading = asyncio.gather(*map(self._cache.read_again, doubtful), return_exceptions=True)
            await self._within_patience(reading)
            files, _ = await self._cache.threads.run(self._cache.files, split)
        found: dict[CropKey, list[CropFile]] = {}
        for file in files:
            found.setdefault((file.split, file.crop), []).append(file)
        return found

    def _remove(self, names: Iterable[CropName]) -> list[CropFile]:
        removed = []
        for name in names:
            manifest = self._cache.manifest(name)
            self._cache.remove(name)
            if manifest is not None:
                removed.append(self._cache.describe(name, manifest))
        return removed
