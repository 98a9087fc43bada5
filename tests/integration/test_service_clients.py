"""A real service and many who want the same: one making, one file; who leaves, and who cancels."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prismcache.client.aio import AsyncPrismClient
from prismcache.schema import State
from tests.support.cache_root import Lab, many_objects_spec, object_key, published, tiny_spec, unfinished
from tests.support.faults import Stall
from tests.support.oracle import assert_crop_file_equals_oracle
from tests.support.processes import eventually, workers_of
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk, are_right

CLIENTS = 200
SPEC = many_objects_spec(0)
OTHER = tiny_spec(1)
SPECS = [SPEC, OTHER]


@pytest.fixture
def service(lab: Lab, tmp_path: Path) -> Iterator[Service]:
    config = service_config(lab.settings(workers=2, s3_concurrency=8), tmp_path / "state", min_free_bytes=0)
    with Service(config) as running:
        yield running


@pytest.fixture
def desk(service: Service, lab: Lab) -> Iterator[Desk]:
    """A connection; the service has read the catalog, and what was fetched for it is forgotten."""
    with Desk(service) as open_desk:
        open_desk.read_catalog()
        lab.proxy.clear()
        yield open_desk


def chunk_is_asked_for(lab: Lab) -> None:
    """Crop 0 is in the making: crops begin in turn, and the other one may be first."""
    chunk = object_key(SPEC, "labels/0")
    lab.proxy.wait_until(lambda proxy: any(seen.key.startswith(chunk) for seen in proxy.requests), timeout=30)


def test_200_clients_get_one_path_and_every_object_is_fetched_once(service: Service, desk: Desk, lab: Lab) -> None:
    # The clients live in one process: 200 interpreters on two cores would take their time to start, one after another,
    # and so would hardly ask at once. Each has a connection pool, a submission and a long poll of its own, as in a
    # process of its own; the service and the workers are other processes.
    async def main() -> list[str]:
        clients = [AsyncPrismClient(lab.root, url=service.url) for _ in range(CLIENTS)]
        try:
            found = await asyncio.gather(*(client.ensure("instance", 0, progress=False) for client in clients))
        finally:
            await asyncio.gather(*(client.aclose() for client in clients))
        return [path for paths in found for path in paths]

    stall = Stall()
    lab.proxy.add(stall, key="labels/0.0.0", times=1)

    async def released() -> list[str]:
        running = asyncio.create_task(main())
        await asyncio.to_thread(chunk_is_asked_for, lab)
        await asyncio.to_thread(_until_all_asked, desk)
        stall.release()
        return await running

    paths = asyncio.run(released())
    assert paths == [str(lab.cached(SPEC))] * CLIENTS
    fetched = lab.fetched(SPEC)
    assert len(fetched) > 100
    assert set(fetched.values()) == {1}
    assert_crop_file_equals_oracle(lab.cached(SPEC), lab.source(SPEC))
    assert "Traceback" not in service.log


def _until_all_asked(desk: Desk) -> None:
    eventually(lambda: _figure(desk, "prismcache_crop_misses_total") >= CLIENTS, "every client has asked")


def _figure(desk: Desk, name: str) -> float:
    lines = [line for line in desk.http.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(lines[0].split()[-1]) if lines else 0


def test_all_workers_together_keep_below_the_bandwidth_limit(lab: Lab, tmp_path: Path) -> None:
    limit = 100_000
    config = service_config(lab.settings(workers=2, s3_bandwidth_limit=limit), tmp_path / "limited", min_free_bytes=0)
    with Service(config) as service, Desk(service) as desk:
        began = time.monotonic()
        assert are_right(desk.ended(desk.submit(0, 1).id))
        seconds = time.monotonic() - began
        fetched = _figure(desk, "prismcache_fetched_bytes_total")

    assert fetched > 3 * limit
    assert fetched / limit - 1 <= seconds  # after a second's worth at once


def test_a_job_goes_on_when_its_client_hangs_up(service: Service, desk: Desk, lab: Lab) -> None:
    stall = Stall()
    lab.proxy.add(stall, key="labels/0.0.0")
    with Desk(service) as other:
        job = other.submit(0)
        with other.http.stream("GET", f"/v1/jobs/{job.id}/events") as stream:
            next(stream.iter_bytes())
    chunk_is_asked_for(lab)
    stall.release()
    assert are_right(desk.ended(job.id))


def _begun(service: Service, client: str, priority: int) -> socket.socket:
    """Return a connection on which `client` has sent a request for all crops."""
    body = f'{{"split":"instance","priority":{priority}}}'
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), 20)
    connection.sendall(f"POST /v1/jobs HTTP/1.1\r\n{head}\r\nPrismcache-Client: {client}\r\n\r\n{body}".encode())
    return connection


def test_a_wish_ends_with_a_client_that_leaves_before_the_response(service: Service, lab: Lab) -> None:
    stall = Stall()
    lab.proxy.add(stall, listing=True)  # a request for all crops is accepted once the bucket has been listed
    with Desk(service) as desk, _begun(service, "asks-again", 1), _begun(service, "stays", 3) as stays:
        lab.proxy.wait_until(lambda proxy: bool(proxy.requests))
        with _begun(service, "asks-again", 1), _begun(service, "leaves", 2):
            pass
        again = _begun(service, "asks-again", 1)
        time.sleep(0.2)  # for the service to see the ends of the connections; there is no sign of it from outside
        stall.release()
        with again:
            assert [connection.recv(12) for connection in (again, stays)] == [b"HTTP/1.1 202"] * 2

        def cancelled() -> set[int]:
            jobs = desk.http.get("/v1/jobs").raise_for_status().json()["jobs"]
            return {job["priority"] for job in jobs if job["state"] == State.CANCELLED}

        eventually(lambda: 2 in cancelled(), "the wish of who left has ended")
        assert cancelled() == {2}


def test_cancelling_stops_the_worker_within_a_second_and_leaves_nothing(service: Service, desk: Desk, lab: Lab) -> None:
    stall = Stall()
    lab.proxy.add(stall, key="labels/0.0.0")
    job = desk.submit(0)
    chunk_is_asked_for(lab)
    [worker] = workers_of(service.pid)
    began = time.monotonic()
    assert desk.cancel(job.id).state is State.CANCELLED
    eventually(lambda: not worker.is_running, "the worker ends", 1)
    assert time.monotonic() - began < 1
    lab.proxy.wait_until(lambda proxy: proxy.in_flight == 0)
    assert published(lab.root) == unfinished(lab.root) == []
    status = desk.status()
    assert (status.jobs_running, status.crops_running, status.usage.reserved_bytes) == (0, 0, 0)
    stall.release()
    lab.proxy.clear()
    assert are_right(desk.ended(desk.submit(0).id))


def test_cancelling_leaves_alone_what_another_job_wants(service: Service, desk: Desk, lab: Lab) -> None:
    stall = Stall()
    lab.proxy.add(stall, key="labels/0.0.0")
    mine, theirs = desk.submit(0, 1), desk.submit(0)
    assert mine.id != theirs.id
    chunk_is_asked_for(lab)
    workers = workers_of(service.pid)
    assert desk.cancel(mine.id).state is State.CANCELLED
    stall.release()
    assert are_right(desk.ended(theirs.id))
    assert any(worker.is_running for worker in workers)
    assert set(lab.fetched(SPEC).values()) == {1}
