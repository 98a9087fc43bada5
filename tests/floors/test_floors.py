"""The product on the lowest versions that pyproject.toml allows; `make test-floors` installs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cache_root import Lab, tiny_spec
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import environment
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk, are_right

PYTHON = os.environ.get("FLOORS_PYTHON", "")
COMMAND = [PYTHON, "-m", "prismcache"]
pytestmark = pytest.mark.skipif(not PYTHON, reason="FLOORS_PYTHON names no interpreter (make test-floors)")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running_lab(tmp_path, [tiny_spec()]) as running:
        yield running


def test_help_is_shown() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True)
    assert "ensure" in done.stdout


def test_ensure_makes_a_right_crop(lab: Lab) -> None:
    command = [*COMMAND, "ensure", "instance", "0"]
    done = subprocess.run(command, env=environment(lab.settings()), capture_output=True, text=True, check=True)
    assert done.stdout == f"{lab.cached(tiny_spec())}\n"
    assert_crop_file_equals_oracle(lab.cached(tiny_spec()), lab.source(tiny_spec()))


@pytest.mark.parametrize("engine", ["local", "dask"])
def test_the_service_makes_a_right_crop(lab: Lab, tmp_path: Path, engine: str) -> None:
    program = "from prismcache_service.web.server import main; main()"
    if engine == "dask":  # a cluster of one worker, in the service's process
        program = (
            "import os; from distributed import LocalCluster\n"
            "if __name__ == '__main__':\n"
            "    cluster = LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None,\n"
            "        protocol='tcp')\n"
            "    os.environ.update(PRISMCACHE_ENGINE='dask', PRISMCACHE_DASK_SCHEDULER=cluster.scheduler_address)\n"
            f"    {program}\n"
        )
    config = service_config(lab.settings(), tmp_path / "state", min_free_bytes=0)
    with Service(config, command=(PYTHON, "-c", program)) as service, Desk(service) as desk:
        assert are_right(desk.ended(desk.submit(0).id))
