"""Room in a real cache folder: promised, waited for, made by eviction, and never more than there is."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prismcache.errors import NoSpaceError, QuotaExceededError, StorageError
from prismcache.schema import Split
from prismcache_service.cache import CropCache, CropName
from prismcache_service.crops import space as space_module
from prismcache_service.crops.space import Bounds, SpaceService, StoredFile
from tests.support.cache_root import files_below, published
from tests.support.stored_crops import store_crop

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Folder:
    """A cache folder with its space service; crops are used in the order of their numbers unless told otherwise."""

    def __init__(self, root: Path, bounds: Bounds, patience: float = 10.0) -> None:
        self.cache = CropCache(root)
        self.protected: set[tuple[Split, int]] = set()
        self.used: dict[tuple[Split, int], datetime] = {}
        self.evicted: list[int] = []
        self.space = SpaceService(
            self.cache, bounds, self._protected, self._last_used, on_evicted=self._evicted, patience=patience
        )

    async def _protected(self) -> set[tuple[Split, int]]:
        return self.protected

    async def _last_used(self) -> Mapping[tuple[Split, int], datetime]:
        return self.used

    def _evicted(self, file: StoredFile) -> None:
        self.evicted.append(file.name.crop)

    def put(self, crop: int, size: int, used: int | None = None) -> None:
        store_crop(self.cache, CropName(Split.INSTANCE, crop), size)
        if used is not None:
            self.used[Split.INSTANCE, crop] = NOW + timedelta(hours=used)

    def bytes(self) -> int:
        """What crop files take, finished or not."""
        total = 0
        for path in (self.cache.root / "instance").iterdir():
            with contextlib.suppress(FileNotFoundError):  # evicted while we look
                total += path.stat().st_size
        return total


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space_module, "_RETRY_S", 0.002)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "root", Bounds(max_bytes=10_000))


async def reserve(folder: Folder, size: int, on_wait: Callable[[str], None] = str) -> None:
    async with folder.space.reserved(size, on_wait):
        pass


def test_room_is_made_by_what_was_used_least_recently_with_file_and_manifest(folder: Folder) -> None:
    for crop, used in ((0, 3), (1, 1), (2, 2), (3, None)):
        folder.put(crop, 2500, used)
    asyncio.run(reserve(folder, 5000))
    assert folder.evicted == [3, 1]
    assert published(folder.cache.root) == ["instance/crop_0.h5", "instance/crop_2.h5"]
    assert not [name for name in files_below(folder.cache.root) if "crop_1" in name or "crop_3" in name]


def test_nothing_is_evicted_while_there_is_room(folder: Folder) -> None:
    folder.put(0, 4000)
    asyncio.run(reserve(folder, 6000))
    assert folder.evicted == []


def test_an_eviction_goes_on_to_the_low_water_mark(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "root", Bounds(max_bytes=10_000, low_water=0.5))
    for crop in range(10):
        folder.put(crop, 1000, crop)
    asyncio.run(reserve(folder, 1000))
    assert folder.evicted == list(range(6))


def test_protected_crops_stay_whatever_their_age(folder: Folder) -> None:
    for crop in range(4):
        folder.put(crop, 2500, crop)
    folder.protected = {(Split.INSTANCE, 0), (Split.INSTANCE, 2)}
    asyncio.run(reserve(folder, 5000))
    assert folder.evicted == [1, 3]


def test_what_can_never_fit_is_refused_at_once(folder: Folder) -> None:
    with pytest.raises(QuotaExceededError, match="cache is 0 MB in all"):
        asyncio.run(reserve(folder, 10_001))


async def test_what_does_not_fit_now_waits_until_something_may_go(folder: Folder) -> None:
    folder.put(0, 8000)
    folder.protected = {(Split.INSTANCE, 0)}

    told: list[str] = []
    is_told = asyncio.Event()

    def on_wait(reason: str) -> None:
        told.append(reason)
        is_told.set()

    waiting = asyncio.create_task(reserve(folder, 5000, on_wait))
    await is_told.wait()
    assert not waiting.done()
    assert folder.evicted == []
    assert [text.partition(":")[0] for text in told] == ["room for 0 MB"]
    assert told[0].endswith("; pinned, leased or wanted by jobs: instance/0")
    folder.protected = set()
    await waiting
    assert folder.evicted == [0]


async def test_what_does_not_fit_now_waits_until_a_promise_ends_and_is_freed_when_its_work_fails(
    folder: Folder,
) -> None:
    async def fail() -> asyncio.Task[None]:
        async with folder.space.reserved(8000):
            waiting = asyncio.create_task(reserve(folder, 5000))
            await asyncio.sleep(0.05)
            raise ZeroDivisionError(waiting)

    with pytest.raises(ZeroDivisionError) as failure:
        await fail()
    waiting = failure.value.args[0]
    assert not waiting.done()
    await waiting
    assert (await folder.space.usage()).reserved_bytes == 0


async def test_who_gives_up_waiting_holds_nothing(folder: Folder) -> None:
    async with folder.space.reserved(8000):
        waiting = asyncio.create_task(reserve(folder, 5000))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await folder.space.usage()).reserved_bytes == 8000
    await reserve(folder, 10_000)


def test_patience_ends_with_the_figures(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "root", Bounds(max_bytes=10_000_000), patience=0.05)
    folder.put(0, 6_000_000)
    folder.protected = {(Split.INSTANCE, 0)}

    async def main() -> None:
        async with folder.space.reserved(3_000_000):
            await reserve(folder, 2_000_000)

    with pytest.raises(NoSpaceError, match="no room for 2 MB: 6 MB are used, 3 MB promised"):
        asyncio.run(main())


def test_a_disk_without_its_minimum_free_counts_as_full(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "root", Bounds(min_free_bytes=1 << 60), patience=0.02)
    with pytest.raises(NoSpaceError, match="free on the disk"):
        asyncio.run(reserve(folder, 1))


async def test_a_file_that_cannot_be_removed_is_an_error_and_no_promise(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: CropName) -> None:
        raise StorageError("read-only")

    folder.put(0, 8000)
    monkeypatch.setattr(folder.cache, "remove", refuse)

    with pytest.raises(StorageError, match="read-only"):
        await reserve(folder, 5000)
    assert (await folder.space.usage()).reserved_bytes == 0


async def test_what_is_set_aside_counts_against_the_quota_and_goes_before_any_crop(folder: Folder) -> None:
    for crop in (0, 1):
        folder.put(crop, 3000)
        folder.cache.set_aside(CropName(Split.INSTANCE, crop))
    folder.put(2, 3000)

    usage = await folder.space.usage()
    assert (usage.files, usage.used_bytes) == (1, 3000)
    assert (usage.quarantine_files, usage.quarantine_bytes) == (2, 6000)
    await reserve(folder, 2000)
    assert (await folder.space.usage()).quarantine_files == 1
    await reserve(folder, 7000)
    assert (await folder.space.usage()).quarantine_files == 0
    assert folder.evicted == []
    await reserve(folder, 7001)
    assert folder.evicted == [2]


async def test_what_is_set_aside_stays_while_even_all_of_it_would_not_do(folder: Folder) -> None:
    folder.put(0, 3000)
    folder.cache.set_aside(CropName(Split.INSTANCE, 0))
    folder.put(1, 5000)
    folder.protected = {(Split.INSTANCE, 1)}

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await reserve(folder, 8000)
    assert (await folder.space.usage()).quarantine_files == 1


async def test_usage_tells_files_promises_bounds_and_disk(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "root", Bounds(max_bytes=10_000, min_free_bytes=5))

    assert (await folder.space.usage()).files == 0
    folder.put(0, 3000)
    async with folder.space.reserved(2000):
        usage = await folder.space.usage()
    assert (usage.files, usage.used_bytes, usage.reserved_bytes) == (1, 3000, 2000)
    assert (usage.max_bytes, usage.min_free_bytes) == (10_000, 5)
    assert 0 < usage.free_bytes <= usage.total_bytes


@pytest.mark.parametrize("seed", range(5))
async def test_the_quota_holds_at_every_moment_of_many_writers(folder: Folder, seed: int) -> None:
    """Each writer holds a promise, writes part by part up to it, publishes, and lets go, in any order."""
    random_ = random.Random(seed)
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, folder.bytes())
        assert folder.bytes() <= 10_000

    async def write(crop: int, size: int) -> None:
        async with folder.space.reserved(size):
            temporary = folder.cache.temporary(CropName(Split.INSTANCE, crop), "t")
            for part in range(1, 4):
                temporary.write_bytes(b"." * (size * part // 4))
                look()
                await asyncio.sleep(random_.random() / 200)
            temporary.unlink()
            folder.put(crop, size, crop)
            look()

    folder.cache.prepare(Split.INSTANCE)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for crop in range(25):
            group.create_task(write(crop, random_.randint(500, 4000)))
    usage = await folder.space.usage()
    assert usage.reserved_bytes == 0
    assert usage.used_bytes <= 10_000
    assert most > 6000
    assert folder.evicted
