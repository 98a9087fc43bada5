"""The profile `cluster` of docker/compose.yaml: crops are made by Dask workers in containers that come and go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismcache.schema import Job, State
from tests.support.compose import LAB_PATH, Stack, ended, job
from tests.support.docker_engine import Engine
from tests.support.processes import eventually

pytestmark = [pytest.mark.compose, pytest.mark.timeout(300)]

CROPS = [0, 1, 2, 5, 12, 13]


@pytest.fixture
def cluster(engine: Engine, tmp_path: Path) -> Iterator[Stack]:
    settings = {
        "COMPOSE_PROFILES": "demo,cluster", "PRISMCACHE_ENGINE": "dask", "PRISMCACHE_WORKERS": "2",
        "PRISMCACHE_DASK_SCHEDULER": "tcp://scheduler:8786", "PRISMCACHE_S3_BANDWIDTH_LIMIT": "20MB",
        "PRISM_DASK_WORKERS": "2",
    }  # fmt: skip
    with Stack(engine, tmp_path, settings, ("s3", "scheduler", "worker", "prismcache")) as stack:
        stack.create_token("ada", "requester")
        stack.start()
        yield stack


def test_a_job_survives_the_death_of_a_worker_and_of_the_scheduler(cluster: Stack) -> None:
    first, second = cluster.containers("worker")
    scheduler = cluster.container("scheduler")
    with cluster.client("requester") as http:
        body = {"split": "instance", "crops": CROPS}
        made = Job.model_validate(http.post("/v1/jobs", json=body).raise_for_status().json())

        def done() -> int:
            return sum(crop.state is State.DONE for crop in job(http, made.id).crops)

        def fetching() -> int:
            crops = job(http, made.id).crops
            return sum(crop.state is State.RUNNING and crop.objects_done > 0 for crop in crops)

        eventually(lambda: fetching() == 2, "both workers are at it", deadline=60)
        cluster.engine.docker("kill", first)
        before = done()
        eventually(lambda: done() > before, "the other goes on", deadline=60)
        cluster.engine.docker("kill", scheduler)
        assert done() <= 4, "killed in the middle"
        cluster.engine.docker("start", scheduler)
        over = ended(http, made.id)
    assert over.state is State.DONE, over
    assert [crop.crop for crop in over.crops] == CROPS
    for crop in over.crops:
        assert crop.file is not None
        path = cluster.storage / Path(crop.file.path).relative_to(LAB_PATH)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == crop.file.sha256
    eventually(lambda: not list(cluster.storage.glob("*/.*.tmp")), "nothing unfinished is left")
    assert cluster.inspect(first, "{{.State.Running}}") == "false"
    assert int(cluster.inspect(second, "{{.RestartCount}}")) >= 1, "it ended with its scheduler, and came back"
    assert cluster.writable(second) == {"/cache", "/tmp"}
    assert cluster.writable(scheduler) == {"/tmp"}
