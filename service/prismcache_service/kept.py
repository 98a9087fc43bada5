"""What is kept of crops over restarts, by the job store: pins, retention leases, links, and times of last use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from prismcache.errors import PrismError
from prismcache.schema import Split

CropKey = tuple[Split, int]
_FLUSH_S = 5.0

_BOOT = datetime.now(UTC) - timedelta(seconds=time.monotonic())


def steady_now() -> datetime:
    """Return the time that retention leases live by: the clock's when this process began, and what has passed since.

    So a clock that is set neither ends a lease nor prolongs one.
    """
    return _BOOT + timedelta(seconds=time.monotonic())


@dataclass(frozen=True)
class LeaseRecord:
    """A retention lease on crops of one split, valid until `steady_now` is `expires_at`."""

    id: str
    owner: str
    split: Split
    crops: tuple[int, ...]
    expires_at: datetime


@dataclass(frozen=True)
class LinkRecord:
    """A capability link to one crop: everything about it but the capability, of which `sha256` is the hash."""

    id: str
    sha256: str
    owner: str
    split: Split
    crop: int
    note: str
    created_at: datetime
    expires_at: datetime


class Uses(Protocol):
    """Keeps when crops were last used."""

    async def touch(self, crops: Iterable[CropKey], at: datetime) -> None: ...

    async def last_used(self) -> Mapping[CropKey, datetime]: ...


class LastUsed:
    """Times of last use, in front of a store.

    Parameters
    ----------
    store
        Where they are kept; a stop loses the last few seconds, which only blurs the order of eviction.
    """

    def __init__(self, store: Uses) -> None:
        self._store = store
        self._fresh: dict[CropKey, datetime] = {}

    def note(self, split: Split, crops: Iterable[int]) -> None:
        """Note that crops are used now."""
        self._fresh.update(dict.fromkeys(((split, crop) for crop in crops), datetime.now(UTC)))

    async def all(self) -> Mapping[CropKey, datetime]:
        """Return when each crop was last used, as far as known."""
        return {**await self._store.last_used(), **self._fresh}

    async def flush(self) -> None:
        """Store the fresh times; those that the store refuses stay fresh."""
        by_time: dict[datetime, list[CropKey]] = {}
        for crop, at in self._fresh.items():
            by_time.setdefault(at, []).append(crop)
        for at, crops in by_time.items():
            await self._store.touch(crops, at)
            for crop in crops:
                if self._fresh.get(crop) == at:
                    del self._fresh[crop]

    async def flush_for_ever(self) -> None:
        """Flush every few seconds."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            with contextlib.suppress(PrismError):  # the next time will do
                await self.flush()


class PinsAndLeases(Protocol):
    """Keeps pins and retention leases; its methods raise `StorageError`."""

    async def pin(self, split: Split, crop: int, owner: str) -> None: ...

    async def unpin(self, split: Split, crop: int) -> bool: ...

    async def pins(self) -> set[CropKey]: ...

    async def put_lease(self, lease: LeaseRecord) -> None: ...

    async def lease(self, lease_id: str) -> LeaseRecord | None: ...

    async def leases(self, now: datetime) -> list[LeaseRecord]: ...

    async def drop_lease(self, lease_id: str) -> bool: ...
