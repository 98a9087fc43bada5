"""Crops that are there: what is told of them, their files, their repair and removal, pins and leases."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from prismcache.errors import (
    CropInUseError,
    CropNotCachedError,
    PrismError,
    SourceUnreachableError,
    UnknownCropError,
    UnknownLeaseError,
)
from prismcache.schema import CropFile, CropInfo, LeaseRequest, Progress, Split, Verdict
from prismcache_service.cache import CropCache, CropName
from prismcache_service.crops import service as crops_module
from prismcache_service.crops.ensure import EnsureService
from prismcache_service.crops.service import CropService
from prismcache_service.crops.space import LastUsed
from prismcache_service.store import base as kept_module
from prismcache_service.store import steady_now
from prismcache_service.store.base import MemoryJobStore
from tests.support.cache_root import published, quarantined
from tests.support.job_scene import Published
from tests.support.stored_crops import store_crop

INSTANCE = Split.INSTANCE


class Restorer(EnsureService):
    """Makes every crop anew, at once, and counts."""

    def __init__(self, cache: CropCache) -> None:
        self._cache = cache
        self.made: list[CropName] = []
        self.errors: dict[int, PrismError] = {}
        self.holds: dict[CropName, CropFile] = {}  # names whose channels another file has

    async def ensure(self, name: CropName, report: Callable[[Progress], None], *, strict: bool = False) -> CropFile:
        self.made.append(name)
        if name.crop in self.errors:
            raise self.errors[name.crop]
        if name in self.holds:
            return self.holds[name]
        return store_crop(self._cache, name)


class Lost(Published):
    """A bucket that cannot be reached, but was once."""

    async def crops(self, *, refresh: bool = False) -> tuple[CropInfo, ...]:
        raise SourceUnreachableError("no response")

    async def recall(self) -> tuple[CropInfo, ...]:
        return (CropInfo(split=INSTANCE, crop=1),)


class Shelf:
    """A crop service over a real folder, a store in memory, and a bucket with instance crops 0 to 2."""

    def __init__(
        self,
        root: Path,
        published: Published | None = None,
        lease_seconds: float = 300.0,
        shown_root: Path | None = None,
    ) -> None:
        self.cache = CropCache(root, shown_root)
        self.store = MemoryJobStore()
        self.last_used = LastUsed(self.store)
        self.restorer = Restorer(self.cache)
        self.crops = CropService(
            self.cache, published or Published(), self.restorer, self.store, self.last_used,
            lease_seconds=lease_seconds,
        )  # fmt: skip

    def put(self, crop: int, channels: tuple[int, ...] | None = None, split: Split = INSTANCE) -> CropFile:
        return store_crop(self.cache, CropName(split, crop, channels))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "root")


def run(story: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(story())


def test_the_catalog_is_what_is_published_and_what_is_cached(shelf: Shelf) -> None:
    async def story() -> None:
        full, part, other = shelf.put(0), shelf.put(0, (1,)), shelf.put(9, split=Split.SEMANTIC)
        found = await shelf.crops.catalog()
        assert [(info.split.value, info.crop) for info in found] == [
            ("instance", 0), ("instance", 1), ("instance", 2), ("semantic", 9)
        ]  # fmt: skip
        assert [info.files for info in found] == [(full, part), (), (), (other,)]
        assert [info.crop for info in await shelf.crops.catalog(Split.SEMANTIC)] == [9]

    run(story)


def test_the_catalog_shows_pins_leases_and_last_use(shelf: Shelf) -> None:
    async def story() -> None:
        shelf.put(1)
        before = datetime.now(UTC)
        await shelf.crops.pin(INSTANCE, 1, "ada")
        for owner in ("ada", "bob"):
            await shelf.crops.lease(LeaseRequest(split=INSTANCE, crops=(1, 2)), owner)
        await shelf.crops.file(CropName(INSTANCE, 1))
        zero, one, two = await shelf.crops.catalog()
        assert (zero.pinned, zero.leases, zero.last_used_at) == (False, 0, None)
        assert (one.pinned, one.leases) == (True, 2)
        assert one.last_used_at is not None
        assert before <= one.last_used_at <= datetime.now(UTC)
        assert (two.pinned, two.leases) == (False, 2)
        assert (await shelf.crops.describe(INSTANCE, 1)) == one

    run(story)


def test_a_file_that_is_wrong_is_not_in_the_catalog(shelf: Shelf) -> None:
    async def story() -> None:
        _cut(shelf.put(0))
        assert (await shelf.crops.catalog())[0].files == ()

    run(story)


def test_without_the_bucket_the_catalog_is_what_was_known_and_what_is_cached(tmp_path: Path) -> None:
    async def story() -> None:
        shelf = Shelf(tmp_path / "root", Lost())
        shelf.put(5)
        assert [info.crop for info in await shelf.crops.catalog()] == [1, 5]
        with pytest.raises(UnknownCropError, match="crop 0 of split 'instance'"):
            await shelf.crops.describe(INSTANCE, 0)

    run(story)


def test_a_file_with_the_channels_is_returned_and_others_are_not(shelf: Shelf) -> None:
    async def story() -> None:
        part = shelf.put(0, (0, 1))
        assert await shelf.crops.file(CropName(INSTANCE, 0, (1,))) == part
        for crop, channels in ((0, None), (0, (2,)), (1, None)):
            with pytest.raises(CropNotCachedError, match=f"instance/{crop}"):
                await shelf.crops.file(CropName(INSTANCE, crop, channels))
        assert set(await shelf.last_used.all()) == {(INSTANCE, 0)}

    run(story)


def test_verification_finds_what_is_wrong_and_leaves_it(shelf: Shelf) -> None:
    async def story() -> None:
        shelf.put(0)
        _flip(shelf.put(1))
        found = await shelf.crops.verify()
        assert [(each.crop, each.verdict) for each in found] == [(0, Verdict.OK), (1, Verdict.CORRUPT)]
        assert "SHA-256" in found[1].reason
        assert shelf.restorer.made == quarantined(shelf.cache.root) == []

    run(story)


def test_a_repair_that_fails_is_told_and_does_not_stop_the_others(shelf: Shelf) -> None:
    async def story() -> None:
        for crop in range(3):
            _flip(shelf.put(crop))
        shelf.restorer.errors = {1: SourceUnreachableError("the bucket does not respond")}
        found = await shelf.crops.verify(repair=True)
        assert [result.verdict for result in found] == [Verdict.REPAIRED, Verdict.CORRUPT, Verdict.REPAIRED]
        assert found[1].reason.endswith("; not made again: error[source_unreachable]: the bucket does not respond")
        assert "SHA-256" in found[1].reason
        assert len(shelf.cache.quarantine.entries()) == 3

    run(story)


def test_repair_sets_aside_what_is_wrong_alone_and_makes_it_again(shelf: Shelf) -> None:
    async def story() -> None:
        shelf.put(0)
        _flip(shelf.put(1, (0, 2)))
        found = await shelf.crops.verify(repair=True)
        assert [each.verdict for each in found] == [Verdict.OK, Verdict.REPAIRED]
        assert shelf.restorer.made == [CropName(INSTANCE, 1, (0, 2))]
        assert len(quarantined(shelf.cache.root)) == 1
        assert [each.verdict for each in await shelf.crops.verify()] == [Verdict.OK, Verdict.OK]

    run(story)


def test_every_response_tells_the_root_that_others_know(tmp_path: Path) -> None:
    async def story() -> None:
        shelf = Shelf(tmp_path / "root", shown_root=Path("/lab/prism"))
        right, wrong = shelf.put(0), shelf.put(1)
        shelf.cache.local_path(wrong).unlink()
        (shelf.cache.root / "instance" / "crop_4.h5").write_bytes(b"stray")
        with pytest.raises(CropNotCachedError) as absent:
            await shelf.crops.verify(INSTANCE, [7])
        responses = [
            *await shelf.crops.verify(), str(absent.value), await shelf.crops.file(CropName(INSTANCE, 0)),
            *await shelf.crops.catalog(), *await shelf.crops.remove(INSTANCE),
        ]  # fmt: skip
        assert right.path == "/lab/prism/instance/crop_0.h5"
        assert str(responses).count("/lab/prism") > 6
        assert str(tmp_path) not in str(responses)

    run(story)


def test_a_bad_subset_beside_a_full_file_is_set_aside_and_the_full_file_is_named(shelf: Shelf) -> None:
    async def story() -> None:
        full, part = shelf.put(0), shelf.put(0, (1,))
        os.truncate(part.path, 3)
        shelf.restorer.holds[CropName(INSTANCE, 0, (1,))] = full
        found = await shelf.crops.verify(INSTANCE, [0], repair=True)
        assert [(each.verdict, each.path) for each in found] == [
            (Verdict.OK, full.path), (Verdict.REPAIRED, full.path)
        ]  # fmt: skip
        assert found[1].reason.endswith(f"set aside and not made again, since {full.path} holds its channels")
        assert [each.path for each in await shelf.crops.verify()] == [full.path]

    run(story)


def test_the_same_verification_asked_for_again_joins_the_first(shelf: Shelf) -> None:
    async def story() -> None:
        shelf.put(0)
        with patch.object(shelf.cache, "verify", wraps=shelf.cache.verify) as verify:
            impatient = asyncio.create_task(shelf.crops.verify(INSTANCE, [0]))
            await asyncio.sleep(0)
            impatient.cancel()
            found = await asyncio.gather(*(shelf.crops.verify(INSTANCE, [0]) for _ in range(3)))
        assert [each[0].verdict for each in found] == [Verdict.OK] * 3
        assert verify.call_count == 1

    run(story)


def test_a_file_without_a_manifest_is_found_wrong(shelf: Shelf) -> None:
    async def story() -> None:
        shelf.put(0)
        (shelf.cache.root / "instance" / "crop_4.h5").write_bytes(b"stray")
        found = await shelf.crops.verify(INSTANCE, [4])
        assert [each.verdict for each in found] == [Verdict.CORRUPT]
        assert "no manifest" in found[0].reason

    run(story)


def test_verification_of_crops_that_are_not_there_names_them(shelf: Shelf) -> None:
    async def story() -> None:
        shelf.put(0)
        with pytest.raises(CropNotCachedError, match="crops 3, 7"):
            await shelf.crops.verify(INSTANCE, [7, 0, 3])

    run(story)


def test_removal_takes_all_files_of_a_crop_or_of_a_split(shelf: Shelf) -> None:
    async def story() -> None:
        files = [shelf.put(0), shelf.put(0, (1,)), shelf.put(1)]
        shelf.put(0, split=Split.SEMANTIC)
        assert await shelf.crops.remove(INSTANCE, [0, 8]) == files[:2]
        assert await shelf.crops.remove(INSTANCE) == files[2:]
        assert published(shelf.cache.root) == ["semantic/crop_0.h5"]

    run(story)


@pytest.mark.parametrize("use", ["pin", "lease"])
def test_removal_is_refused_as_a_whole_if_one_crop_is_in_use(shelf: Shelf, use: str) -> None:
    async def story() -> None:
        shelf.put(0)
        shelf.put(1)
        if use == "pin":
            await shelf.crops.pin(INSTANCE, 1)
        else:
            lease = await shelf.crops.lease(LeaseRequest(split=INSTANCE, crops=(1,)))
        for chosen in ([1], [0, 1], None):
            with pytest.raises(CropInUseError, match="instance/1 is pinned or leased"):
                await shelf.crops.remove(INSTANCE, chosen)
        assert len(published(shelf.cache.root)) == 2
        if use == "pin":
            await shelf.crops.unpin(INSTANCE, 1)
        else:
            await shelf.crops.release(lease.id)
        assert len(await shelf.crops.remove(INSTANCE)) == 2

    run(story)


def test_a_pin_of_the_other_split_does_not_count(shelf: Shelf) -> None:
    async def story() -> None:
        shelf.put(0)
        shelf.put(0, split=Split.SEMANTIC)
        await shelf.crops.pin(Split.SEMANTIC, 0)
        assert len(await shelf.crops.remove(INSTANCE)) == 1

    run(story)


def test_a_crop_that_is_not_cached_can_be_pinned_but_not_one_that_does_not_exist(shelf: Shelf) -> None:
    async def story() -> None:
        assert (await shelf.crops.pin(INSTANCE, 2)).pinned
        assert await shelf.store.pins() == {(INSTANCE, 2)}
        assert not (await shelf.crops.unpin(INSTANCE, 2)).pinned
        for change in (shelf.crops.pin, shelf.crops.unpin):
            with pytest.raises(UnknownCropError):
                await change(INSTANCE, 77)

    run(story)


def test_a_lease_is_renewed_and_released_by_its_owner_alone(shelf: Shelf) -> None:
    async def story() -> None:
        lease = await shelf.crops.lease(LeaseRequest(split=INSTANCE, crops=(2, 1, 2)), "ada")
        assert (lease.crops, lease.seconds) == ((2, 1), 300)
        assert await shelf.crops.renew(lease.id, "ada") == lease
        assert set(await shelf.last_used.all()) == {(INSTANCE, 1), (INSTANCE, 2)}
        with pytest.raises(UnknownLeaseError):
            await shelf.crops.renew(lease.id, "bob")
        await shelf.crops.release(lease.id, "bob")
        assert (await shelf.crops.describe(INSTANCE, 1)).leases == 1
        await shelf.crops.release(lease.id, "ada")
        await shelf.crops.release(lease.id, "ada")
        assert (await shelf.crops.describe(INSTANCE, 1)).leases == 0
        with pytest.raises(UnknownLeaseError, match=lease.id):
            await shelf.crops.renew(lease.id, "ada")

    run(story)


def test_a_lease_that_is_not_renewed_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        ahead = timedelta()

    monkeypatch.setattr(crops_module, "steady_now", lambda: steady_now() + Clock.ahead)

    async def story() -> None:
        shelf = Shelf(tmp_path / "root", lease_seconds=60)
        shelf.put(1)
        lease = await shelf.crops.lease(LeaseRequest(split=INSTANCE, crops=(1,)), "ada")
        Clock.ahead = timedelta(seconds=50)
        await shelf.crops.renew(lease.id, "ada")
        Clock.ahead = timedelta(seconds=100)
        with pytest.raises(CropInUseError):
            await shelf.crops.remove(INSTANCE, [1])
        Clock.ahead = timedelta(seconds=111)
        with pytest.raises(UnknownLeaseError, match="run out"):
            await shelf.crops.renew(lease.id, "ada")
        assert len(await shelf.crops.remove(INSTANCE, [1])) == 1

    run(story)


@pytest.mark.parametrize("jump", [timedelta(days=3650), timedelta(days=-3650), timedelta(days=-1)], ids=str)
def test_a_clock_that_is_set_neither_ends_a_lease_nor_prolongs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: timedelta
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) + jump

    async def story() -> None:
        shelf = Shelf(tmp_path / "root", lease_seconds=60)
        shelf.put(1)
        await shelf.crops.lease(LeaseRequest(split=INSTANCE, crops=(1,)), "ada")
        for module in (crops_module, kept_module):
            monkeypatch.setattr(module, "datetime", Clock)
        with pytest.raises(CropInUseError):
            await shelf.crops.remove(INSTANCE, [1])
        restarted = steady_now() + jump  # a process that begins takes the clock as it is then
        monkeypatch.setattr(crops_module, "steady_now", lambda: restarted)
        await shelf.crops.start()
        restarted += timedelta(seconds=61)
        assert len(await shelf.crops.remove(INSTANCE, [1])) == 1

    run(story)


def _cut(file: CropFile) -> None:
    Path(file.path).write_bytes(b"short")


def _flip(file: CropFile) -> None:
    """Change the last byte, and nothing that a look at the file's state shows but its times."""
    path = Path(file.path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
