"""Room in the cache folder: reserved before a fetch begins, and made by evicting the crops least recently used.

At every moment published files, quarantine and promises together stay within `max_bytes`, and the promises fit the file
system's free space less `min_free_bytes`. The quarantine goes before any crop does. Pinned and leased crops, and those
of unfinished jobs, are never evicted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from prismcache.errors import NoSpaceError, PrismError, QuotaExceededError
from prismcache.schema import Split, Usage
from prismcache_service.cache import CropCache, CropName, SetAside
from prismcache_service.store import CropKey, JobStore

_log = logging.getLogger(__name__)

_RETRY_S = 1.0
_SHOWN = 5  # names of crops in a message
_USAGE_S = 3.0  # that a status waits for the disk
_FLUSH_S = 5.0
_NEVER = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class StoredFile:
    """A published file as eviction sees it."""

    name: CropName
    size: int
    last_used: datetime


@dataclass(frozen=True)
class Bounds:
    """Bounds on the cache: bytes in all (None: no bound), bytes left free, and the share at which evicting ends."""

    max_bytes: int | None = None
    min_free_bytes: int = 0
    low_water: float = 1.0


@dataclass(frozen=True)
class Room:
    """Bytes used by files (the quarantine's, too), promised to crops in the making, and free on the file system."""

    used: int
    reserved: int
    free: int

    def lacking(self, size: int, bounds: Bounds) -> int:
        """Return how many bytes must go before `size` more can be promised; 0 or less if none."""
        for_disk = size + self.reserved + bounds.min_free_bytes - self.free
        for_quota = 0 if bounds.max_bytes is None else self.used + self.reserved + size - bounds.max_bytes
        return max(for_disk, for_quota)

    def waited_for(self, size: int, kept: Sequence[StoredFile]) -> str:
        """Return a text about the room that a crop waits for, and what takes it: reservations and files that stay."""
        names = sorted({f"{file.name.split}/{file.name.crop}" for file in kept})
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        held = f"; pinned, leased or wanted by jobs: {', '.join(names[:_SHOWN])}{more}" if names else ""
        return (
            f"room for {size / 1e6:.0f} MB: {self.used / 1e6:.0f} MB are used, {self.reserved / 1e6:.0f} MB promised, "
            f"{self.free / 1e6:.0f} MB free on the disk{held}"
        )


def choose_victims(
    files: Sequence[StoredFile], protected: Collection[CropKey], lacking: int, spare: int
) -> list[StoredFile]:
    """Return the files to evict, least recently used first; empty if all that may go would not be enough.

    `lacking` bytes have to go; `spare` bytes should go beyond those, since an eviction is under way. Crops in
    `protected` stay.
    """
    chosen: list[StoredFile] = []
    gained = 0
    for file in sorted(files, key=lambda file: (file.last_used, file.name.split, file.name.crop)):
        if gained >= lacking + spare:
            break
        if (file.name.split, file.name.crop) not in protected:
            chosen.append(file)
            gained += file.size
    return chosen if gained >= lacking else []


@dataclass(frozen=True)
class Clearing:
    """What is to go: from the quarantine, and published files."""

    aside: Sequence[SetAside]
    files: Sequence[StoredFile]


def plan_clearing(
    aside: Sequence[SetAside],
    files: Sequence[StoredFile],
    protected: Collection[CropKey],
    lacking: int,
    spare: int,
) -> Clearing | None:
    """Return how to gain `lacking` bytes; None if all that may go would not be enough, so that nothing goes in vain.

    `aside` is the quarantine, oldest first, of which no more goes than is needed; crops go only after all of it. The
    other parameters are those of `choose_victims`.
    """
    gained = 0
    for count, entry in enumerate(aside, start=1):
        gained += entry.size
        if gained >= lacking:
            return Clearing(aside[:count], ())
    victims = choose_victims(files, protected, lacking - gained, spare)
    return Clearing(aside, victims) if victims else None


class SpaceService:
    """Promises room and makes it.

    `protected` returns the crops that must not be evicted now, `last_used` when crops were last used. `on_evicted` is
    called with each evicted file. Waiting for room that others hold ends after `patience` seconds.
    """

    def __init__(
        self,
        cache: CropCache,
        bounds: Bounds,
        protected: Callable[[], Awaitable[Collection[CropKey]]],
        last_used: Callable[[], Awaitable[Mapping[CropKey, datetime]]],
        *,
        on_evicted: Callable[[StoredFile], None],
        patience: float = 600.0,
    ) -> None:
        self._cache, self._bounds = cache, bounds
        self._protected, self._last_used, self._on_evicted = protected, last_used, on_evicted
        self._patience = patience
        self._reserved = 0
        self._deciding = asyncio.Lock()

    @asynccontextmanager
    async def reserved(self, size: int, on_wait: Callable[[str], None] = lambda _: None) -> AsyncIterator[None]:
        """Hold room for `size` bytes during the block, evicting and waiting as needed.

        `on_wait` is called with the text of `Room.waited_for` when the text has changed.

        Raise `QuotaExceededError` if the crop could never fit, and `NoSpaceError` if no room came free in time.
        """
        await self._reserve(size, on_wait)
        try:
            yield
        finally:
            self._reserved -= size

    async def _reserve(self, size: int, on_wait: Callable[[str], None]) -> None:
        bound = self._bounds.max_bytes
        if bound is not None and size > bound:
            raise QuotaExceededError(f"the crop may need {size / 1e6:.0f} MB, the cache is {bound / 1e6:.0f} MB in all")
        told = ""
        try:
            async with asyncio.timeout(self._patience):
                # Room also comes from leases that expire and from files that others delete; neither sends a signal.
                while reason := await self._try_reserve(size):
                    if reason != told:
                        on_wait(reason)
                        told = reason
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise NoSpaceError(f"{self._cache.shown_root} has no {told or 'room'}") from None

    async def _try_reserve(self, size: int) -> str:
        """Reserve room; return what is waited for, empty if the room is reserved."""
        async with self._deciding:
            files, aside, room = await self._look()
            lacking = room.lacking(size, self._bounds)
            if lacking > 0:
                spare = int((self._bounds.max_bytes or 0) * (1 - self._bounds.low_water))
                protected = await self._protected()
                clearing = plan_clearing(aside, files, protected, lacking, spare)
                reason = room.waited_for(size, [f for f in files if (f.name.split, f.name.crop) in protected])
                if clearing is None:
                    return reason
                gone = await self._cache.threads.run(self._cache.quarantine.delete, clearing.aside)
                for entry in gone:
                    _log.info("deleted %s, %d bytes, from the quarantine to make room", entry.path.name, entry.size)
                if len(gone) < len(clearing.aside):
                    return reason
                for victim in clearing.files:
                    await self._cache.threads.run(self._cache.remove, victim.name)
                    self._on_evicted(victim)
            self._reserved += size
            return ""

    async def usage(self) -> Usage:
        """Return how full the folder is."""
        total, _ = await self._cache.threads.run(self._cache.disk_usage, seconds=_USAGE_S)
        files, aside, room = await self._look()
        set_aside = sum(entry.size for entry in aside)
        return Usage(
            files=len(files),
            used_bytes=room.used - set_aside,
            quarantine_files=len(aside),
            quarantine_bytes=set_aside,
            reserved_bytes=room.reserved,
            max_bytes=self._bounds.max_bytes,
            min_free_bytes=self._bounds.min_free_bytes,
            free_bytes=room.free,
            total_bytes=total,
        )

    async def _look(self) -> tuple[list[StoredFile], list[SetAside], Room]:
        # Promises first: a file that is published meanwhile is then counted twice rather than not at all.
        reserved = self._reserved
        files = await self._files()
        aside = await self._cache.threads.run(self._cache.quarantine.entries)
        used = sum(file.size for file in files) + sum(entry.size for entry in aside)
        _, free = await self._cache.threads.run(self._cache.disk_usage)
        return files, aside, Room(used, reserved, free)

    async def _files(self) -> list[StoredFile]:
        used = await self._last_used()
        sizes = await self._cache.threads.run(self._cache.sizes)
        return [StoredFile(name, size, used.get((name.split, name.crop), _NEVER)) for name, size in sizes]


class LastUsed:
    """Times of last use, in front of a store.

    A stop of the service loses the last few seconds, which only blurs the order of eviction.
    """

    def __init__(self, store: JobStore) -> None:
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
