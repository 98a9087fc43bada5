"""When crops were last used: known at once, stored later, kept when the store fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

import pytest

from prismcache.errors import StorageError
from prismcache.schema import Split
from prismcache_service.crops import LastUsed
from prismcache_service.crops import space as lastused
from prismcache_service.store.base import MemoryJobStore

pytestmark = pytest.mark.anyio

CROP = (Split.INSTANCE, 3)


class TouchyStore(MemoryJobStore):
    """Fails the first `failures` writes, and tells of each that succeeds."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.failures = failures
        self.touched = asyncio.Event()

    async def touch(self, crops: Iterable[tuple[Split, int]], at: datetime) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageError("disk gone")
        await super().touch(crops, at)
        self.touched.set()


async def test_a_use_is_known_at_once_and_stored_by_a_flush() -> None:
    store = MemoryJobStore()
    used = LastUsed(store)
    before = datetime.now(UTC)
    used.note(Split.INSTANCE, [3, 4])
    assert await store.last_used() == {}
    known = await used.all()
    assert set(known) == {CROP, (Split.INSTANCE, 4)}
    assert before <= known[CROP] <= datetime.now(UTC)
    await used.flush()
    assert await store.last_used() == await used.all() == known


async def test_what_a_store_failed_to_take_is_kept_for_the_next_flush() -> None:
    store = TouchyStore(failures=1)
    used = LastUsed(store)
    used.note(Split.INSTANCE, [3])
    known = await used.all()
    with pytest.raises(StorageError):
        await used.flush()
    assert await used.all() == known
    await used.flush()
    assert await store.last_used() == known


async def test_a_use_noted_during_a_flush_is_not_lost() -> None:
    class SlowStore(MemoryJobStore):
        async def touch(self, crops: Iterable[tuple[Split, int]], at: datetime) -> None:
            used.note(Split.INSTANCE, [3])
            await super().touch(crops, at)

    used = LastUsed(SlowStore())
    used.note(Split.INSTANCE, [3])
    first = (await used.all())[CROP]
    await used.flush()
    assert (await used.all())[CROP] > first


async def test_flushing_for_ever_outlives_failures_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lastused, "_FLUSH_S", 0.001)

    store = TouchyStore(failures=3)
    used = LastUsed(store)
    used.note(Split.INSTANCE, [3])
    flushing = asyncio.create_task(used.flush_for_ever())
    async with asyncio.timeout(10):
        await store.touched.wait()
    flushing.cancel()
