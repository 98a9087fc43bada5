"""The service is killed at random moments of a job of five crops: the same job completes, and nothing is made twice."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from prismcache.schema import State
from tests.support.cache_root import Lab, published, quarantined, tiny_spec, unfinished
from tests.support.labs import running_lab
from tests.support.processes import eventually, workers_of
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk, are_right

CROP_S = 0.2  # about what the proxy makes of a crop of this size
SPECS = [tiny_spec(crop) for crop in range(5)]
CROPS = [spec.crop for spec in SPECS]
MANIFESTS = ".prismcache/manifests/instance"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running_lab(tmp_path, SPECS) as running:
        running.proxy.latency = 0.01  # spreads the moments over the crops
        yield running


@pytest.mark.slow
def test_the_same_job_completes_after_every_kill_and_published_crops_are_not_fetched_again(
    lab: Lab, tmp_path: Path
) -> None:
    random_ = random.Random(11)
    settings = lab.settings(workers=1, s3_concurrency=3)
    seen: set[int] = set()
    with Service(service_config(settings, tmp_path / "state", min_free_bytes=0)) as service:
        for published_before in (0, 1, 2, 4):
            with Desk(service) as desk:
                _evict_all(desk)
                job = desk.submit(*CROPS)
                eventually(partial(_has_published, lab, published_before), f"{published_before} crops are published")
                time.sleep(random_.random() * CROP_S)
                ready = _kill(service, lab)
            seen.add(len(ready))
            lab.proxy.clear()
            service.start()
            with Desk(service) as desk:
                ended = desk.ended(job.id)
            assert (ended.id, ended.state) == (job.id, State.DONE), published_before
            assert are_right(ended), published_before
            again = {crop for crop in ready if _chunks(lab, crop)}
            assert again == set(), published_before
            assert all(count == 1 for crop in CROPS for count in _chunks(lab, crop).values()), published_before
        assert service.terminate() == 0
    assert len(published(lab.root)) == len(CROPS)
    assert unfinished(lab.root) == quarantined(lab.root) == []
    assert len(seen) > 2, f"the kills came at different moments: {seen}"
    assert "Traceback" not in service.log


def _has_published(lab: Lab, crops: int) -> bool:
    return len(published(lab.root)) >= crops


def _evict_all(desk: Desk) -> None:
    for crop in CROPS:
        desk.http.delete(f"/v1/crops/instance/{crop}").raise_for_status()


def _kill(service: Service, lab: Lab) -> set[int]:
    """Kill the service, wait for what it started, and tell which crops are published."""
    workers = workers_of(service.pid)
    service.kill()
    for worker in workers:
        worker.wait()
    return {crop for crop in CROPS if (lab.root / MANIFESTS / f"crop_{crop}.json").exists()}


def _chunks(lab: Lab, crop: int) -> dict[str, int]:
    """How often each chunk of a crop was asked for; the catalog reads metadata alone."""
    return {key: count for key, count in lab.fetched(SPECS[crop]).items() if "/." not in key and key[0] != "."}
