"""The services wired together, as the embedded use and the service's lifespan open and close them."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prismcache.config import Settings
from prismcache.errors import ConfigError, SourceUnreachableError, StorageError
from prismcache.schema import CropProgress, JobRequest, LeaseRequest, Progress, Split, State
from prismcache_service import factory as factory_module
from prismcache_service.cache import CropCache, CropName
from prismcache_service.config import ServiceConfig
from prismcache_service.crops.space import Bounds
from prismcache_service.factory import Factory, open_factory
from prismcache_service.store.base import JobRecord, MemoryJobStore
from prismcache_service.store.sql import SqlJobStore
from tests.support.cache_root import Lab, files_below, published, tiny_spec
from tests.support.fault_actions import Stall
from tests.support.job_scene import DEADLINE
from tests.support.service import service_config
from tests.support.stored_crops import store_crop

pytestmark = pytest.mark.anyio

INSTANCE = Split.INSTANCE
ALL = JobRequest(split=INSTANCE)
SPECS = [tiny_spec(0), tiny_spec(1)]


@pytest.fixture
def config(lab: Lab, tmp_path: Path) -> ServiceConfig:
    return service_config(lab.settings(workers=1), tmp_path / "state", min_free_bytes=0)


def settings(root: Path, **changes: Any) -> Settings:
    return Settings.load({}, **({"root": root, "s3_endpoint_url": "http://127.0.0.1:9"} | changes))


async def ended(factory: Factory, job_id: str) -> State:
    job = await factory.jobs.get(job_id)
    async with asyncio.timeout(DEADLINE):
        while not job.state.is_final:
            job = await factory.jobs.wait(job_id, job.revision, DEADLINE)
    return job.state


async def test_what_an_unfinished_job_a_lease_or_a_pin_names_is_protected(tmp_path: Path) -> None:
    factory = Factory(settings(tmp_path / "root"), MemoryJobStore())
    for crop in range(4):
        store_crop(factory.cache, CropName(INSTANCE, crop))
    await factory.jobs.submit(JobRequest(split=INSTANCE, crops=(0,)))
    await factory.crops.lease(LeaseRequest(split=INSTANCE, crops=(1,)), "ada")
    await factory.store.pin(INSTANCE, 2, "ada")
    assert await factory._protected() == {(INSTANCE, 0), (INSTANCE, 1), (INSTANCE, 2)}
    await factory.aclose()


async def test_room_is_held_for_the_most_that_a_crop_can_take(lab: Lab) -> None:
    factory = Factory(lab.settings(), MemoryJobStore(), bounds=Bounds(max_bytes=10**9))
    reserved = {}
    reports: list[Progress] = []
    for channels in (None, (0,)):
        async with factory._room(CropName(INSTANCE, 0, channels), reports.append):
            reserved[channels] = (await factory.space.usage()).reserved_bytes
    async with factory._room(CropName(INSTANCE, 77), reports.append):  # not published: it cannot be made either
        assert (await factory.space.usage()).reserved_bytes == 0
    voxels = 12 * 30 * 32
    assert voxels * 7 < reserved[None] < voxels * 8 + (5 << 20)
    assert reserved[(0,)] < reserved[None]
    assert not any(report.waiting_for for report in reports)
    await factory.aclose()


async def test_the_status_shows_what_is_going_on(lab: Lab) -> None:
    factory = Factory(lab.settings(workers=1), MemoryJobStore(), bounds=Bounds(max_bytes=10**9))
    status = await factory.status()
    assert (status.engine, status.workers, status.usage.files, status.usage.max_bytes) == ("local", 1, 0, 10**9)
    job = await factory.jobs.submit(ALL)
    status = await factory.status()
    assert (status.jobs_queued + status.jobs_running, status.crops_queued + status.crops_running) == (1, 2)
    assert await ended(factory, job.id) is State.DONE
    assert (await factory.status()).usage.files == 2
    await factory.aclose()


async def test_every_part_is_ready_or_says_what_is_wrong(lab: Lab, tmp_path: Path) -> None:
    class BrokenStore(MemoryJobStore):
        async def check(self) -> None:
            raise StorageError("disk gone")

    factory = Factory(lab.settings(), MemoryJobStore())
    await factory.catalog.prepare()
    assert set((await factory.readiness()).values()) == {"ok"}
    (tmp_path / "file").write_text("")
    broken = Factory(settings(tmp_path / "file" / "root", s3_object_timeout=0.5), BrokenStore())
    found = await broken.readiness()
    assert found["engine"] == "ok"
    assert found["store"] == "disk gone"
    assert str(tmp_path / "file") in found["storage"]
    assert "127.0.0.1:9" in found["source"]
    for each in (factory, broken):
        await each.aclose()


def test_readiness_does_not_wait_for_a_bucket_that_hangs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory_module, "_CHECK_S", 0.5)
    stall = Stall()
    lab.proxy.add(stall, listing=True)

    async def main() -> None:
        factory = Factory(lab.settings(), MemoryJobStore())
        await factory.catalog.prepare()
        async with asyncio.timeout(10):
            found = await factory.readiness()
            await factory.aclose()
        assert found.pop("source") == "no response within 0.5 s"
        assert set(found.values()) == {"ok"}

    try:
        asyncio.run(main())
    finally:
        stall.release()


async def test_opening_sweeps_goes_on_with_unfinished_jobs_and_knows_cached_crops(
    lab: Lab, config: ServiceConfig
) -> None:
    cached = store_crop(CropCache(lab.root), CropName(INSTANCE, 1))
    left = lab.root / "instance" / ".crop_0.h5.0123.tmp"
    left.write_bytes(b"half")

    store = await SqlJobStore.open(f"sqlite+aiosqlite:///{config.state_folder}/jobs.sqlite")
    crops = tuple(CropProgress(crop=crop) for crop in (0, 1))
    await store.add_job(JobRecord("a" * 32, "ada", ALL, State.QUEUED, crops, datetime(2026, 1, 1, tzinfo=UTC)))
    await store.aclose()
    async with open_factory(config) as factory:
        assert not left.exists()
        assert await ended(factory, "a" * 32) is State.DONE
        job = await factory.jobs.get("a" * 32)
        assert job.crops[1].file == cached
        factory.last_used.note(INSTANCE, [1])
    assert set(lab.fetched(tiny_spec(1))) <= {"raw/.zarray", "raw/.zattrs", "labels/.zarray", "labels/.zattrs"}
    assert published(lab.root) == ["instance/crop_0.h5", "instance/crop_1.h5"]
    assert not [name for name in files_below(lab.root) if name.endswith(".tmp")]
    async with open_factory(config) as again:
        assert (INSTANCE, 1) in await again.last_used.all()
        assert (await again.jobs.get("a" * 32)).state is State.DONE


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_at_the_start(config: ServiceConfig, lab: Lab) -> None:
    lab.root.mkdir(mode=0o500)

    async def main() -> None:
        async with open_factory(config):
            pass

    with pytest.raises(StorageError, match=str(lab.root)):
        asyncio.run(main())


def test_a_cache_folder_that_is_a_file_is_said_at_the_start_and_the_store_is_closed(
    config: ServiceConfig, lab: Lab
) -> None:
    lab.root.write_text("")

    async def main() -> None:
        async with open_factory(config):
            pass

    with pytest.raises(StorageError, match=str(lab.root)):
        asyncio.run(main())


def test_a_database_that_cannot_be_used_is_said_at_the_start(config: ServiceConfig) -> None:
    async def main() -> None:
        async with open_factory(config.model_copy(update={"database_url": "mysql://x"})):
            pass

    with pytest.raises(ConfigError, match="mysql"):
        asyncio.run(main())


async def test_closing_keeps_unfinished_jobs_for_the_next_start(lab: Lab, config: ServiceConfig) -> None:
    async with open_factory(config) as factory:
        job = await factory.jobs.submit(ALL)
    assert published(lab.root) == []
    async with open_factory(config) as again:
        assert await ended(again, job.id) is State.DONE
    assert len(published(lab.root)) == 2


async def test_many_who_need_the_catalog_at_once_ask_the_bucket_once(lab: Lab) -> None:
    factory = Factory(lab.settings(), MemoryJobStore())
    found = await asyncio.gather(*(factory.catalog.crops() for _ in range(20)))
    assert [[info.crop for info in each] for each in found] == [[0, 1]] * 20
    assert max(lab.proxy.gets().values()) == 1
    refreshed = await asyncio.gather(*(factory.catalog.crops(refresh=True) for _ in range(20)))
    assert len(set(refreshed)) == 1
    assert max(lab.proxy.gets().values()) == 2
    await factory.aclose()


async def test_the_catalogs_failure_is_everybodys_and_the_next_one_asks_again(tmp_path: Path) -> None:
    factory = Factory(settings(tmp_path / "root", s3_object_timeout=0.3), MemoryJobStore())
    for _ in range(2):
        found = await asyncio.gather(*(factory.catalog.crops() for _ in range(5)), return_exceptions=True)
        assert {type(each) for each in found} == {SourceUnreachableError}
    await factory.aclose()
