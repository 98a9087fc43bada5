"""A cache folder whose every operation takes seconds: only the requests that need the folder wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from prismcache.config import Settings
from prismcache.schema import Split
from prismcache_service.cache import CropCache, CropName
from tests.support.processes import SLOW_HOOK
from tests.support.service import Service, service_config
from tests.support.stored_crops import store_crop

DELAY_S = 3.0
BOUND_S = 1.0  # far below the delay, far above what a loaded machine needs for a response from memory
NOWHERE = "http://127.0.0.1:1"
DISK_REQUESTS = [
    ("GET", "/v1/status"),
    ("GET", "/metrics"),
    ("GET", "/readyz"),
    ("GET", "/v1/crops"),
    ("GET", "/v1/crops/instance/0/file"),
    ("GET", "/v1/crops/instance/0/zarr/.zattrs"),
    ("POST", "/v1/jobs"),
]


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    """While this file exists, the folder is slow."""
    return tmp_path / "slow"


@pytest.fixture
def service(tmp_path: Path, switch: Path) -> Iterator[Service]:
    root = tmp_path / "root"
    cache = CropCache(root)
    for crop in range(2):
        store_crop(cache, CropName(Split.INSTANCE, crop))
    cache.threads.close()
    config = service_config(Settings.load({}, root=root, s3_endpoint_url=NOWHERE), tmp_path / "state")
    env = {
        "PYTHONPATH": str(SLOW_HOOK),
        "SLOW_ROOT": str(root),
        "SLOW_SWITCH": str(switch),
        "SLOW_SECONDS": str(DELAY_S),
    }
    with Service(config, env=env) as running:
        yield running


def test_requests_that_need_no_folder_do_not_wait_for_a_slow_one(service: Service, switch: Path) -> None:
    wish = {"split": "instance", "crops": [0, 1]}

    def seconds_of(method: str, path: str) -> float:
        begun = time.monotonic()
        with service.client(timeout=60) as own:
            own.request(method, path, json=wish if method == "POST" else None)
        return time.monotonic() - begun

    with service.client() as client:
        job = client.post("/v1/jobs", json=wish).json()
        switch.touch()
        quick: list[float] = []
        with ThreadPoolExecutor(2 * len(DISK_REQUESTS)) as pool:
            slow = [pool.submit(seconds_of, *request) for request in 2 * DISK_REQUESTS]
            while not all(request.done() for request in slow):
                wait(slow, timeout=0.1)
                for path in ("/healthz", f"/v1/jobs/{job['id']}"):
                    begun = time.monotonic()
                    assert client.get(path).status_code == 200
                    quick.append(time.monotonic() - begun)
            switch.unlink()
        assert min(request.result() for request in slow) >= DELAY_S
        assert max(quick) < BOUND_S
