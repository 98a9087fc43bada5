"""What the bucket publishes, asked rarely and remembered."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prismcache.config import Settings
from prismcache.errors import SourceDeniedError, SourceUnreachableError
from prismcache.layout import STATE_FOLDER
from prismcache.schema import NO_CONTEXT, CropInfo, Product, Split
from prismcache_service.cache import CropName, DiskThreads
from prismcache_service.crops import catalog as catalog_module
from prismcache_service.crops.catalog import CatalogService
from prismcache_service.pipeline.published import read_published
from tests.support.cache_root import Lab, tiny_spec
from tests.support.crops import BUCKET, PREFIX, crop_folder
from tests.support.fault_actions import Stall
from tests.support.faults import FaultProxy, Status
from tests.support.folder_source import FolderSource
from tests.support.labs import running_lab

SPECS = [tiny_spec(0, channels=18), tiny_spec(2), tiny_spec(12, channels=10), tiny_spec(1, "semantic")]
THREADS = DiskThreads()
PUBLISHED = [(spec.split, spec.crop) for spec in SPECS]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("catalog"), SPECS) as lab:
        yield lab


@pytest.fixture
def fault_proxy(lab: Lab) -> Iterator[FaultProxy]:
    lab.proxy.clear()
    yield lab.proxy
    lab.proxy.clear()


@pytest.fixture
def own_bucket_dir(lab: Lab, tmp_path: Path) -> Path:
    return shutil.copytree(lab.bucket_dir, tmp_path / "s3")


def settings(proxy: FaultProxy, root: Path, **changes: object) -> Settings:
    return Settings.load({}, **({"root": root, "s3_endpoint_url": proxy.endpoint} | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def catalog(fault_proxy: FaultProxy, root: Path) -> Iterator[CatalogService]:
    made = CatalogService(settings(fault_proxy, root), THREADS)
    yield made
    asyncio.run(made.aclose())


def recalled(catalog: CatalogService) -> tuple[CropInfo, ...]:
    return asyncio.run(catalog.recall())


def crops(catalog: CatalogService, *, refresh: bool = False) -> tuple[CropInfo, ...]:
    return asyncio.run(catalog.crops(refresh=refresh))


def remembered(root: Path) -> Path:
    return root / STATE_FOLDER / "catalog.json"


def test_every_published_crop_is_described_in_order(catalog: CatalogService, lab: Lab) -> None:
    found = crops(catalog)
    assert [(info.split, info.crop) for info in found] == PUBLISHED
    for info, spec in zip(found, SPECS, strict=True):
        assert (info.raw_shape, info.labels_shape) == (spec.raw_array_shape, spec.labels_shape)
        assert (info.offset, info.voxel_size) == (spec.labels_world_offset, spec.resolution)
        files = [path for path in lab.source(spec).rglob("*") if path.is_file()]
        assert info.source_objects == len(files)
        assert info.source_bytes == sum(path.stat().st_size for path in files)
        assert info.problem is None


def test_no_chunk_is_fetched(catalog: CatalogService, fault_proxy: FaultProxy) -> None:
    crops(catalog)
    assert {key.rsplit("/", 1)[1] for key in fault_proxy.gets()} == {".zarray", ".zattrs"}


def test_the_bucket_is_asked_once_a_day_by_all_programs_on_one_root(
    catalog: CatalogService, fault_proxy: FaultProxy, root: Path
) -> None:
    first = crops(catalog)
    fault_proxy.clear()
    assert crops(catalog) == crops(CatalogService(settings(fault_proxy, root), THREADS)) == first
    assert fault_proxy.requests == []


def test_yesterdays_catalog_is_asked_anew_and_so_is_todays_on_demand(
    catalog: CatalogService, fault_proxy: FaultProxy, root: Path
) -> None:
    crops(catalog)
    fault_proxy.clear()
    document = json.loads(remembered(root).read_text())
    document["read_at"] = (datetime.now(UTC) - timedelta(days=1, seconds=1)).isoformat()
    remembered(root).write_text(json.dumps(document))
    crops(catalog)
    asked = len(fault_proxy.requests)
    assert asked > 0
    crops(catalog)
    assert len(fault_proxy.requests) == asked
    crops(catalog, refresh=True)
    assert len(fault_proxy.requests) == 2 * asked


def _read_at(root: Path, when: datetime) -> None:
    document = json.loads(remembered(root).read_text())
    remembered(root).write_text(json.dumps(document | {"read_at": when.isoformat()}))


def test_an_old_catalog_serves_with_a_warning_while_the_bucket_is_unreachable(
    catalog: CatalogService, fault_proxy: FaultProxy, root: Path, caplog
) -> None:
    found = crops(catalog)
    _read_at(root, datetime(2020, 1, 2, tzinfo=UTC))
    fault_proxy.add(Status(503), listing=True)
    with caplog.at_level("WARNING", "prismcache"):
        assert crops(catalog) == crops(catalog) == found
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the catalog of 2020-01-02 is used, since the bucket cannot be read"
    ]
    with pytest.raises(SourceUnreachableError):
        crops(catalog, refresh=True)


def test_a_catalog_from_the_future_is_stale(catalog: CatalogService, fault_proxy: FaultProxy, root: Path) -> None:
    crops(catalog)
    _read_at(root, datetime.now(UTC) + timedelta(hours=1))
    fault_proxy.clear()
    crops(catalog)
    assert fault_proxy.requests


def test_a_clock_that_is_set_changes_nothing(
    catalog: CatalogService, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops(catalog)
    crops(catalog)
    fault_proxy.clear()
    for years in (-10, 10):

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(days=365 * years)  # noqa: B023 - used within the loop

        monkeypatch.setattr(catalog_module, "datetime", Clock)
        crops(catalog)
    assert fault_proxy.requests == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"crops": []}', "\0" * 100])
def test_a_damaged_memory_only_means_asking_again(catalog: CatalogService, root: Path, text: str) -> None:
    remembered(root).parent.mkdir(parents=True)
    remembered(root).write_text(text)
    assert recalled(catalog) == ()
    assert len(crops(catalog)) == len(PUBLISHED)
    assert len(recalled(catalog)) == len(PUBLISHED)


def test_another_buckets_catalog_is_not_this_ones(catalog: CatalogService, fault_proxy: FaultProxy, root: Path) -> None:
    crops(catalog)
    for changes in ({"s3_prefix": "elsewhere"}, {"s3_bucket": "mirror"}, {"s3_endpoint_url": "http://other"}):
        assert recalled(CatalogService(settings(fault_proxy, root, **changes), THREADS)) == ()


def test_a_root_that_cannot_be_written_only_means_asking_again(
    catalog: CatalogService, fault_proxy: FaultProxy, root: Path
) -> None:
    root.write_text("a file where the folder should be")
    assert len(crops(catalog)) == len(crops(catalog)) == len(PUBLISHED)
    assert recalled(catalog) == ()


def test_nothing_unfinished_is_left(catalog: CatalogService, root: Path) -> None:
    crops(catalog)
    assert os.listdir(root / STATE_FOLDER) == ["catalog.json"]  # noqa: PTH208 - hidden files too


def test_a_bucket_that_refuses_is_a_typed_error_and_the_memory_serves(
    catalog: CatalogService, fault_proxy: FaultProxy
) -> None:
    fault_proxy.add(Status(403), listing=True)
    with pytest.raises(SourceDeniedError):
        crops(catalog)
    assert recalled(catalog) == ()
    fault_proxy.clear()
    crops(catalog)
    fault_proxy.add(Status(403), listing=True)
    with pytest.raises(SourceDeniedError):
        crops(catalog, refresh=True)
    assert len(recalled(catalog)) == len(PUBLISHED)


def test_a_crop_that_could_not_be_asked_for_is_asked_for_again(fault_proxy: FaultProxy, root: Path) -> None:
    """An outage says nothing about a crop, so nobody should read of it for the rest of the day."""
    fault_proxy.add(Status(503), key="instance/crop_2.zarr/raw/.zarray")
    patience = settings(fault_proxy, root, s3_object_timeout=1)
    catalog = CatalogService(patience, THREADS)
    problems = [info.problem.code if info.problem else "" for info in asyncio.run(_closing(catalog))]
    assert problems == ["", "source_unreachable", "", ""]
    assert not remembered(root).exists()
    fault_proxy.clear()
    assert not any(info.problem for info in asyncio.run(_closing(CatalogService(patience, THREADS))))
    assert remembered(root).exists()


def test_a_bucket_that_nobody_serves_is_unreachable(tmp_path: Path) -> None:
    found = Settings.load({}, root=tmp_path, s3_endpoint_url="http://127.0.0.1:1", s3_object_timeout=1)
    with pytest.raises(SourceUnreachableError, match=r"http://127\.0\.0\.1:1 does not respond"):
        asyncio.run(_closing(CatalogService(found, THREADS)))


async def _closing(catalog: CatalogService) -> tuple[CropInfo, ...]:
    try:
        return await catalog.crops()
    finally:
        await catalog.aclose()


def test_a_source_is_opened_once_closed_and_opened_again_if_need_be(
    catalog: CatalogService, fault_proxy: FaultProxy
) -> None:
    def threads() -> int:
        return sum(thread.name == "prismcache-source" for thread in threading.enumerate())

    async def story() -> None:
        before = threads()
        await asyncio.gather(catalog.prepare(), catalog.check())
        assert await catalog.crops() == await catalog.crops(refresh=True)
        assert threads() == before + 1
        await catalog.aclose()
        assert threads() == before
        await catalog.crops(refresh=True)

    asyncio.run(story())


def test_closing_does_not_wait_for_a_bucket_that_does_not_respond(
    catalog: CatalogService, fault_proxy: FaultProxy
) -> None:
    stall = Stall()
    fault_proxy.add(stall, listing=True)

    async def story() -> None:
        asking = asyncio.create_task(catalog.crops())
        while not fault_proxy.requests:  # noqa: ASYNC110 - the proxy runs in threads
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await catalog.aclose()
        with pytest.raises(asyncio.CancelledError):
            await asking

    try:
        asyncio.run(story())
    finally:
        stall.release()


def test_asking_the_source_never_runs_on_the_loop_of_who_asks(catalog: CatalogService) -> None:
    """Opening a client and parsing its responses costs some 100 ms, but not the thread that asks."""

    async def story() -> float:
        await catalog.recall()
        began = time.thread_time()
        await catalog.check()
        return time.thread_time() - began

    assert asyncio.run(story()) < 0.02


def test_room_is_reckoned_from_the_catalog(catalog: CatalogService) -> None:
    async def bounds() -> list[int]:
        asked = [
            (0, None), (0, (1,)), (0, (1, 2)), (12, None), (777, None), (0, None, (1, 1, 1)), (0, None, "all"),
            (0, None, NO_CONTEXT, Product.UNLABELLED),
        ]  # fmt: skip
        return [await catalog.file_bytes_bound(CropName(Split.INSTANCE, *each)) for each in asked]

    whole, one, two, twelve, unpublished, context, most, unlabelled = asyncio.run(bounds())
    assert whole < context < most
    assert unlabelled == one
    voxels = math.prod(SPECS[0].labels_shape)
    assert whole > (18 + 4) * voxels
    assert 0 < one < two < twelve < whole
    assert unpublished == 0


def test_a_crop_that_cannot_be_read_is_listed_with_what_is_wrong(own_bucket_dir: Path) -> None:
    folder = crop_folder(own_bucket_dir, SPECS[1])
    (folder / "labels" / ".zarray").unlink()
    found = asyncio.run(read_published(FolderSource(own_bucket_dir / BUCKET / PREFIX)))
    assert [(info.split, info.crop) for info in found] == PUBLISHED
    broken = [info for info in found if info.problem is not None]
    assert [(info.split, info.crop) for info in broken] == [(Split.INSTANCE, 2)]
    assert broken[0].problem is not None
    assert broken[0].problem.code == "invalid_source"
    assert broken[0].raw_shape is None
    assert broken[0].source_objects


def test_other_folders_in_the_bucket_are_no_crops(own_bucket_dir: Path) -> None:
    for name in ("crop_1.zarr.old", "synapses", "crop_x.zarr"):
        other = own_bucket_dir / BUCKET / PREFIX / "instance" / name
        other.mkdir()
        (other / "object").write_text("x")
    found = asyncio.run(read_published(FolderSource(own_bucket_dir / BUCKET / PREFIX)))
    assert [(info.split, info.crop) for info in found] == PUBLISHED
