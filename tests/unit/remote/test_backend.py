"""The remote backend: outages, forgotten jobs, cached crops without a service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx2
import pytest

from prismcache.backend import load_backend
from prismcache.cached_info import known_job
from prismcache.client.aio import AsyncPrismClient
from prismcache.config import Settings
from prismcache.errors import (
    EnsureTimeoutError,
    JobCancelledError,
    ServiceBusyError,
    ServiceUnreachableError,
    UnknownJobError,
)
from prismcache.layout import FileName
from prismcache.remote import RemoteBackend
from prismcache.remote.retry import Patience
from prismcache.schema import JobRequest, Split, State
from tests.support.fake_service import FakeService

pytestmark = pytest.mark.anyio

QUICK = Patience(silence=0.3, whole=0.3, base=0.001, cap=0.01)
Fault = Callable[[httpx2.Request], httpx2.Response | None]


class Faulty(httpx2.AsyncBaseTransport):
    """The service, with a fault in between that may respond, raise or do something on the way."""

    def __init__(self, service: FakeService, fault: Fault) -> None:
        self._service = service
        self.fault = fault

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.fault(request) or await self._service.transport.handle_async_request(request)


def down(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("refused")


@pytest.fixture
def service():
    with FakeService() as running:
        yield running


def backend(service: FakeService, fault: Fault = lambda request: None, **options) -> RemoteBackend:
    settings = Settings.load({}, **service.settings(**options))
    return RemoteBackend(settings, transport=Faulty(service, fault), patience=QUICK, grace=())


def ensure(service: FakeService, fault: Fault, *crops: int, mounted: bool = True, **options) -> list[str]:
    async def main() -> list[str]:
        found = backend(service, fault, mounted=mounted)
        try:
            client = AsyncPrismClient(settings=Settings.load({}), backend=found)
            return await client.ensure("instance", list(crops) or None, progress=False, **options)
        finally:
            await found.aclose()

    return asyncio.run(main())


def counting(fault: Fault) -> tuple[Fault, list[str]]:
    seen: list[str] = []

    def count(request: httpx2.Request) -> httpx2.Response | None:
        seen.append(request.method)
        return fault(request)

    return count, seen


async def test_a_url_loads_the_remote_backend(service):
    found = load_backend(Settings.load({}, url=service.url))
    assert isinstance(found, RemoteBackend)
    await found.aclose()


def test_a_service_that_is_down_is_a_typed_error_in_time(service):
    fault, seen = counting(down)
    began = time.monotonic()
    with pytest.raises(ServiceUnreachableError, match="does not respond: refused"):
        ensure(service, fault, 0)
    assert time.monotonic() - began < 5
    assert len(seen) > 3


async def test_the_callers_deadline_wins(service, monkeypatch):
    monkeypatch.setattr("prismcache.client.drive.OVERRUN", 0.0)

    began = time.monotonic()
    settings = Settings.load({}, **service.settings())
    found = RemoteBackend(settings, transport=Faulty(service, down), patience=Patience())
    client = AsyncPrismClient(settings=settings, backend=found)
    with pytest.raises(EnsureTimeoutError):
        await client.ensure("instance", 0, timeout=0.05, progress=False)
    await found.aclose()
    assert time.monotonic() - began < 5


def test_an_outage_in_mid_job_is_ridden_out(service):
    calls = 0

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        nonlocal calls
        calls += 1
        if calls % 3 == 2:
            raise httpx2.ReadError("connection reset")
        return httpx2.Response(502) if calls % 3 == 0 else None

    assert len(ensure(service, fault, 0, 1, 2)) == 3


def test_a_request_to_a_busy_service_is_sent_again(service):
    busy = ServiceBusyError("too many jobs").to_problem()
    replies = [httpx2.Response(429, content=busy.model_dump_json(), headers={"Retry-After": "0"}) for _ in range(3)]
    assert len(ensure(service, lambda request: replies.pop() if replies else None, 0)) == 1
    assert replies == []


def test_leases_on_the_rest_outlive_a_removal(service):
    async def main() -> set[tuple[str, int]]:
        found = backend(service)
        client = AsyncPrismClient(settings=Settings.load({}), backend=found)
        paths = await client.ensure("instance", [0, 1], progress=False)
        await client.ensure("semantic", 0, progress=False)
        removed = await client.remove("instance", 0)
        assert [file.path for file in removed] == paths[:1]
        leased = {(lease.split.value, crop) for lease in service.lab.leases.values() for crop in lease.crops}
        await found.aclose()
        return leased

    for crop in (0, 1):
        service.cache("instance", crop)  # so that one lease is on both
    assert asyncio.run(main()) == {("instance", 1), ("semantic", 0)}


def test_a_submission_after_a_lost_response_joins_the_same_job(service):
    lost: list[str] = []

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.method == "POST" and not lost and "jobs" in request.url.path:
            asked = JobRequest.model_validate_json(request.content)
            lost.append(service.lab.submit(asked, request.headers["Prismcache-Client"]).id)
            raise httpx2.ReadError("connection reset")
        return None

    assert len(ensure(service, fault, 0)) == 1
    assert [job.id for job in service.lab.all_jobs()] == lost


def test_a_forgotten_job_is_submitted_again_once(service):
    forgotten = 0

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        nonlocal forgotten
        if request.method == "GET" and forgotten < limit:
            service.forget_jobs()
            forgotten += 1
        return None

    limit = 1
    assert len(ensure(service, fault, 0, 1)) == 2
    assert service.requests.count("POST /v1/jobs") == 2
    limit = 9
    with pytest.raises(UnknownJobError):
        ensure(service, fault, 2)


def test_crops_on_the_mount_are_found_without_a_service(service):
    service.cache("instance", 0)
    service.cache("instance", 1)
    fault, seen = counting(down)
    assert ensure(service, fault, 1, 0, channels=[1]) == [
        str(service.root / "instance" / f"crop_{crop}.h5") for crop in (1, 0)
    ]
    assert seen == ["POST"]


@pytest.mark.parametrize("case", ["not cached", "no mount", "all", "no manifest", "more channels", "strict"])
def test_without_a_service_an_unknown_crop_is_an_error(service, case):
    path = service.cache("instance", 0)
    manifest = service.root / ".prismcache" / "manifests" / "instance" / "crop_0.json"
    if case == "no manifest":
        manifest.write_text("{")
    if case == "strict":
        manifest.write_text(manifest.read_text().replace('"missing_chunks":0', '"missing_chunks":1'))
    crops = {"not cached": (0, 1), "all": ()}.get(case, (0,))
    options = {"more channels": {"channels": [0, 7]}, "strict": {"strict": True}}.get(case, {})
    with pytest.raises(ServiceUnreachableError):
        ensure(service, down, *crops, mounted=case != "no mount", **options)
    assert path.exists()


def test_a_known_subset_serves_its_channels(service):
    service.lab.make(Split.INSTANCE, FileName(0, (0, 2)))
    request = JobRequest(split=Split.INSTANCE, crops=(0,), channels=(0, 2))
    job = known_job(request, service.root)
    assert job is not None
    assert (job.state, job.crops[0].file) == (State.DONE, service.lab.find_file(Split.INSTANCE, FileName(0, (0, 2))))
    assert known_job(request.model_copy(update={"channels": (0,)}), service.root) is None


def test_a_known_file_that_was_damaged_is_not_returned(service):
    path = service.cache("instance", 0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ServiceUnreachableError):
        ensure(service, down, 0)


async def test_a_cancelled_ensure_cancels_its_job(service):
    service.hold()

    polling = asyncio.Event()
    found = backend(service, lambda request: polling.set() if request.method == "GET" else None)
    client = AsyncPrismClient(settings=Settings.load({}), backend=found)
    call = asyncio.create_task(client.ensure("instance", 0, progress=False))
    await polling.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await found.aclose()
    assert service.lab.all_jobs()[0].state is State.CANCELLED


async def test_a_repeated_submission_names_the_same_client(service):
    lost = False

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        nonlocal lost
        if request.method == "POST" and not lost:
            lost = True
            service.lab.submit(JobRequest(split=Split.INSTANCE, crops=(0,)), request.headers["Prismcache-Client"])
            raise httpx2.ReadError("reset")
        return None

    service.hold()
    found = backend(service, fault)
    await found.cancel(await found.submit(JobRequest(split=Split.INSTANCE, crops=(0,))))
    await found.aclose()
    assert [job.state for job in service.lab.all_jobs()] == [State.CANCELLED]


async def test_two_calls_of_one_client_outlive_a_forgotten_job(service):
    """Each call submits the request again and gets the same new job."""
    service.hold()

    found = backend(service)
    request = JobRequest(split=Split.INSTANCE, crops=(0,))
    jobs = [await found.submit(request) for _ in range(2)]
    service.forget_jobs()
    newer = [await found.wait(job, 0.01) for job in jobs]
    assert len({job.id for job in newer}) == 1
    await found.cancel(newer[0])
    assert not (await found.wait(newer[1], 0.01)).state.is_final
    await found.aclose()


def test_a_job_that_another_client_cancels_is_an_error(service):
    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.method == "GET":
            service.lab.cancel(service.lab.all_jobs()[0].id)
        return None

    with pytest.raises(JobCancelledError):
        ensure(service, fault, 0)


def test_closing_cancels_a_job_that_outlived_its_deadline(service):
    service.hold()
    with service.client() as client, pytest.raises(EnsureTimeoutError):
        client.ensure("instance", 0, timeout=0.05, progress=False)
    assert service.lab.all_jobs()[0].state is State.CANCELLED


async def test_closing_without_a_service_is_quick_and_quiet(service):
    service.hold()

    began = time.monotonic()
    found = backend(service)
    await found.submit(JobRequest(split=Split.INSTANCE, crops=(0,)))
    found._api.connection._client._transport._transport.fault = down
    await found.aclose()
    assert time.monotonic() - began < 5


def test_settings_know_whether_a_root_was_given():
    assert Settings.load({}).mount is None
    assert Settings.load({"PRISMCACHE_ROOT": "/lab/prism"}).mount is not None
    given = AsyncPrismClient(settings=Settings.load({}, url="http://lab"), token="x").settings
    assert given.mount is None
    assert AsyncPrismClient("/lab/prism", settings=given).settings.mount is not None


def asking(service: FakeService, fault: Fault, scene, **options):
    async def main():
        found = backend(service, fault, **options)
        try:
            return await scene(found)
        finally:
            await found.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize("mounted", [True, False])
def test_without_a_service_cached_crops_are_listed_from_their_files(service, caplog, mounted):
    [path] = ensure(service, lambda request: None, 1, mounted=mounted)
    [info] = asking(service, down, lambda found: found.catalog(), mounted=mounted)
    assert (info.split, info.crop, [file.path for file in info.files]) == (Split.INSTANCE, 1, [path])
    assert (info.raw_shape, info.labels_shape, info.voxel_size) == ((3, 8, 24, 24), (8, 24, 24), (400, 168, 168))
    assert "these are the crops that this machine has" in caplog.text
    assert asking(service, down, lambda found: found.describe(Split.INSTANCE, 1), mounted=mounted) == info
    with pytest.raises(ServiceUnreachableError):
        asking(service, down, lambda found: found.describe(Split.INSTANCE, 2), mounted=mounted)


def test_a_described_file_has_its_path_on_this_machine_or_none(service, tmp_path):
    def paths(**options) -> list[str]:
        info = asking(service, lambda request: None, lambda found: found.describe(Split.INSTANCE, 0), **options)
        return [file.path for file in info.files]

    cached = service.cache("instance", 0)
    assert paths() == [str(cached)]
    assert paths(mounted=False) == ["on the service"]
    assert paths(mounted=False) != [downloaded := ensure(service, lambda request: None, 0, mounted=False)[0]]
    assert paths(mounted=False) == [downloaded]
    assert paths(root=tmp_path) == ["on the service"]
