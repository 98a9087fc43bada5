"""Hit, wait or make: one crop is made by one at a time, in one process or in several."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from prismcache.errors import (
    CropNotCachedError,
    MissingChunksError,
    PrismError,
    SourceCorruptError,
    StorageUnwritableError,
)
from prismcache.layout import HDF5_SIGNATURE, SourceList
from prismcache.schema import CropFile, JobRequest, Problem, Product, Progress, Split, State
from prismcache_service.cache import CropCache, CropName
from prismcache_service.cache import making_lock as leasing
from prismcache_service.crops.ensure import EnsureService
from prismcache_service.engine import CropTask, Engine
from tests.support.cache_root import quarantined, unfinished
from tests.support.stored_crops import manifest_of, store_crop

pytestmark = pytest.mark.anyio

NAME = CropName(Split.INSTANCE, 3)
CONTENT = HDF5_SIGNATURE + bytes(3000)


class QuickEngine(Engine):
    """Publishes a few bytes; counts, and waits for `gate` before it does."""

    name = "quick"

    def __init__(self, cache: CropCache, *, missing_chunks: int = 0, error: PrismError | None = None) -> None:
        self.tasks: list[CropTask] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self._begun = asyncio.Semaphore(0)
        self._cache = cache
        self._missing = missing_chunks
        self._error = error

    async def run(self, task: CropTask, report: Callable[[Progress], None]) -> CropFile:
        self.tasks.append(task)
        self.started.set()
        self._begun.release()
        report(Progress(objects_done=1, objects_total=2, bytes_done=3, bytes_total=4))
        await self.gate.wait()
        if self._error is not None:
            raise self._error
        temporary = self._cache.temporary(task.name, task.token)
        temporary.write_bytes(CONTENT)
        manifest = manifest_of(task.name, CONTENT, missing_chunks=self._missing)
        sources = SourceList(source_fingerprint="f", objects=())
        return self._cache.publish(task.name, temporary, manifest, sources, task.token)

    async def begun(self, count: int) -> None:
        """Wait for the next `count` tasks."""
        for _ in range(count):
            await self._begun.acquire()

    async def check(self) -> None:
        return

    async def aclose(self) -> None:
        return


class CroplessEngine(QuickEngine):
    """Publishes; but for the first `gone` products, the crop is gone when it would make them."""

    def __init__(self, cache: CropCache, gone: int) -> None:
        super().__init__(cache)
        self._gone = gone

    async def run(self, task: CropTask, report: Callable[[Progress], None]) -> CropFile | Problem:
        self.tasks.append(task)
        if task.name.product is Product.CROP:
            report(Progress(objects_done=2, objects_total=2, bytes_done=4, bytes_total=4))
        else:
            report(Progress(voxels_done=5, voxels_total=9))
            if self._gone:
                self._gone -= 1
                self._cache.remove(NAME)
                return CropNotCachedError("the crop changed").to_problem()
        return store_crop(self._cache, task.name, token=task.token)


@pytest.fixture
def cache(tmp_path: Path) -> CropCache:
    return CropCache(tmp_path / "root")


def content(file: CropFile) -> bytes:
    return Path(file.path).read_bytes()


def spoil(file: CropFile, damage: str) -> None:
    path = Path(file.path)
    if damage == "truncated":
        path.write_bytes(b"short")
    else:
        path.unlink()
        path.mkdir()


def ignore(progress: Progress) -> None:
    """Nobody watches."""


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "POLL_S", 0.001)


async def test_what_is_not_there_is_made_with_progress_and_what_is_there_is_not(cache: CropCache) -> None:
    engine = QuickEngine(cache)
    service = EnsureService(cache, engine)
    seen: list[Progress] = []
    made = await service.ensure(NAME, seen.append)
    assert seen == [Progress(objects_done=1, objects_total=2, bytes_done=3, bytes_total=4)]
    assert content(made) == CONTENT
    assert await service.ensure(NAME, seen.append) == made
    assert (await cache.find(NAME)).file == made
    assert [task.name for task in engine.tasks] == [NAME]
    assert len(seen) == 1
    assert unfinished(cache.root) == []


@pytest.mark.parametrize(("gone", "tasks"), [(0, 2), (1, 4), (2, 4)])
async def test_a_product_comes_after_its_crop_and_both_come_again_once_if_the_crop_is_gone_meanwhile(
    cache: CropCache, gone: int, tasks: int
) -> None:
    product = CropName(Split.INSTANCE, 3, product=Product.UNLABELLED)
    engine, seen = CroplessEngine(cache, gone), list[Progress]()
    outcome = await EnsureService(cache, engine).ensure(product, seen.append)
    assert [task.name for task in engine.tasks] == [NAME, product] * (tasks // 2)
    assert isinstance(outcome, Problem) is (gone == 2)
    fetched = {"objects_done": 2, "objects_total": 2, "bytes_done": 4, "bytes_total": 4}
    assert seen == [Progress(**fetched), Progress(**fetched, voxels_done=5, voxels_total=9)] * (tasks // 2)


async def test_many_at_once_make_a_crop_once(cache: CropCache) -> None:
    engine = QuickEngine(cache)
    engine.gate.clear()
    services = [EnsureService(CropCache(cache.root), engine) for _ in range(3)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(service.ensure(NAME, ignore)) for service in services for _ in range(10)]
        await engine.started.wait()
        engine.gate.set()
    assert len({task.result().path for task in tasks}) == 1
    assert len(engine.tasks) == 1


async def test_different_crops_do_not_wait_for_each_other(cache: CropCache) -> None:
    engine = QuickEngine(cache)
    engine.gate.clear()
    service = EnsureService(cache, engine)
    async with asyncio.TaskGroup() as group:
        for name in (NAME, CropName(Split.SEMANTIC, 3), CropName(Split.INSTANCE, 3, (0,))):
            group.create_task(service.ensure(name, ignore))
        await engine.begun(3)
        engine.gate.set()


async def test_a_failure_is_told_and_the_next_one_tries_again(cache: CropCache) -> None:
    with pytest.raises(SourceCorruptError):
        await EnsureService(cache, QuickEngine(cache, error=SourceCorruptError("x"))).ensure(NAME, ignore)
    assert unfinished(cache.root) == []
    assert await EnsureService(cache, QuickEngine(cache)).ensure(NAME, ignore)


async def test_one_that_waited_for_a_failure_makes_the_crop_itself(cache: CropCache) -> None:
    failing = QuickEngine(cache, error=SourceCorruptError("x"))
    failing.gate.clear()
    first = asyncio.create_task(EnsureService(cache, failing).ensure(NAME, ignore))
    await failing.started.wait()
    second = asyncio.create_task(EnsureService(cache, QuickEngine(cache)).ensure(NAME, ignore))
    failing.gate.set()
    with pytest.raises(SourceCorruptError):
        await first
    assert content(await second) == CONTENT


async def test_cancelling_gives_the_lease_back(cache: CropCache) -> None:
    engine = QuickEngine(cache)
    engine.gate.clear()
    task = asyncio.create_task(EnsureService(cache, engine).ensure(NAME, ignore))
    await engine.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert unfinished(cache.root) == []


async def test_what_somebody_else_made_while_we_waited_for_the_lock_is_taken(cache: CropCache) -> None:
    cache.prepare(NAME.split)
    token = cache.locks.try_acquire(NAME.lock)
    assert token is not None
    engine = QuickEngine(cache)
    waiting = asyncio.create_task(EnsureService(cache, engine).ensure(NAME, ignore))
    file = store_crop(cache, NAME)
    cache.locks.release(NAME.lock, token)
    assert await waiting == file
    assert engine.tasks == []


async def test_a_miss_is_looked_up_once_more_under_the_making_lock(cache: CropCache) -> None:
    service = EnsureService(cache, QuickEngine(cache))
    with patch.object(cache, "look", wraps=cache.look) as look:
        await service.find_all(JobRequest(split=NAME.split), [NAME.crop])
        await service.ensure(NAME, ignore)
    assert look.call_count == 2


async def test_a_file_that_has_to_be_read_again_is_not_read_by_the_request_but_by_its_job(cache: CropCache) -> None:
    engine = QuickEngine(cache)
    file = store_crop(cache, NAME)
    os.utime(file.path, (1, 1))
    services = [EnsureService(cache, engine) for _ in range(3)]
    with patch.object(cache, "verify", wraps=cache.verify) as verify:
        [found] = await services[0].find_all(JobRequest(split=NAME.split), [NAME.crop])
        assert (found.state, verify.call_count) == (State.QUEUED, 0)
        assert await asyncio.gather(*(service.ensure(NAME, ignore) for service in services)) == [file] * 3
        assert verify.call_count == 1
    assert engine.tasks == []


async def test_a_file_on_a_root_that_may_only_be_read_is_read_again_without_a_lock(cache: CropCache) -> None:
    file = store_crop(cache, NAME)
    os.utime(file.path, (1, 1))
    with patch.object(cache, "prepare", side_effect=StorageUnwritableError("x")):
        assert await EnsureService(cache, QuickEngine(cache)).ensure(NAME, ignore) == file
        with pytest.raises(StorageUnwritableError):
            await EnsureService(cache, QuickEngine(cache)).ensure(CropName(NAME.split, 4), ignore)


@pytest.mark.parametrize("damage", ["truncated", "folder"])
async def test_what_is_wrong_is_set_aside_and_made_again(cache: CropCache, damage: str) -> None:
    engine = QuickEngine(cache)
    said: list[str] = []
    service = EnsureService(cache, engine, on_set_aside=said.append)
    spoil(await service.ensure(NAME, ignore), damage)
    assert (await cache.find(NAME)).file is None
    assert content(await service.ensure(NAME, ignore)) == CONTENT
    assert len(quarantined(cache.root)) == 1
    assert len(said) == 1
    assert re.search(
        r"crop_3\.h5 was moved to the quarantine and is fetched again: it (has \d+ bytes|is not a regular)", said[0]
    )


async def test_strict_refuses_a_cached_crop_with_absent_chunks_and_others_take_it(cache: CropCache) -> None:
    engine = QuickEngine(cache, missing_chunks=4)
    service = EnsureService(cache, engine)
    assert (await service.ensure(NAME, ignore)).missing_chunks == 4
    with pytest.raises(MissingChunksError, match=r"crop_3\.h5 was made with 4 absent chunks"):
        await service.ensure(NAME, ignore, strict=True)
    assert (await cache.find(NAME)).file is not None


async def test_strict_reaches_the_engine(cache: CropCache) -> None:
    engine = QuickEngine(cache)
    await EnsureService(cache, engine).ensure(NAME, ignore, strict=True)
    assert engine.tasks[0].strict


async def test_what_a_request_finds_is_said_crop_by_crop(cache: CropCache) -> None:
    service = EnsureService(cache, QuickEngine(cache, missing_chunks=1))
    await service.ensure(NAME, ignore)
    relaxed = await service.find_all(JobRequest(split=Split.INSTANCE, crops=(3, 4)), (3, 4))
    assert [(each.crop, each.state) for each in relaxed] == [(3, State.DONE), (4, State.QUEUED)]
    assert relaxed[0].file is not None
    strict = await service.find_all(JobRequest(split=Split.INSTANCE, strict=True), (3, 4))
    assert [each.state for each in strict] == [State.FAILED, State.QUEUED]
    assert strict[0].problem is not None
    assert strict[0].problem.code == "missing_chunks"
    some = await service.find_all(JobRequest(split=Split.INSTANCE, channels=(2, 0, 2)), (3,))
    assert some[0].state is State.DONE
