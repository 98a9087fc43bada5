"""A cache folder whose every system call takes seconds: only the requests that need the folder wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from prismcache.config import Settings
from prismcache.schema import Split
from prismcache_service.cache import CropCache, CropName
from tests.support.disk_faults import DiskFaults, faulty_environment
from tests.support.processes import eventually
from tests.support.service import Service, service_config
from tests.support.stored_crops import store_crop

NOWHERE = "http://127.0.0.1:1"
WISH = {"split": "instance", "crops": [0, 1]}
CROP = "/v1/crops/instance/0"
DISK_REQUESTS = [
    ("GET", "/v1/status", None),
    ("GET", "/metrics", None),
    ("GET", "/v1/crops", None),
    ("GET", CROP, None),
    ("GET", f"{CROP}/file", None),
    ("HEAD", f"{CROP}/file", None),
    ("GET", f"{CROP}/zarr/.zattrs", None),
    ("GET", f"{CROP}/preview.png", None),
    ("POST", "/v1/jobs", WISH),
    ("POST", "/v1/verify", WISH),
    ("DELETE", "/v1/crops/instance/7", None),
    ("DELETE", "/v1/quarantine", None),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slow") / "root"
    cache = CropCache(root)
    for crop in range(2):
        store_crop(cache, CropName(Split.INSTANCE, crop))
    cache.threads.close()
    return root


@pytest.fixture(scope="module")
def faulty(root: Path) -> dict[str, str]:
    return dict(faulty_environment(root.parent, root, "caller"))


@pytest.fixture(scope="module")
def service(root: Path, faulty: dict[str, str]) -> Iterator[Service]:
    config = service_config(Settings.load({}, root=root, s3_endpoint_url=NOWHERE), root.parent / "state")
    with Service(config, env=faulty) as running:
        yield running


@pytest.mark.parametrize("seconds", [3.0, 20.0])
def test_requests_that_need_no_folder_do_not_wait_for_a_slow_one(
    service: Service, faulty: dict[str, str], seconds: float
) -> None:
    """The event loop's thread makes no call below the folder, so that nothing else waits for one."""
    faults = DiskFaults(faulty["FAULT_PLAN"])

    def ask(method: str, path: str, body: object) -> int:
        with service.client(timeout=60) as own:
            return own.request(method, path, json=body).status_code

    with service.client() as client, ThreadPoolExecutor(len(DISK_REQUESTS)) as pool:
        job = client.post("/v1/jobs", json=WISH).json()
        with faults.slow(seconds):
            slow = [pool.submit(ask, *request) for request in DISK_REQUESTS]
            eventually(lambda: faults.delayed >= len(slow) // 2, "many requests wait for the folder")
            quick = [_seconds_of(client, path) for _ in range(20) for path in ("/healthz", f"/v1/jobs/{job['id']}")]
            assert max(quick) < 1.0  # far below the delay, far above what a loaded machine needs
            assert not any(request.done() for request in slow) or seconds < sum(quick)
            ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["storage"]) == (503, "no response within 3 s")
        assert all(request.result() < 600 for request in slow)
    assert faults.on_loop == ""


def _seconds_of(client: httpx2.Client, path: str) -> float:
    begun = time.monotonic()
    assert client.get(path).status_code == 200
    return time.monotonic() - begun
