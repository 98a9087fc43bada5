"""When crops were last used: noted in memory at once and stored every few seconds, so that a hit writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from prismcache.errors import PrismError
from prismcache.schema import Split
from prismcache_service.kept import CropKey, Uses

_FLUSH_S = 5.0


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
