"""Crops that are there: catalog, files, verification, removal, pins and leases."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prismcache.errors import (
    CropCorruptError,
    CropInUseError,
    CropNotCachedError,
    MissingExtraError,
    PrismError,
    SourceError,
    UnknownCropError,
    UnknownLeaseError,
)
from prismcache.layout import cache_state
from prismcache.schema import (
    ClearedQuarantine,
    CropFile,
    CropInfo,
    Lease,
    LeaseRequest,
    Split,
    Usage,
    Verdict,
    VerifyResult,
)
from prismcache_service.cache.cache import CropCache, CropName
from prismcache_service.crops.catalog import CatalogService
from prismcache_service.crops.ensure import EnsureService
from prismcache_service.crops.last_used import LastUsed
from prismcache_service.crops.space import SpaceService
from prismcache_service.pipeline.progress import Progress
from prismcache_service.store.base import JobStore, LeaseRecord

Crop = tuple[Split, int]


class CropService:
    """The cached crops of one folder.

    Parameters
    ----------
    cache, catalog, ensure, store, space, last_used
        Where they lie, what is published, who makes them again, who remembers pins and leases, how full it is, and who
        hears of use.
    making
        Crops that are wanted and not there yet.
    lease_seconds
        Life of a lease.
    """

    def __init__(
        self,
        cache: CropCache,
        catalog: CatalogService,
        ensure: EnsureService,
        store: JobStore,
        space: SpaceService,
        last_used: LastUsed,
        *,
        making: Callable[[], Collection[Crop]] = tuple,
        lease_seconds: float = 300.0,
    ) -> None:
        self._cache, self._catalog, self._ensure = cache, catalog, ensure
        self._store, self._space, self._last_used = store, space, last_used
        self._making = making
        self._lease_life = timedelta(seconds=lease_seconds)

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        """Every published or cached crop, ordered by split and id; an unreachable source is no error."""
        try:
            published = await self._catalog.crops(refresh=refresh)
        except (SourceError, MissingExtraError):
            published = await self._catalog.recall()
        cached = await asyncio.to_thread(self._cached, split)
        known = {(info.split, info.crop): info for info in published if split in {None, info.split}}
        for key in cached.keys() - known.keys():
            known[key] = CropInfo(split=key[0], crop=key[1])
        extras, making = await self._extras(), self._making()

        def with_files(key: Crop) -> CropInfo:
            files = tuple(cached.get(key, ()))
            state = cache_state(files, is_making=key in making)
            return known[key].model_copy(update={"state": state, "files": files, **extras.of(key)})

        return [with_files(key) for key in sorted(known)]

    async def describe(self, split: Split, crop: int) -> CropInfo:
        """One crop in full; the source is asked anew if it is not known.

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

    async def file(self, split: Split, crop: int, channels: Sequence[int] | None) -> CropFile:
        """A right file with (at least) these channels; counts as use.

        Raises
        ------
        CropNotCachedError
            If there is none.
        """
        found = await asyncio.to_thread(self._cache.find, split, crop, channels)
        if found is None:
            raise CropNotCachedError(f"crop {split.value}/{crop} is not cached with these channels")
        self._last_used.note(split, [crop])
        return found

    def local_path(self, file: CropFile) -> Path:
        """Where this machine has a file that `file` answered."""
        return self._cache.local_path(file)

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        """Re-read files against their manifests; `repair` sets bad ones aside and makes them again.

        Raises
        ------
        CropNotCachedError
            If a crop that was named has no file.
        """
        results = []
        for name in await asyncio.to_thread(self._names, split, crops):
            result = await asyncio.to_thread(self._verify, name)
            if repair and result.verdict is Verdict.CORRUPT:
                result = await self._repair(name, result)
            results.append(result)
        absent = sorted(set(crops or ()) - {result.crop for result in results})
        if absent:
            raise CropNotCachedError(f"not in {self._cache.shown_root}: crops {', '.join(map(str, absent))}")
        return results

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        """Delete files, all of the split when `crops` is None; answers what was deleted.

        Raises
        ------
        CropInUseError
            If one of them is pinned or leased; then nothing is deleted.
        """
        extras = await self._extras()
        names = [name for name in await asyncio.to_thread(list, self._cache.names(split)) if _named(name, crops)]
        for name in names:
            if extras.in_use((split, name.crop)):
                raise CropInUseError(f"crop {split.value}/{name.crop} is pinned or leased")
        return await asyncio.to_thread(self._remove, names)

    async def clear_quarantine(self) -> ClearedQuarantine:
        """Delete everything that was set aside."""
        quarantine = self._cache.quarantine
        gone = await asyncio.to_thread(lambda: quarantine.delete(quarantine.entries()))
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
        """Keep crops from eviction as long as the lease is renewed."""
        record = LeaseRecord(
            uuid.uuid4().hex, owner, request.split, tuple(dict.fromkeys(request.crops)), self._expiry()
        )
        await self._store.put_lease(record)
        return self._lease_of(record)

    async def renew(self, lease_id: str, owner: str = "") -> Lease:
        """Begin a lease's life anew.

        Raises
        ------
        UnknownLeaseError
            If the owner has no such lease, or it has run out.
        """
        known = await self._store.lease(lease_id)
        if known is None or known.owner != owner or known.expires_at <= datetime.now(UTC):
            raise UnknownLeaseError(f"there is no lease {lease_id!r}, or it has run out")
        record = LeaseRecord(known.id, owner, known.split, known.crops, self._expiry())
        await self._store.put_lease(record)
        self._last_used.note(record.split, record.crops)
        return self._lease_of(record)

    async def release(self, lease_id: str, owner: str = "") -> None:
        """End a lease; one that has ended already is no error."""
        known = await self._store.lease(lease_id)
        if known is not None and known.owner == owner:
            await self._store.drop_lease(lease_id)

    async def usage(self) -> Usage:
        """How full the cache folder is."""
        return await self._space.usage()

    def _expiry(self) -> datetime:
        return datetime.now(UTC) + self._lease_life

    def _lease_of(self, record: LeaseRecord) -> Lease:
        return Lease(id=record.id, split=record.split, crops=record.crops, seconds=self._lease_life.total_seconds())

    async def _extras(self) -> _Extras:
        leases = [(r.split, crop) for r in await self._store.leases(datetime.now(UTC)) for crop in r.crops]
        return _Extras(await self._store.pins(), leases, dict(await self._last_used.all()))

    def _cached(self, split: Split | None) -> dict[Crop, list[CropFile]]:
        found: dict[Crop, list[CropFile]] = {}
        for name in self._cache.names(split):
            manifest = self._cache.manifest(name)
            with contextlib.suppress(CropCorruptError):
                if manifest is not None:
                    self._cache.check(name, manifest)
                    found.setdefault((name.split, name.crop), []).append(self._cache.describe(name, manifest))
        return found

    def _names(self, split: Split | None, crops: Sequence[int] | None) -> list[CropName]:
        names = {*self._cache.names(split), *self._cache.strays(split)}
        chosen = [name for name in names if _named(name, crops)]
        return sorted(chosen, key=lambda name: (name.split, name.crop, name.channels or ()))

    def _verify(self, name: CropName) -> VerifyResult:
        manifest = self._cache.manifest(name)
        verdict, reason = Verdict.OK, ""
        try:
            if manifest is None:
                raise CropCorruptError(f"{self._cache.shown_path(name)} has no manifest that can be read")
            self._cache.check(name, manifest, full=True)
        except CropCorruptError as error:
            verdict, reason = Verdict.CORRUPT, str(error)
        return VerifyResult(
            split=name.split,
            crop=name.crop,
            channels=manifest.channels if manifest else name.channels or (),
            path=str(self._cache.shown_path(name)),
            verdict=verdict,
            reason=reason,
        )

    async def _repair(self, name: CropName, result: VerifyResult) -> VerifyResult:
        try:
            await asyncio.to_thread(self._cache.set_aside, name)
            outcome = await self._ensure.ensure(name, _ignore)
        except PrismError as error:  # the others are still to be looked at
            outcome = error.to_problem()
        if isinstance(outcome, CropFile):
            return result.model_copy(update={"verdict": Verdict.REPAIRED})
        reason = f"{result.reason}; not made again: error[{outcome.code}]: {outcome.detail}"
        return result.model_copy(update={"reason": reason})

    def _remove(self, names: Iterable[CropName]) -> list[CropFile]:
        removed = []
        for name in names:
            manifest = self._cache.manifest(name)
            self._cache.remove(name)
            if manifest is not None:
                removed.append(self._cache.describe(name, manifest))
        return removed


class _Extras:
    """What the store knows of crops: pins, leases (one entry for each), and when they were last used."""

    def __init__(self, pins: set[Crop], leases: list[Crop], last_used: dict[Crop, datetime]) -> None:
        self._pins, self._leases, self._last_used = pins, leases, last_used

    def of(self, crop: Crop) -> dict[str, object]:
        return {
            "pinned": crop in self._pins,
            "leases": self._leases.count(crop),
            "last_used_at": self._last_used.get(crop),
        }

    def in_use(self, crop: Crop) -> bool:
        return crop in self._pins or crop in self._leases


def _named(name: CropName, crops: Sequence[int] | None) -> bool:
    return crops is None or name.crop in crops


def _ignore(progress: Progress) -> None:
    """Nobody watches a repair."""
