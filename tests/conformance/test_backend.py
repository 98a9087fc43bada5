"""Every backend passes the same suite: embedded, a service in memory, and a real service in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prismcache.backend import Backend, load_backend
from prismcache.config import Settings
from prismcache.testing import InMemoryService
from tests.conformance.backend import PUBLISHED, BackendSuite, Stage
from tests.support.cache_root import Lab, tiny_spec
from tests.support.faults import Rule, Stall
from tests.support.labs import running_lab
from tests.support.service import Service, service_config


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
    """A service in memory."""

    service: InMemoryService

    @property
    def root(self) -> Path:
        return self.service.root

    def backend(self) -> Backend:
        return load_backend("remote", Settings.load({}, **self.service.settings()))

    def hold(self) -> None:
        self.service.hold()

    def resume(self) -> None:
        self.service.resume()


@contextmanager
def small_lab(folder: Path) -> Iterator[Lab]:
    with running_lab(folder, [tiny_spec(crop, split) for split, crop in PUBLISHED]) as lab:
        yield lab


class TestEmbedded(BackendSuite):
    @pytest.fixture
    def stage(self, tmp_path) -> Iterator[Stage]:
        with small_lab(tmp_path) as lab:
            yield LabStage(lab, lambda: load_backend("embedded", lab.settings()))


class TestInMemory(BackendSuite):
    @pytest.fixture
    def stage(self) -> Iterator[Stage]:
        with InMemoryService(dict.fromkeys(PUBLISHED, ...)) as service:
            yield MemoryStage(service)


class TestService(BackendSuite):
    @pytest.fixture
    def stage(self, tmp_path) -> Iterator[Stage]:
        with small_lab(tmp_path) as lab, Service(service_config(lab.settings(), tmp_path / "state")) as service:
            settings = Settings.load({}, url=service.url, root=lab.root, downloads=tmp_path / "downloads")
            yield LabStage(lab, lambda: load_backend("remote", settings))
