"""The remote client against a real service: mounts of all kinds, restarts, tokens, leases, events."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prismcache import ForbiddenError, PrismClient, PrismError, ServiceUnreachableError, UnauthorizedError
from prismcache.client.aio import AsyncPrismClient
from prismcache.config import Settings
from prismcache.remote import RemoteBackend
from prismcache.remote.api import ServiceApi
from prismcache.remote.http import Connection
from prismcache.remote.retry import Patience
from prismcache.schema import CropDownload, CropFile, Job, JobEvent, JobRequest, Split, State
from prismcache_service.cache import CropCache, CropName
from tests.support.cache_root import Lab, tiny_spec
from tests.support.faults import Stall
from tests.support.labs import running_lab
from tests.support.processes import eventually
from tests.support.service import Service, service_config
from tests.support.stored_crops import store_crop

CROPS = (0, 1, 2)


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), [tiny_spec(crop) for crop in CROPS]) as running:
        yield running


@pytest.fixture(scope="module")
def service(lab, tmp_path_factory) -> Iterator[Service]:
    """One service for all tests that let it run."""
    with Service(service_config(lab.settings(), tmp_path_factory.mktemp("state"))) as running:
        yield running


@pytest.fixture
def root(service, lab) -> Iterator[Path]:
    """The service's cache folder, with nothing in it."""
    lab.proxy.clear()
    with service.client() as http:
        # Clients that were closed let go of their leases in their own time.
        eventually(
            lambda: all(http.delete(f"/v1/crops/instance/{crop}").is_success for crop in CROPS), "no crop is leased"
        )
    yield lab.root
    lab.proxy.clear()


@pytest.fixture
def client(service, root, tmp_path) -> Callable[..., PrismClient]:
    """A client of the service; without a mount unless one is given."""
    return lambda **options: PrismClient(url=service.url, downloads=tmp_path / "downloads", **options)


@pytest.fixture
def own_service(lab, tmp_path) -> Iterator[Service]:
    """A service to be ended and started again."""
    lab.proxy.clear()
    with Service(service_config(lab.settings(root=tmp_path / "root"), tmp_path / "state")) as running:
        yield running
    lab.proxy.clear()


def is_right(path: str, file: CropFile) -> bool:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() == file.sha256


def published(service: Service, crop: int) -> CropFile:
    """What the service says of a crop's file."""
    with service.client() as http:
        return CropFile.model_validate(http.get(f"/v1/crops/instance/{crop}").json()["files"][0])


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_a_mount_under_another_path(service, client, root, tmp_path):
    (tmp_path / "mnt").symlink_to(root)
    with client(root=tmp_path / "mnt") as one:
        paths = one.ensure("instance", [2, 0], progress=False)
    assert paths == [str(tmp_path / "mnt" / "instance" / f"crop_{crop}.h5") for crop in (2, 0)]
    assert is_right(paths[1], published(service, 0))
    assert list((tmp_path / "downloads").glob("*.*/**/*.h5")) == []


def test_no_mount(service, client, tmp_path):
    with client() as one:
        paths = one.ensure("instance", progress=False)
        stamps = [Path(path).stat().st_mtime_ns for path in paths]
        assert one.ensure("instance", progress=False) == paths
    assert [Path(path).is_relative_to(tmp_path / "downloads") for path in paths] == [True] * 3
    assert all(is_right(path, published(service, crop)) for crop, path in enumerate(paths))
    assert [Path(path).stat().st_mtime_ns for path in paths] == stamps
    with client() as one:
        [subset] = one.ensure("instance", 1, channels=[0, 2], progress=False)
    assert subset == paths[1]


def test_a_download_is_seen(service, client, root, monkeypatch, capsys):
    monkeypatch.setattr("prismcache.client.drive.TICK", 0.001)
    file = store_crop(CropCache(root), CropName(Split.INSTANCE, 100), 20_000_000)
    seen: list[CropDownload] = []
    with client() as one:
        [path] = one.ensure(
            "instance", 100, progress=lambda job: seen.extend(c for c in job.crops if isinstance(c, CropDownload))
        )
        assert is_right(path, file)
        assert {each.bytes_total for each in seen} == {file.size}
        assert any(0 < each.bytes_done < file.size for each in seen)
        assert [each.state for each in seen][-2:] == [State.RUNNING, State.DONE]
        Path(path).unlink()
        one.ensure("instance", 100)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "instance/100: downloading 20.0 MB"
    assert re.fullmatch(r"instance/100: downloaded in .* s, 20.0 MB at .*/s", said[-1])
    with service.client() as http:
        http.delete("/v1/crops/instance/100").raise_for_status()


def test_a_subset_is_downloaded_by_its_channels(service, client):
    with client() as one:
        [file] = one.ensure_files("instance", 0, channels=[0, 2], progress=False)
    assert Path(file.path).name == "crop_0.ch00_02.h5"
    assert is_right(file.path, file)


@pytest.mark.parametrize("kind", ["stale", "truncated", "foreign", "link out"])
def test_a_mount_that_shows_something_else(service, client, root, tmp_path, kind):
    with client(root=root) as one:
        [right] = one.ensure("instance", 0, progress=False)
    shown = tmp_path / "mnt" / "instance" / "crop_0.h5"
    shown.parent.mkdir(parents=True)
    content = Path(right).read_bytes()
    if kind == "link out":
        shown.symlink_to(right)
    else:
        wrong = {"stale": content[:-1] + b"?", "truncated": content[:-9], "foreign": b"?" * len(content)}
        shown.write_bytes(wrong[kind])
    with client(root=tmp_path / "mnt") as one:
        [path] = one.ensure("instance", 0, progress=False)
    assert Path(path).is_relative_to(tmp_path / "downloads")
    assert Path(path).read_bytes() == content


def test_a_copy_of_the_root_is_as_good(service, client, root, tmp_path):
    with client(root=root) as one:
        one.ensure("instance", 0, progress=False)
    shutil.copytree(root, tmp_path / "copy")
    with client(root=tmp_path / "copy") as one:
        assert one.ensure("instance", 0, progress=False) == [str(tmp_path / "copy" / "instance" / "crop_0.h5")]


@pytest.mark.parametrize("end", ["restart", "kill"])
def test_a_restart_in_mid_job_is_ridden_out(own_service, lab, tmp_path, end):
    root = tmp_path / "root"
    rule = lab.proxy.add(stall := Stall(), key="crop_1.zarr/raw/")
    found: list[Any] = []

    def train() -> None:
        with PrismClient(root, url=own_service.url) as one:
            try:
                found.append(one.ensure("instance", [0, 1], progress=False, timeout=60))
            except PrismError as error:
                found.append(error)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    eventually(lambda: rule.hits > 0, "crop 1 is being fetched")
    if end == "kill":
        own_service.kill()
    else:
        own_service.terminate()
    stall.release()
    lab.proxy.remove(rule)
    own_service.start()
    thread.join(90)
    assert found == [[str(root / "instance" / f"crop_{crop}.h5") for crop in (0, 1)]]


def test_a_service_that_is_down(own_service, tmp_path):
    settings = Settings.load({}, url=own_service.url, root=tmp_path / "root", downloads=tmp_path / "downloads")
    patience = Patience(silence=0.5, base=0.01, cap=0.05)

    async def ensure(*crops: int) -> list[str]:
        backend = RemoteBackend(settings, patience=patience, grace=())
        try:
            client = AsyncPrismClient(settings=settings, backend=backend)
            return await client.ensure("instance", crops, progress=False)
        finally:
            await backend.aclose()

    paths = asyncio.run(ensure(0))
    own_service.terminate()
    assert asyncio.run(ensure(0)) == paths
    began = time.monotonic()
    with pytest.raises(ServiceUnreachableError, match="does not respond"):
        asyncio.run(ensure(0, 1))
    assert 0.4 < time.monotonic() - began < 10


def test_leases_last_as_long_as_the_client(service, client, root):
    def leases() -> int:
        with service.client() as http:
            return int(http.get("/v1/crops/instance/0").json()["leases"])

    with client(root=root) as one:
        one.ensure("instance", 0, progress=False)
        assert leases() == 1
    eventually(lambda: leases() == 0, "the lease is released")


def test_tokens_and_roles(lab, tmp_path):
    lab.proxy.clear()
    root = tmp_path / "root"
    service = Service(service_config(lab.settings(root=root), tmp_path / "state"))
    token = service.create_token("anna", "requester")
    with service:
        with PrismClient(root, url=service.url, token=token) as client:
            assert len(client.ensure("instance", 0, progress=False)) == 1
            with pytest.raises(ForbiddenError):
                client.remove("instance", 0)
        with PrismClient(root, url=service.url) as client, pytest.raises(UnauthorizedError):
            client.ensure("instance", 0, progress=False)
        with PrismClient(url=service.url, token=token, downloads=tmp_path / "downloads") as client:
            [path] = client.ensure("instance", 0, progress=False)
        assert Path(path).is_relative_to(tmp_path / "downloads")
    assert token not in service.log


def test_events_go_on_after_a_restart(own_service, lab):
    rule = lab.proxy.add(stall := Stall(), key="crop_2.zarr/raw/")
    seen: list[Job | JobEvent] = []

    async def watch() -> None:
        settings = Settings.load({}, url=own_service.url)
        async with ServiceApi(Connection(settings, patience=Patience(silence=30, cap=0.2))) as api:
            job = await api.submit(JobRequest(split=Split.INSTANCE, crops=(2,)))
            async for message in api.events(job.id):
                seen.append(message)
                if len(seen) == 1:
                    await asyncio.to_thread(own_service.terminate)
                    stall.release()
                    lab.proxy.remove(rule)
                    await asyncio.to_thread(own_service.start)

    asyncio.run(watch())
    last = seen[-1]
    assert isinstance(last, Job)
    assert last.state is State.DONE
    numbers = [message.seq for message in seen if isinstance(message, JobEvent)]
    assert numbers == sorted(set(numbers))
