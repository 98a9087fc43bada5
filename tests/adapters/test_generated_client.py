"""A client that openapi-python-client generates from the service's OpenAPI document gets a crop from a real service."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and token of a service of the product's environment."""
    python = os.environ.get("PRODUCT_PYTHON", ".venv/bin/python")
    command = [python, "-m", "tests.support.served_lab", tmp_path_factory.mktemp("lab")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url, token = process.stdout.readline().split()
        yield url, token
        process.stdin.close()


Module = Callable[[str], Any]


@pytest.fixture(scope="module")
def generated(served: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Module]:
    """Import a module of the generated package, without a warning of the generator."""
    folder = tmp_path_factory.mktemp("generated")
    config = folder / "config.yaml"
    config.write_text("content_type_overrides: {image/png: application/octet-stream}")  # as docs/http-api.md says
    generate = [
        "generate",
        "--config",
        config,
        "--url",
        f"{served[0]}/openapi.json",
        "--output-path",
        folder / "prism_rest",
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for ruff, which formats what it generates
    command = [sys.executable, "-m", "openapi_python_client", *generate, "--meta", "none", "--fail-on-warning"]
    subprocess.run(command, check=True, env=os.environ | {"PATH": path})
    sys.path.insert(0, str(folder))
    yield lambda name: importlib.import_module(f"prism_rest.{name}")
    sys.path.remove(str(folder))


@pytest.fixture
def client(served: tuple[str, str], generated: Module) -> Iterator[Any]:
    url, token = served
    with generated("client").AuthenticatedClient(base_url=url, token=token) as opened:
        yield opened


def test_a_crop_is_submitted_waited_for_and_downloaded(client: Any, generated: Module) -> None:
    jobs, crops, models = (generated(name) for name in ("api.jobs", "api.crops", "models"))
    for name in ("submit_job", "get_job", "list_jobs"):
        generated(f"api.jobs.{name}")
    for name in ("download_crop", "get_crop"):
        generated(f"api.crops.{name}")
    split = models.Split.INSTANCE

    job = jobs.submit_job.sync(client=client, body=models.JobRequest(split=split, crops=[0]))
    while job.state in {models.State.QUEUED, models.State.RUNNING}:
        job = jobs.get_job.sync(job.id, client=client, wait=20, revision=job.revision)

    assert job.state is models.State.DONE
    [made] = job.crops
    content = crops.download_crop.sync(split, 0, client=client).payload.read()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (made.file.size, made.file.sha256)
    info = crops.get_crop.sync(split, 0, client=client)
    assert info.raw_shape[0] == len(made.file.channels)
    assert [listed.id for listed in jobs.list_jobs.sync(client=client, state=[models.State.DONE]).jobs] == [job.id]


def test_an_error_is_a_problem_with_its_code_and_remedy(
    client: Any, generated: Module, served: tuple[str, str]
) -> None:
    models = generated("models")
    problem = generated("api.crops.get_crop").sync(models.Split.INSTANCE, 77, client=client)
    assert isinstance(problem, models.Problem)
    assert (problem.status, problem.code) == (404, "unknown_crop")
    with generated("client").Client(base_url=served[0]) as stranger:
        assert generated("api.operation.health").sync(client=stranger).status == "ok"
        refused = generated("api.jobs.list_jobs").sync(client=stranger)
    assert (refused.code, bool(refused.remedy)) == ("unauthorized", True)
