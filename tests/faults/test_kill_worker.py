"""Workers die at many moments: the crop is made by another one; one that kills every worker fails, alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from prismcache import PrismClient, Verdict, WorkerError
from prismcache.schema import JobRequest
from prismcache_service.cache import CropCache, CropName
from tests.support.cache_root import (
    Lab,
    files_below,
    many_objects_spec,
    published,
    quarantined,
    tiny_spec,
    unfinished,
)
from tests.support.faults import Before
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import Crash, workers_of

OBJECTS = 108
POINTS = (0, 4, 50, 104, 107)
CHANGES = 40
TINY = [tiny_spec(crop) for crop in range(100, 102)]
SPECS = [*(many_objects_spec(crop) for crop in range(len(POINTS))), *TINY]


@pytest.fixture
def lab(module_lab: Lab) -> Iterator[Lab]:
    """The lab with the cache folder of the module's client."""
    module_lab.proxy.clear()
    yield module_lab
    module_lab.proxy.clear()


@pytest.fixture(scope="module")
def client(module_lab: Lab) -> Iterator[PrismClient]:
    with PrismClient(settings=module_lab.settings(s3_concurrency=4)) as client:
        yield client


def _kill_workers() -> None:
    for worker in workers_of(os.getpid()):
        worker.kill()


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_fetching(lab: Lab, client: PrismClient, point: int) -> None:
    crop = POINTS.index(point)
    spec = SPECS[crop]
    rule = lab.proxy.add(Before(_kill_workers), key=spec.prefix, skip=point, times=1)
    client.ensure("instance", crop, progress=False)
    assert rule.hits == 1
    assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))
    assert sum(lab.fetched(spec).values()) <= 2 * OBJECTS
    assert unfinished(lab.root) == []


def test_killed_while_fetching_raw_with_context(lab: Lab, client: PrismClient) -> None:
    rule = lab.proxy.add(Before(_kill_workers), key=SPECS[0].prefix, skip=50, times=1)
    [path] = client.ensure("instance", 0, context="all", progress=False)
    assert rule.hits == 1
    raw = zarr.open_array(lab.source(SPECS[0]) / "raw", mode="r")[...]
    with h5py.File(path) as file:
        assert np.array_equal(np.stack(list(file["raw"].values())), raw)
    assert unfinished(lab.root) == []


@pytest.fixture
def crash(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Crash:
    """Crashes of workers that make files in ``tmp_path / "root"``."""
    crash = Crash(tmp_path / "crash", tmp_path / "root", "worker")
    for name, value in crash.environment.items():
        monkeypatch.setenv(name, value)
    return crash


@pytest.mark.parametrize(("wanted", "every"), [({}, 1), ({"product": "avg_barcodes"}, 3)], ids=["crop", "product"])
def test_killed_at_every_change_that_a_worker_makes(
    lab: Lab, tmp_path: Path, crash: Crash, wanted: dict[str, str], every: int
) -> None:
    """The whole publication: temporary file, manifest, renames. Each step in turn is the worker's last one.

    A product's file is published by the same code; every third step is enough.
    """
    own, spec = Lab(lab.bucket_dir, lab.proxy, tmp_path / "root"), TINY[0]
    cache, name = CropCache(own.root), CropName.of(JobRequest(split=spec.split, **wanted), spec.crop)
    with PrismClient(settings=own.settings()) as client:
        client.ensure("instance", spec.crop, progress=False)
        [path] = client.ensure("instance", spec.crop, progress=False, **wanted)
        right, files = Path(path).read_bytes(), files_below(own.root / "instance")
        cache.remove(name)
        before = len(crash.log)
        client.ensure("instance", spec.crop, progress=False, **wanted)
        steps = crash.log[before:]
        assert any(step.startswith("os.rename instance/") for step in steps)
        assert 6 < len(steps) < CHANGES
        for at, step in list(enumerate(steps, start=1))[::every]:
            cache.remove(name)
            crash.before(at)
            client.ensure("instance", spec.crop, progress=False, **wanted)
            assert crash.happened(at), step
            assert {result.verdict for result in client.verify()} == {Verdict.OK}
            assert Path(path).read_bytes() == right
            assert files_below(own.root / "instance") == files, step
            assert unfinished(own.root) == quarantined(own.root) == [], step
    assert_crop_file_equals_oracle(own.cached(spec), own.source(spec))


def test_a_product_whose_workers_all_die_fails_and_its_crop_stays(lab: Lab, tmp_path: Path, crash: Crash) -> None:
    own = Lab(lab.bucket_dir, lab.proxy, tmp_path / "root")
    with PrismClient(settings=own.settings()) as client:
        client.ensure("instance", TINY[0].crop, progress=False)
        crash.before("open instance/.crop_100.unlabelled.h5")
        with pytest.raises(WorkerError, match="3 worker processes"):
            client.ensure("instance", TINY[0].crop, product="unlabelled", progress=False)
        assert published(own.root) == ["instance/crop_100.h5"]
        assert unfinished(own.root) == quarantined(own.root) == []
        crash.before(0)
        client.ensure("instance", TINY[0].crop, product="unlabelled", progress=False)


def test_a_crop_whose_workers_all_die_while_publishing(lab: Lab, tmp_path: Path, crash: Crash) -> None:
    """Three workers, each killed just before the file gets its name: what they leave is gone with the error."""
    own = Lab(lab.bucket_dir, lab.proxy, tmp_path / "root")
    crash.before("os.rename instance/.")
    with PrismClient(settings=own.settings()) as client, pytest.raises(WorkerError, match="3 worker processes"):
        client.ensure("instance", TINY[0].crop, progress=False)
    assert published(own.root) == unfinished(own.root) == quarantined(own.root) == []
