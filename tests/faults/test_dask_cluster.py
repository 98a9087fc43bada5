"""Workers, scheduler and service of a real Dask cluster die or hang: jobs complete, and nothing is fetched in vain."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismcache.schema import State
from tests.support.cache_root import Lab, object_key, published, tiny_spec, unfinished
from tests.support.dask_cluster import DaskCluster
from tests.support.faults import Rule, Stall
from tests.support.processes import Watched, eventually, workers_of
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk, are_right

SPECS = [tiny_spec(crop) for crop in range(20)]
LATE = "raw/0.0.0.0"
HUNG_S = 5
"""Without a heartbeat; of so few workers, Dask waits no less."""
SETTINGS = {"SCHEDULER__ALLOWED_FAILURES": "2", "SCHEDULER__WORKER_TTL": f"{HUNG_S}s"}


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    with DaskCluster(tmp_path_factory.mktemp("dask"), SETTINGS) as running:
        yield running


@pytest.fixture
def cluster(module_cluster: DaskCluster) -> DaskCluster:
    """Two workers, as after any test that ended some."""
    module_cluster.complete(2)
    return module_cluster


@pytest.fixture
def service(lab: Lab, cluster: DaskCluster, tmp_path: Path) -> Iterator[Service]:
    dask = {"engine": "dask", "dask_scheduler": str(cluster.scheduler_file)}
    config = service_config(lab.settings(workers=2), tmp_path / "state", min_free_bytes=0, **dask)
    with Service(config) as running:
        yield running


def engine_state(desk: Desk) -> str:
    return desk.http.get("/readyz").json()["checks"]["engine"]


def held_back(lab: Lab, crop: int) -> tuple[Stall, Rule]:
    """Hold the crop's last objects back, so that what happens next happens in its midst."""
    stall = Stall()
    return stall, lab.proxy.add(stall, key=object_key(SPECS[crop], LATE), times=1)


def begun(lab: Lab, rule: Rule) -> None:
    lab.proxy.wait_until(lambda proxy: rule.hits > 0, timeout=60)


def makers(cluster: DaskCluster, crop: int) -> list[Watched]:
    """The workers that make this crop: a child of theirs has the unfinished file open."""

    def makes(worker: Watched) -> bool:
        links = [link for child in workers_of(worker.pid) for link in Path(f"/proc/{child.pid}/fd").iterdir()]
        # Not `readlink`, which fails for what was closed since it was listed.
        return any(f".crop_{crop}.h5." in os.path.realpath(link) for link in links)

    return list(filter(makes, cluster.workers()))


def maker(cluster: DaskCluster, crop: int) -> Watched:
    eventually(lambda: makers(cluster, crop) != [], f"somebody makes crop {crop}")
    return makers(cluster, crop)[0]


def refetched(lab: Lab) -> set[int]:
    """The crops of which a chunk was fetched more than once; metadata the service itself reads, too."""
    return {
        spec.crop
        for spec in SPECS
        if any(n > 1 for key, n in lab.fetched(spec).items() if not key.rpartition("/")[2].startswith("."))
    }


def nothing_is_left(lab: Lab) -> None:
    """No temporary file and no lease, but for a moment those with which workers are inspected."""
    eventually(lambda: unfinished(lab.root) == [], "nothing unfinished is left")


def report(what: str, began: float) -> None:
    sys.stderr.write(f"\n{what}: {time.monotonic() - began:.1f} s\n")


def test_twenty_crops_are_made_and_every_object_is_fetched_once(service: Service, lab: Lab) -> None:
    began = time.monotonic()
    with Desk(service) as desk:
        assert are_right(desk.ended(desk.submit(*range(20)).id))
        assert engine_state(desk) == "ok"
    report("20 crops, 2 workers", began)
    assert len(published(lab.root)) == 20
    assert refetched(lab) == set()
    nothing_is_left(lab)


def test_a_killed_worker_costs_its_own_crop_a_second_fetch(service: Service, lab: Lab, cluster: DaskCluster) -> None:
    _, rule = held_back(lab, 0)
    with Desk(service) as desk:
        job = desk.submit(*range(6))
        begun(lab, rule)
        eventually(lambda: desk.job(job.id).crops[5].state is State.DONE, "the other worker makes the other crops")
        began = time.monotonic()
        maker(cluster, 0).kill()
        assert are_right(desk.ended(job.id))
        report("kill -9 of a worker, to the end of its crop", began)
    assert refetched(lab) == {0}
    nothing_is_left(lab)


def test_a_stopped_worker_loses_its_crop_to_another(service: Service, lab: Lab, cluster: DaskCluster) -> None:
    stall, rule = held_back(lab, 0)
    with Desk(service) as desk:
        job = desk.submit(*range(6))
        begun(lab, rule)
        worker = maker(cluster, 0)
        children = workers_of(worker.pid)
        began = time.monotonic()
        for process in (worker, *children):  # as if its machine hung
            os.kill(process.pid, signal.SIGSTOP)
        assert are_right(desk.ended(job.id))
        report(f"SIGSTOP of a worker, to the end of its crop ({HUNG_S} s without a heartbeat allowed)", began)
        assert refetched(lab) == {0}
        stall.release()
        for process in (*children, worker):
            os.kill(process.pid, signal.SIGCONT)
        worker.wait()  # Dask ends a worker that it has given up
        nothing_is_left(lab)
        assert are_right(desk.ended(desk.submit(*range(8)).id))
    assert refetched(lab) == {0}


def test_jobs_survive_the_scheduler(service: Service, lab: Lab, cluster: DaskCluster) -> None:
    _, rule = held_back(lab, 0)
    with Desk(service) as desk:
        job = desk.submit(*range(6))
        begun(lab, rule)
        eventually(lambda: desk.job(job.id).crops[5].state is State.DONE, "the other worker makes the other crops")
        began = time.monotonic()
        cluster.kill_scheduler()
        eventually(lambda: "Dask scheduler" in engine_state(desk), "the service says that it is not ready")
        assert desk.http.get("/readyz").status_code == 503
        assert desk.http.get("/v1/crops/instance/5/file").status_code == 200
        eventually(lambda: not cluster.workers(), "workers end with their scheduler")
        report("kill -9 of the scheduler, until that is noticed and its workers have ended", began)
        cluster.complete(2)
        assert are_right(desk.ended(job.id))
        report("kill -9 of the scheduler, to the end of the crop", began)
    assert refetched(lab) == {0}
    nothing_is_left(lab)


def test_a_cancelled_job_stops_its_work_and_leaves_nothing(service: Service, lab: Lab, cluster: DaskCluster) -> None:
    _, rule = held_back(lab, 0)
    with Desk(service) as desk:
        job = desk.submit(0)
        begun(lab, rule)
        began = time.monotonic()
        assert desk.cancel(job.id).state is State.CANCELLED
        report("cancel", began)
        assert makers(cluster, 0) == []
        assert published(lab.root) == []
        nothing_is_left(lab)
        assert are_right(desk.ended(desk.submit(0, 1).id))


def test_jobs_survive_the_service(service: Service, lab: Lab, cluster: DaskCluster) -> None:
    _, rule = held_back(lab, 0)
    with Desk(service) as desk:
        job = desk.submit(*range(6))
        begun(lab, rule)
        eventually(lambda: desk.job(job.id).crops[5].state is State.DONE, "the other worker makes the other crops")
    making = workers_of(maker(cluster, 0).pid)
    service.kill()
    for process in making:
        process.wait()  # nobody wants its crop any more
    began = time.monotonic()
    with Desk(service.start()) as desk:
        assert are_right(desk.ended(job.id))
        report("restart of the service after kill -9, to the end of the crop", began)
    assert refetched(lab) == {0}
    nothing_is_left(lab)
