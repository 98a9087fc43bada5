"""The service as docker/compose.yaml starts it, seen from outside its containers."""

from __future__ import annotations

import hashlib
import json
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import httpx2
import pytest

from prismcache import PrismClient
from prismcache.schema import Job, State
from tests.support.compose import KILL, LAB_PATH, OWNER, Stack, ended, job
from tests.support.docker_engine import Engine
from tests.support.processes import eventually

pytestmark = [pytest.mark.compose, pytest.mark.timeout(300)]

TOOLS = ("cc", "gcc", "ld", "make", "pip", "pip3", "rclone")
STATUS = "print(open('/proc/self/status').read())"


@pytest.fixture(scope="module")
def lab(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running service that fetches slowly enough to be killed meanwhile."""
    settings = {"PRISMCACHE_S3_BANDWIDTH_LIMIT": "12MB"}
    with Stack(engine, tmp_path_factory.mktemp("lab"), settings) as stack:
        for role in ("reader", "requester", "admin"):
            stack.create_token(f"a-{role}", role)
        stack.start()
        yield stack


def test_without_tokens_it_does_not_start(engine: Engine, tmp_path: Path) -> None:
    with Stack(engine, tmp_path) as stack:
        said = stack.compose("run", "--rm", "-T", "--no-deps", "prismcache", check=False)
    assert "can be reached from other machines, and /state/tokens.json holds no token" in said


def test_without_a_storage_folder_compose_says_what_to_set(engine: Engine, tmp_path: Path) -> None:
    with Stack(engine, tmp_path, {"PRISM_STORAGE": ""}) as stack:
        assert "set PRISM_STORAGE in docker/.env" in stack.compose("config", check=False)


def test_a_client_of_the_lab_gets_files_of_the_labs_owner_on_its_mount(lab: Stack) -> None:
    with PrismClient(url=lab.url, token=lab.tokens["requester"], root=lab.storage) as client:
        paths = [Path(path) for path in client.ensure("instance", [5, 12], channels=[0], timeout=60, progress=False)]
    assert paths == [lab.storage / "instance" / f"crop_{crop}.ch00.h5" for crop in (5, 12)]
    for path in paths:
        info = path.stat()
        assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (*OWNER, 0o664)
        assert (path.parent.stat().st_uid, stat.S_IMODE(path.parent.stat().st_mode)) == (OWNER[0], 0o775)
    with lab.client("reader") as http:
        files = [http.get(f"/v1/crops/instance/{crop}").raise_for_status().json()["files"][0] for crop in (5, 12)]
    assert [file["path"] for file in files] == [f"{LAB_PATH}/instance/{path.name}" for path in paths]
    assert [file["sha256"] for file in files] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_a_machine_without_the_mount_downloads(lab: Stack, tmp_path: Path) -> None:
    with PrismClient(url=lab.url, token=lab.tokens["requester"], downloads=tmp_path) as client:
        (path,) = client.ensure("instance", [5], channels=[0], timeout=60, progress=False)
    assert Path(path).is_relative_to(tmp_path)
    assert Path(path).read_bytes() == (lab.storage / "instance" / "crop_5.ch00.h5").read_bytes()


def test_nobody_is_served_without_a_token(lab: Stack) -> None:
    body = {"split": "instance", "crops": [0]}
    with lab.client() as http:
        assert http.get("/healthz").status_code == 200
        for path in ("/v1/crops", "/v1/status", "/metrics", "/v1/crops/instance/5/file"):
            assert http.get(path).status_code == 401, path
        assert http.post("/v1/jobs", json=body).status_code == 401
        wrong = {"Authorization": "Bearer prism_" + "x" * 43}
        assert http.post("/v1/jobs", json=body, headers=wrong).status_code == 401
    with lab.client("reader") as http:
        assert http.post("/v1/jobs", json=body).status_code == 403
        assert "prismcache_disk_bytes" in http.get("/metrics").raise_for_status().text


def test_a_new_token_is_let_in_while_the_service_runs(lab: Stack) -> None:
    token = lab.create_token("bob", "reader")
    headers = {"Authorization": f"Bearer {token}"}
    with lab.client() as http:
        eventually(lambda: http.get("/v1/status", headers=headers).status_code == 200, "bob is let in")


def test_the_job_completes_although_the_service_is_killed_twice(lab: Stack) -> None:
    with lab.client("requester") as http:
        body = {"split": "instance", "crops": [0, 1, 2, 13], "priority": 0}
        made = Job.model_validate(http.post("/v1/jobs", json=body).raise_for_status().json())
        eventually(lambda: job(http, made.id).crops[0].state is State.RUNNING, "the job runs")
        container = lab.container("prismcache")
        lab.engine.docker("exec", container, "python3", "-c", KILL)
        eventually(lambda: lab.inspect(container, "{{.RestartCount}}") == "1", "the engine restarts it")
        lab.wait_until_ready()
        assert not job(http, made.id).state.is_final, "killed in the middle"
        lab.engine.docker("kill", container)
        with pytest.raises(httpx2.TransportError):
            http.get("/healthz")
        lab.compose("up", "-d", "--no-build", *lab.services)
        lab.wait_until_ready()
        assert not job(http, made.id).state.is_final, "killed in the middle"
        over = ended(http, made.id)
    assert (over.id, over.state) == (made.id, State.DONE)
    for crop in over.crops:
        assert crop.file is not None
        path = lab.storage / Path(crop.file.path).relative_to(LAB_PATH)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == crop.file.sha256
    eventually(lambda: not list(lab.storage.glob("*/.*.tmp")), "nothing unfinished is left")


def test_a_product_is_made_in_the_container_and_lies_beside_its_crop(lab: Stack) -> None:
    with PrismClient(url=lab.url, token=lab.tokens["requester"], root=lab.storage) as client:
        (path,) = client.ensure("instance", 13, product="avg_barcodes", timeout=60, progress=False)
        (facts,) = client.ensure("instance", 13, product="facts", timeout=60, progress=False)
    assert path == str(lab.storage / "instance" / "crop_13.avg_barcodes.h5")
    with h5py.File(path) as file:
        assert len(file["avg_barcodes"]) == len(json.loads(Path(facts).read_text())["channels"])


def test_nothing_in_the_containers_can_write_outside_its_volumes(lab: Stack) -> None:
    for service, volumes in {"prismcache": {"/cache", "/state", "/tmp"}, "s3": set[str]()}.items():
        container = lab.container(service)
        assert lab.writable(container) == volumes, service
        status = dict(line.split(":\t", 1) for line in lab.execute(container, STATUS).splitlines() if ":\t" in line)
        assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh")} == {0}
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split()[0] != "0"
        assert lab.inspect(container, "{{.HostConfig.ReadonlyRootfs}}") == "true"
        assert int(lab.inspect(container, "{{.HostConfig.Memory}}")) > 0
        assert int(lab.inspect(container, "{{.HostConfig.PidsLimit}}")) > 0


def test_the_image_holds_no_build_tools_and_says_its_version(lab: Stack) -> None:
    found = lab.execute(lab.container("prismcache"), f"import shutil; print(*map(shutil.which, {TOOLS}))")
    assert set(found.split()) == {"None"}
    version = '{{index .Config.Labels "org.opencontainers.image.version"}}'
    told = lab.compose("run", "--rm", "-T", "--no-deps", "prismcache", "--version", both=False).split()[-1]
    assert lab.inspect(lab.container("prismcache"), version) == told


def test_it_counts_as_healthy_and_a_container_that_cannot_work_does_not(lab: Stack) -> None:
    container = lab.container("prismcache")
    eventually(lambda: lab.inspect(container, "{{.State.Health.Status}}") == "healthy", "healthy", deadline=60)
    lab.engine.docker("exec", container, "python3", "/opt/healthcheck.py")
    elsewhere = ("exec", "--env", "PRISMCACHE_PORT=9", container, "python3", "/opt/healthcheck.py")
    said = lab.engine.docker(*elsewhere, check=False)
    assert "no response" in said


def test_it_ends_within_its_five_seconds_and_keeps_everything_through_an_upgrade(lab: Stack) -> None:
    container = lab.container("prismcache")
    began = time.monotonic()
    lab.engine.docker("stop", "--time", "15", container)
    assert time.monotonic() - began < 7
    assert lab.inspect(container, "{{.State.ExitCode}}") == "0"
    lab.start("--force-recreate")
    assert lab.container("prismcache") != container
    with lab.client("requester") as http:
        done = http.post("/v1/jobs", json={"split": "instance", "crops": [0, 13]}).raise_for_status()
    assert (done.status_code, done.json()["state"]) == (200, "done"), "token and files are still known"
