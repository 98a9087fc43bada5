"""Workers die or hang under the service: it responds throughout, jobs complete, and a deadly crop fails alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prismcache.schema import State
from tests.support.cache_root import Lab, published, tiny_spec, unfinished
from tests.support.faults import Before, Stall
from tests.support.processes import Watched, workers_of
from tests.support.service import COMMAND, Service, service_config
from tests.support.service_jobs import Desk, are_right, codes

SPECS = [tiny_spec(crop) for crop in range(2)]
SILENCE_S = 10  # longer than a worker takes to start on a machine that is busy
# The real service, but for how long a worker may be silent: a minute would be long for a test.
IMPATIENT = f"""
from prismcache_service.engine.local.engine import LocalEngine
LocalEngine.__init__.__kwdefaults__["silence"] = {SILENCE_S}
from prismcache_service.web.server import main
main()
"""


@pytest.fixture
def service(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    config = service_config(lab.settings(workers=1, s3_concurrency=4), tmp_path / "state", min_free_bytes=0)
    with Service(config, command=getattr(request, "param", COMMAND)) as running, always_healthy(running):
        yield running


@contextmanager
def always_healthy(service: Service) -> Iterator[None]:
    """Ask for the service's health all the time; each response must come soon, also on a machine that is busy."""
    slowest, failures, ended = [0.0], list[object](), threading.Event()

    def ask() -> None:
        with service.client(timeout=5) as http:
            while not ended.wait(0.02):
                began = time.monotonic()
                try:
                    assert http.get("/healthz").status_code == 200
                except Exception as error:  # noqa: BLE001 - told by the test
                    failures.append(error)
                slowest[0] = max(slowest[0], time.monotonic() - began)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join(20)
    assert failures == []
    assert 0 < slowest[0] < 4


def the_worker(service: Service) -> Watched:
    [worker] = workers_of(service.pid)
    return worker


def test_a_worker_that_is_killed_costs_one_retry(service: Service, lab: Lab) -> None:
    rule = lab.proxy.add(Before(lambda: the_worker(service).kill()), key=f"{SPECS[0].prefix}/labels/1", times=1)
    with Desk(service) as desk:
        assert are_right(desk.ended(desk.submit(0, 1).id))
    assert rule.hits == 1
    assert unfinished(lab.root) == []


@pytest.mark.parametrize("service", [(sys.executable, "-c", IMPATIENT)], indirect=True, ids=["impatient"])
def test_a_worker_that_hangs_is_replaced(service: Service, lab: Lab) -> None:
    stall = Stall()
    rule = lab.proxy.add(stall, key="labels/0.0.0", times=1)
    with Desk(service) as desk:
        job = desk.submit(0, 1)
        lab.proxy.wait_until(lambda proxy: rule.hits > 0, timeout=30)
        worker = the_worker(service)
        os.kill(worker.pid, signal.SIGSTOP)
        stall.release()
        assert are_right(desk.ended(job.id))
    assert not worker.is_running
    assert unfinished(lab.root) == []


def test_a_crop_that_kills_its_worker_three_times_fails_alone(service: Service, lab: Lab) -> None:
    rule = lab.proxy.add(Before(lambda: the_worker(service).kill()), key=f"{SPECS[0].prefix}/labels/1.0.0")
    with Desk(service) as desk:
        job = desk.ended(desk.submit(0, 1).id)
        assert codes(job) == ["worker_failed", "done"]
        assert job.state is State.FAILED
        assert job.crops[0].problem is not None
        assert "3 worker processes" in job.crops[0].problem.detail
        assert rule.hits == 3
        assert published(lab.root) == ["instance/crop_1.h5"]
        assert unfinished(lab.root) == []
        lab.proxy.clear()
        assert are_right(desk.ended(desk.submit(0).id))
