"""Every backend passes the same suite: embedded, in memory, and a real service in a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prismcache.backend import Backend, load_backend
from prismcache.config import Settings
from prismcache.schema import State
from prismcache.testing import InMemoryService
from tests.conformance.backend import PUBLISHED, BackendSuite, Stage
from tests.support.cache_root import Lab, tiny_spec
from tests.support.fake_service import FakeService
from tests.support.faults import Rule, Stall
from tests.support.labs import running_lab
from tests.support.processes import eventually
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk


@dataclass
class LabStage:
    """A real lab; crops are held up by a proxy that lets nothing of raw come through."""

    lab: Lab
    open_backend: Callable[[], Backend]
    rules: list[Rule] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.lab.root

    def backend(self) -> Backend:
        return self.open_backend()

    def hold(self) -> None:
        self.rules.append(self.lab.proxy.add(Stall(), key="raw/"))

    def resume(self) -> None:
        self.lab.proxy.clear()


@dataclass
class MemoryStage:
    """Crops without a bucket: in this process, or behind a service that tests use."""

    service: InMemoryService | FakeService

    @property
    def root(self) -> Path:
        return self.service.root

    def backend(self) -> Backend:
        return load_backend(Settings.load({}, **self.service.settings()))

    def hold(self) -> None:
        self.service.hold()

    def resume(self) -> None:
        self.service.resume()


@pytest.fixture(scope="module")
def module_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    specs = [tiny_spec(crop, split) for split, crop in PUBLISHED]
    with running_lab(tmp_path_factory.mktemp("backends"), specs) as lab:
        yield lab


class TestEmbedded(BackendSuite):
    @pytest.fixture
    def stage(self, module_lab, tmp_path) -> Iterator[Stage]:
        lab = dataclasses.replace(module_lab, root=tmp_path / "root")
        lab.proxy.clear()
        yield LabStage(lab, lambda: load_backend(lab.settings()))
        lab.proxy.clear()


class TestInMemory(BackendSuite):
    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        with InMemoryService(dict.fromkeys(PUBLISHED, ...)) as service:
            yield MemoryStage(service)


class TestFakeService(BackendSuite):
    """The service that other tests use is held to the same."""

    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        with FakeService(dict.fromkeys(PUBLISHED, ...)) as service:
            yield MemoryStage(service)


class TestService(BackendSuite):
    """One service for all; each test finds its cache empty and nothing under way."""

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, module_lab, tmp_path_factory) -> Iterator[Service]:
        with Service(service_config(module_lab.settings(), tmp_path_factory.mktemp("state"))) as service:
            yield service

    @pytest.fixture
    def stage(self, module_lab, service, tmp_path) -> Iterator[Stage]:
        settings = Settings.load({}, url=service.url, root=module_lab.root, downloads=tmp_path / "downloads")
        module_lab.proxy.clear()
        yield LabStage(module_lab, lambda: load_backend(settings))
        module_lab.proxy.clear()
        with Desk(service) as desk:
            clear_away(desk)


def clear_away(desk: Desk) -> None:
    """End every job of a service, and empty its cache."""
    for job in desk.http.get("/v1/jobs").raise_for_status().json()["jobs"]:
        if not State(job["state"]).is_final:
            desk.cancel(job["id"])
    eventually(lambda: desk.status().crops_running == 0, "nothing is made any more")
    for split, crop in PUBLISHED:
        desk.http.delete(f"/v1/crops/{split}/{crop}").raise_for_status()
