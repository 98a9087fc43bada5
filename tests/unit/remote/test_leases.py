"""A retention lease lives as long as its client or the process; an error with a lease never reaches the caller."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from prismcache.config import Settings
from prismcache.remote import leases as _leases
from prismcache.remote.leases import LeaseKeeper, keeper
from prismcache.schema import Lease, LeaseRequest, Split
from tests.support.fake_service import FakeService
from tests.support.processes import eventually

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def service():
    with FakeService() as running:
        running.lab.lease_seconds = 0.3  # renewed every 50 ms
        yield running


@pytest.fixture
def settings(service) -> Settings:
    return Settings.load({}, url=service.url)


@pytest.fixture
def leases():
    found = LeaseKeeper()
    yield found
    found.close()


def take(service: FakeService, *crops: int) -> Lease:
    return service.lab.lease(LeaseRequest(split=Split.INSTANCE, crops=crops))


def leased(service: FakeService) -> set[int]:
    return {crop for lease in service.lab.leases.values() for crop in lease.crops}


def test_a_lease_is_renewed_and_released(service, settings, leases):
    lease, owner = take(service, 0), object()
    leases.keep(settings, lease, owner)
    eventually(lambda: service.requests.count(f"PUT /v1/leases/{lease.id}") >= 3, "the lease is renewed")
    leases.release(owner)
    eventually(lambda: not service.lab.leases, "the lease is released")
    assert leases.held() == []


def test_a_lease_that_ran_out_is_taken_again(service, settings, leases):
    owner = object()
    leases.keep(settings, take(service, 0, 1), owner)
    service.lab.leases.clear()
    eventually(lambda: leased(service) == {0, 1}, "there is a lease again")
    leases.release(owner, [("instance", 0)])
    service.lab.leases.clear()
    eventually(lambda: leased(service) == {1}, "there is a lease on what is still wanted")


def test_a_lease_goes_when_its_last_crop_goes(service, settings, leases):
    owner = object()
    leases.keep(settings, take(service, 0, 1), owner)
    leases.release(owner, [("instance", 0), ("semantic", 1)])
    assert leased(service) == {0, 1}
    leases.release(owner, [("instance", 1)])
    eventually(lambda: not service.lab.leases, "the lease is released")


def test_releasing_one_owners_lease_leaves_the_others(service, settings, leases):
    one, other = object(), object()
    leases.keep(settings, take(service, 0), one)
    leases.keep(settings, take(service, 1), other)
    leases.release(one)
    eventually(lambda: leased(service) == {1}, "one lease is released")


def test_a_lease_that_was_handed_over_stays_until_the_end(service, settings, leases):
    owner = object()
    leases.keep(settings, take(service, 0), owner)
    leases.hand_over(owner)
    leases.release(owner)
    assert len(leases.held()) == 1
    leases.close()
    assert leased(service) == set()


def test_a_renewal_that_fails_is_tried_again(service, settings, leases):
    replies = iter([503, 503, 200, 500])

    def away(request: Request) -> Response | None:
        status = next(replies, None) if request.method == "PUT" else None
        return None if status is None else Response("<html>", status)

    service.fault = away
    lease = take(service, 0)
    leases.keep(settings, lease, object())
    eventually(lambda: f"PUT /v1/leases/{lease.id}" in service.requests, "the lease is renewed after all")
    assert next(replies, None) is None
    assert len(leases.held()) == 1


def test_a_renewal_sends_the_token(leases):
    with FakeService(token="prism_x") as service:
        service.lab.lease_seconds = 0.3
        lease = take(service, 0)
        leases.keep(Settings.load({}, url=service.url, token="prism_x"), lease, object())
        renewed = lease.model_copy(update={"seconds": 200.0})
        service.lab.leases[lease.id] = renewed
        eventually(lambda: leases.held() == [renewed], "the lease is renewed")


# ---- clients


def test_a_client_holds_leases_until_it_is_closed(service):
    with service.client() as client:
        client.ensure("instance", [0, 2], progress=False)
        assert leased(service) == {0, 2}
        client.ensure("instance", [0, 2], progress=False)
        assert service.requests.count("POST /v1/leases") == 2  # one for each crop as it became ready
    eventually(lambda: not service.lab.leases, "the leases are released")


def test_a_client_that_is_dropped_leaves_its_leases_to_the_process(service):
    before = len(keeper().held())
    service.client().ensure("instance", 0, progress=False)
    gc.collect()
    eventually(lambda: len(keeper().held()) == before + 1, "the process has taken the lease over")
    assert leased(service) == {0}
    count = len(service.requests)
    eventually(lambda: len(service.requests) > count + 2, "the lease is renewed")


def test_a_downloaded_crop_needs_no_lease(service):
    with service.client(mounted=False) as client:
        client.ensure("instance", 0, progress=False)
        eventually(lambda: not service.lab.leases, "the lease is released")


def test_a_service_without_leases_serves_all_the_same(service):
    service.fault = lambda request: Response("x", 500) if "leases" in request.url.path else None
    with service.client() as client:
        for _ in range(2):
            service.cache("instance", 0)
            assert len(client.ensure("instance", 0, progress=False)) == 1
    assert not service.lab.leases


def test_a_lease_that_was_given_up_is_taken_again_when_the_crop_is_wanted_again(service):
    with service.client(mounted=False) as client:
        for count in (1, 2):
            client.ensure("instance", 0, progress=False)
            assert service.requests.count("POST /v1/leases") == count


PROGRAM = """
import sys
from tests.support.fake_service import FakeService
service = FakeService().__enter__()
paths = service.client().ensure("instance", 0, progress=False)
import gc; gc.collect()
print(len(service.lab.leases))
import atexit
from prismcache.remote import leases as _leases
atexit._run_exitfuncs()
print(len(service.lab.leases))
"""


def test_the_end_of_the_process_releases_them():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["1", "0"]
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_leaves_its_parents_leases_alone(service):
    with service.client() as client:
        client.ensure("instance", 0, progress=False)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        worker = context.Process(target=_in_worker, args=(client, theirs))
        worker.start()
        assert ours.poll(30)
        assert ours.recv() == (True, 0, 1)
        worker.join(30)
        assert worker.exitcode == 0
        assert leased(service) == {0}
        assert len(client.ensure("instance", 0, progress=False)) == 1


def _in_worker(client, pipe) -> None:
    parents = next(iter(_leases._keepers.values()))
    parents.close()
    before = len(keeper().held())
    paths = client.ensure("instance", 0, progress=False)
    pipe.send((keeper() is not parents, before, len(paths)))
    client.close()
