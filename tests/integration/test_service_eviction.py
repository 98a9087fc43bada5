"""A real service with a quota: who stays, who goes, who waits, and who can never come."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from prismcache import PrismClient
from prismcache.layout import file_bytes_bound
from prismcache.schema import Product, Split, State
from prismcache_service.cache import CropCache, CropName
from tests.support.cache_root import Lab, published, tiny_spec
from tests.support.processes import eventually
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk, are_right, codes
from tests.support.stored_crops import store_crop

MB = 1_000_000
SPECS = [tiny_spec(crop) for crop in range(3)]
PROMISE = file_bytes_bound(SPECS[0].labels_shape, SPECS[0].channels)
"""What is promised to each crop of the bucket, most of it unused."""
STORED = range(100, 106)
QUOTA = PROMISE + 3 * MB + MB // 2
"""Beside one promise, three of the stored crops' files fit, and some of the bucket's, which are small."""


@pytest.fixture
def lab(module_lab: Lab, tmp_path: Path) -> Lab:
    """A cache that holds six files of 1 MB each, of crops that the bucket no longer has."""
    module_lab.proxy.clear()
    own = Lab(module_lab.bucket_dir, module_lab.proxy, tmp_path / "root")
    for crop in STORED:
        store_crop(CropCache(own.root), CropName(Split.INSTANCE, crop), MB)
    return own


@contextmanager
def serving(lab: Lab, tmp_path: Path, **changes: object) -> Iterator[tuple[Service, Desk]]:
    settings = {"min_free_bytes": 0, "max_bytes": QUOTA, "low_water": 1.0} | changes
    config = service_config(lab.settings(workers=2), tmp_path / "state", **settings)
    with Service(config) as service, Desk(service) as desk:
        yield service, desk


@contextmanager
def watched_quota(lab: Lab, quota: int) -> Iterator[list[int]]:
    """See that crop files, finished or not, never take more; yields what they took at each look."""
    seen, ended = list[int](), threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            total = 0
            for path in (lab.root / "instance").iterdir():
                with suppress(FileNotFoundError):
                    total += path.stat().st_size
            seen.append(total)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        ended.set()
        looking.join(20)
    assert max(seen) <= quota


def stored(lab: Lab) -> list[int]:
    """Which of the stored crops are still there."""
    return [crop for crop in STORED if (lab.root / "instance" / f"crop_{crop}.h5").exists()]


def test_leased_and_pinned_files_stay_and_others_go_least_recently_used_first(lab: Lab, tmp_path: Path) -> None:
    with serving(lab, tmp_path) as (service, desk), PrismClient(lab.root, url=service.url) as reader:
        for crop in (105, 103, 104, 102):
            desk.touch(crop)
        desk.http.put("/v1/crops/instance/100/pin").raise_for_status()
        [path] = reader.ensure("instance", 101, progress=False)  # leased as long as the reader lives
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        with watched_quota(lab, max(QUOTA, 6 * MB)), Path(path).open("rb") as held:
            assert are_right(desk.ended(desk.submit(0).id))
            assert stored(lab) == [100, 101, 102]
            assert hashlib.sha256(held.read()).hexdigest() == content
        text = desk.http.get("/metrics").text
        assert "prismcache_evictions_total 3.0" in text
        assert "prismcache_evicted_bytes_total 3e+06" in text
        assert reader.ensure("instance", 101, progress=False) == [path]
        usage = desk.status().usage
        assert usage.used_bytes + usage.reserved_bytes <= QUOTA


def test_products_go_and_stay_with_their_crops(lab: Lab, tmp_path: Path) -> None:
    cache = CropCache(lab.root)
    for crop in STORED[3:]:
        cache.remove(CropName(Split.INSTANCE, crop))
    for crop in STORED[:3]:
        store_crop(cache, CropName(Split.INSTANCE, crop, product=Product.AVG_BARCODES), MB)
    with (
        serving(lab, tmp_path, max_bytes=QUOTA + MB) as (service, desk),
        PrismClient(lab.root, url=service.url) as reader,
    ):
        desk.http.put("/v1/crops/instance/100/pin").raise_for_status()
        reader.ensure("instance", 101, product="avg_barcodes", progress=False)  # leased as long as the reader lives
        assert desk.status().usage.used_bytes == 6 * MB
        assert are_right(desk.ended(desk.submit(0).id))
        assert stored(lab) == [100, 101]
        assert [crop for crop in STORED if (lab.root / f"instance/crop_{crop}.avg_barcodes.h5").exists()] == [100, 101]


def test_many_jobs_at_once_stay_within_the_quota(lab: Lab, tmp_path: Path) -> None:
    quota = 6 * MB  # less than two promises: one crop after another, however many workers there are
    with serving(lab, tmp_path, max_bytes=quota) as (_, desk), watched_quota(lab, quota) as seen:
        jobs = [desk.submit(crop) for crop in range(3)]
        for job in jobs:
            assert are_right(desk.ended(job.id))
        assert len(seen) > 10
    assert len(published(lab.root)) < 6 + 3


def test_an_eviction_goes_down_to_the_low_water_mark(lab: Lab, tmp_path: Path) -> None:
    with serving(lab, tmp_path, low_water=0.7) as (_, desk):
        for crop in STORED:
            desk.touch(crop)
        assert are_right(desk.ended(desk.submit(0).id))
        # 2.5 MB have to go for the promise, and 30 % of the quota beyond them: 4.8 MB in all.
        assert stored(lab) == [105]


def test_a_crop_that_can_never_fit_fails_with_the_figures_and_nothing_is_evicted(lab: Lab, tmp_path: Path) -> None:
    with serving(lab, tmp_path, max_bytes=PROMISE - 1) as (_, desk):
        job = desk.ended(desk.submit(0, 100).id)
        assert codes(job) == ["quota_exceeded", "done"]
        problem = job.crops[0].problem
        assert problem is not None
        assert (problem.status, problem.remedy != "") == (422, True)
        assert "4 MB" in problem.detail
        assert stored(lab) == list(STORED)


def test_full_for_now_waits_and_goes_on_when_a_lease_is_released(lab: Lab, tmp_path: Path) -> None:
    with serving(lab, tmp_path) as (_, desk):
        leases = [desk.lease(crop) for crop in STORED]
        job = desk.submit(0)
        eventually(lambda: bool(desk.job(job.id).crops[0].waiting_for), "the job says what it waits for")
        waiting = desk.job(job.id)
        assert (waiting.state, waiting.crops[0].objects_total) == (State.RUNNING, 0)
        assert waiting.crops[0].waiting_for.startswith("room for 4 MB: 6 MB are used, 0 MB promised")
        assert "leased or wanted by jobs: instance/100, instance/101, " in waiting.crops[0].waiting_for
        assert desk.status().waiting == (f"instance/0 waits for {waiting.crops[0].waiting_for}",)
        assert stored(lab) == list(STORED)
        for lease in leases[:3]:
            desk.release(lease)
        ended = desk.ended(job.id)
        assert are_right(ended)
        assert ended.crops[0].waiting_for == ""
        assert stored(lab) == [103, 104, 105]


def test_who_waits_for_room_can_be_cancelled(lab: Lab, tmp_path: Path) -> None:
    with serving(lab, tmp_path) as (_, desk):
        desk.lease(*STORED)
        job = desk.submit(0)
        eventually(lambda: desk.job(job.id).state is State.RUNNING, "the crop has its turn")
        assert desk.cancel(job.id).state is State.CANCELLED
        assert desk.status().crops_running == 0
        assert stored(lab) == list(STORED)


def test_a_lease_that_is_not_renewed_ends_and_makes_room(lab: Lab, tmp_path: Path) -> None:
    with serving(lab, tmp_path, lease_seconds=1) as (_, desk):
        desk.lease(*STORED)
        assert are_right(desk.ended(desk.submit(0).id))
        assert len(stored(lab)) == 3


def test_a_restart_keeps_pins_leases_and_last_use(lab: Lab, tmp_path: Path) -> None:
    with serving(lab, tmp_path) as (service, desk):
        desk.touch(102)
        desk.http.put("/v1/crops/instance/100/pin").raise_for_status()
        desk.lease(101)
        service.restart()
        with Desk(service) as again:
            assert are_right(again.ended(again.submit(0).id))
        assert stored(lab) == [100, 101, 102]
