"""Workers of a real Dask cluster do what an engine does."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from prismcache.config import Settings
from prismcache.errors import EngineUnavailableError, SourceDeniedError
from prismcache.schema import Product, Split
from prismcache_service.cache import CropName
from prismcache_service.engine import CropTask, Engine
from prismcache_service.engine.dask.engine import DaskEngine
from tests.conformance.engine import LATE, SPEC, EngineConformance, ignore, make, requested, task
from tests.support.cache_root import Lab, files_below
from tests.support.dask_cluster import DaskCluster
from tests.support.faults import Stall, Status
from tests.support.held_product import HeldProduct
from tests.support.processes import Watched, eventually

pytestmark = pytest.mark.anyio


class TestDaskEngine(EngineConformance):
    """`DaskEngine`."""

    cluster: DaskCluster

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _cluster(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        with DaskCluster(tmp_path_factory.mktemp("dask"), {"SCHEDULER__ALLOWED_FAILURES": "2"}) as cls.cluster:
            for _ in range(cls.workers):
                cls.cluster.start_worker()
            yield

    @asynccontextmanager
    async def open(self, lab: Lab, *, silence: float = 60.0) -> AsyncIterator[Engine]:
        engine = DaskEngine(lab.settings(workers=self.workers), self.cluster.address, timeout=90, silence=silence)
        try:
            yield engine
        finally:
            await engine.aclose()

    def running(self) -> list[Watched]:
        return self.cluster.children()

    async def test_two_services_that_make_the_same_file_share_one_task(self, lab: Lab) -> None:
        stall = Stall()
        lab.proxy.add(stall, key=LATE)
        async with self.open(lab) as one, self.open(lab) as other:
            first = asyncio.create_task(make(one, task(0), ignore))
            await requested(lab.proxy, LATE)
            seen = asyncio.Event()
            second = asyncio.create_task(make(other, task(0), lambda _: seen.set()))
            await until_two_want_it(one)
            stall.release()
            assert (await first) == (await second)
            assert seen.is_set()
        assert set(lab.fetched(SPEC).values()) == {1}

    async def test_one_of_two_who_cancels_does_not_stop_the_other(self, lab: Lab) -> None:
        stall = Stall()
        lab.proxy.add(stall, key=LATE)
        async with self.open(lab) as one, self.open(lab) as other:
            first = asyncio.create_task(make(one, task(0), ignore))
            await requested(lab.proxy, LATE)
            second = asyncio.create_task(make(other, task(0), ignore))
            await until_two_want_it(one)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            stall.release()
            await first
        assert set(lab.fetched(SPEC).values()) == {1}

    async def test_a_product_in_the_making_outlives_the_dask_worker(self, lab: Lab) -> None:
        order = CropTask(CropName(Split.INSTANCE, 0, product=Product.AVG_BARCODES), uuid4().hex)
        async with self.open(lab) as engine:
            await make(engine, task(0), ignore)
            with HeldProduct(lab.root) as product:
                making = asyncio.create_task(make(engine, order, ignore))
                await asyncio.to_thread(product.wait)
                for worker in self.cluster.workers():
                    worker.kill()
                eventually(lambda: not self.cluster.workers(), "the workers have ended")
            self.cluster.complete(self.workers)
            assert (await making).product is Product.AVG_BARCODES
        assert [name for name in files_below(lab.root) if name.endswith(".tmp")] == []

    async def test_what_failed_is_tried_anew_at_the_next_call(self, lab: Lab) -> None:
        rule = lab.proxy.add(Status(403), key=LATE)
        async with self.open(lab) as engine:
            for tries in (1, 2):
                with pytest.raises(SourceDeniedError):
                    await make(engine, task(0), ignore)
                assert rule.hits == tries
            lab.proxy.clear()
            await make(engine, task(0), ignore)


async def until_two_want_it(engine: DaskEngine) -> None:
    """Wait until the one task that the scheduler knows is wanted by two clients."""
    client = await engine._cluster.client()
    while await client.run_on_scheduler(
        lambda dask_scheduler: [len(state.who_wants) for state in dask_scheduler.tasks.values()]
    ) != [2]:
        pass


def test_no_scheduler_is_an_error_that_says_so(tmp_path: Path) -> None:
    async def main(address: str) -> None:
        engine = DaskEngine(Settings.load({}, root=tmp_path), address, timeout=0.2)
        try:
            with pytest.raises(EngineUnavailableError, match=rf"for 0\.2 s, the Dask scheduler at {address}") as caught:
                await make(engine, task(0), ignore)
            assert caught.value.remedy
        finally:
            await engine.aclose()

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        asyncio.run(main(f"tcp://127.0.0.1:{nobody.getsockname()[1]}"))


def test_a_worker_that_would_make_other_files_or_elsewhere_gets_no_crops(tmp_path: Path) -> None:
    root, elsewhere, other_versions = (tmp_path / name for name in ("root", "elsewhere", "versions"))
    metadata = other_versions / "isal-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: isal\nVersion: 0.0.1\n")
    path = os.pathsep.join([str(other_versions), *filter(None, [os.environ.get("PYTHONPATH")])])
    host = f"on {socket.gethostname()}: "

    async def main(address: str) -> str:
        engine = DaskEngine(Settings.load({}, root=root), address, timeout=0.2)
        try:
            while True:
                with pytest.raises(EngineUnavailableError) as caught:
                    await make(engine, task(0), ignore)
                if str(caught.value).count(host) == 2:
                    with pytest.raises(EngineUnavailableError, match="no worker that may be given crops"):
                        await engine.check()
                    return str(caught.value)
        finally:
            await engine.aclose()

    with DaskCluster(tmp_path) as cluster:
        cluster.start_worker(env={"PRISMCACHE_ROOT": str(elsewhere)})
        cluster.start_worker(env={"PYTHONPATH": path})
        said = asyncio.run(main(cluster.address))
    assert f"{host}its folder {elsewhere} is not the service's cache folder" in said
    assert f"{host}isal 0.0.1 (service: " in said
    assert files_below(root) == files_below(elsewhere) == []
