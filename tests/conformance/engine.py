"""What every `Engine` does; subclass `EngineConformance` for each implementation.

The crops are fetched through a fault proxy, which holds responses back so that whatever happens to a worker happens in
the middle of a crop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from uuid import uuid4

import h5py
import numpy as np
import pytest

from prismcache.errors import (
    CropNotCachedError,
    MissingChunksError,
    SourceDeniedError,
    UnknownChannelError,
    UnknownCropError,
    WorkerError,
    error_from_problem,
)
from prismcache.layout import STATE_FOLDER
from prismcache.schema import CropFile, Problem, Product, Progress, Split
from prismcache_service.cache import CropCache, CropName
from prismcache_service.engine import MAX_STRIKES, CropTask, Engine
from prismcache_service.pipeline import Report
from tests.support import products_oracle
from tests.support.cache_root import Lab, files_below, many_objects_spec, object_key, published
from tests.support.faults import FaultProxy, Rule, Stall, Status
from tests.support.held_product import HeldProduct
from tests.support.labs import running_lab
from tests.support.oracle import assert_crop_file_equals_oracle, reference_crop
from tests.support.processes import Watched

SPECS = [many_objects_spec(crop) for crop in range(3)]
SPEC = SPECS[0]
GAPPY = many_objects_spec(3, raw=dataclasses.replace(SPEC.raw, absent=((5, 1, 1, 1),)))
LATE = object_key(SPEC, "raw/5.1.1.1")
"""An object that is needed after many others."""


def ignore(progress: Progress) -> None:
    """Nobody watches."""


async def make(engine: Engine, task: CropTask, report: Report) -> CropFile:
    """Run a task; a problem is raised as the error that it stands for."""
    outcome = await engine.run(task, report)
    if isinstance(outcome, Problem):
        raise error_from_problem(outcome)
    return outcome


class EngineConformance(ABC):
    """The tests."""

    pytestmark = pytest.mark.anyio
    workers = 2

    @abstractmethod
    def open(self, lab: Lab, *, silence: float = 60.0) -> AbstractAsyncContextManager[Engine]:
        """An engine of `workers` workers for this lab; a worker without a sign of life for `silence` s is hung."""

    @abstractmethod
    def running(self) -> list[Watched]:
        """The engine's worker processes that run now."""

    @pytest.fixture(scope="class")
    @classmethod
    def bucket_lab(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
        """A bucket with these crops behind a proxy."""
        with running_lab(tmp_path_factory.mktemp("engine"), [*SPECS, GAPPY]) as lab:
            yield lab

    @pytest.fixture
    def lab(self, bucket_lab: Lab, tmp_path: Path) -> Iterator[Lab]:
        """The bucket without faults, and a cache folder of the test's own."""
        bucket_lab.proxy.clear()
        lab = Lab(bucket_lab.bucket_dir, bucket_lab.proxy, tmp_path / "root")
        CropCache(lab.root).prepare(Split.INSTANCE)
        yield lab
        assert self.running() == []

    # Making

    async def test_a_crop_is_made_and_published_with_progress_that_only_grows_and_nothing_is_fetched_twice(
        self, lab: Lab
    ) -> None:
        seen: list[Progress] = []

        async with self.open(lab) as engine:
            file = await make(engine, task(0), seen.append)
        assert file.path == str(lab.cached(SPEC))
        assert_crop_file_equals_oracle(Path(file.path), lab.source(SPEC))
        assert (seen[0].objects_done, seen[0].bytes_done) == (0, 0)
        assert (seen[-1].objects_done, seen[-1].bytes_done) == (seen[-1].objects_total, seen[-1].bytes_total)
        assert seen[0].objects_total == len(set(lab.fetched(SPEC)) - METADATA)
        assert set(lab.fetched(SPEC).values()) == {1}
        for before, after in itertools.pairwise(seen):
            assert after.objects_done >= before.objects_done
            assert after.bytes_done >= before.bytes_done
            assert (after.objects_total, after.bytes_total) == (before.objects_total, before.bytes_total)

    async def test_progress_comes_while_the_crop_is_made(self, lab: Lab) -> None:
        stall = Stall()
        lab.proxy.add(stall, key=LATE)
        seen = Watch()
        async with self.open(lab) as engine:
            making = asyncio.create_task(make(engine, task(0), seen))
            await seen.until(lambda progress: progress.objects_done > 0)
            assert not making.done()
            stall.release()
            await making

    async def test_a_subset_of_channels_is_a_file_of_its_own(self, lab: Lab) -> None:
        async with self.open(lab) as engine:
            file = await make(engine, task(0, (4, 1)), ignore)
        assert (file.path, file.channels) == (str(lab.cached(SPEC, "01_04")), (1, 4))
        assert_crop_file_equals_oracle(Path(file.path), lab.source(SPEC), (1, 4))
        assert not [key for key in lab.fetched(SPEC) if key.startswith(("raw/0.", "raw/5."))]

    async def test_a_product_is_made_from_the_cached_crop_with_progress_of_its_own(self, lab: Lab) -> None:
        seen: list[Progress] = []
        name = CropName(Split.INSTANCE, 0, product=Product.AVG_BARCODES)
        async with self.open(lab) as engine:
            with pytest.raises(CropNotCachedError, match="instance/0 is no longer cached"):
                await make(engine, CropTask(name, uuid4().hex), ignore)
            await make(engine, task(0), ignore)
            file = await make(engine, CropTask(name, uuid4().hex), seen.append)
        plain = reference_crop(lab.source(SPEC))
        with h5py.File(file.path) as made:
            found = np.stack(list(made["avg_barcodes"].values()))
        assert (Path(file.path).name, file.product) == ("crop_0.avg_barcodes.h5", Product.AVG_BARCODES)
        np.testing.assert_array_equal(found, products_oracle.avg_barcodes(plain.raw, plain.labels))
        assert (seen[0].voxels_done, seen[-1].voxels_done) == (0, seen[-1].voxels_total)
        assert seen[-1].voxels_total == 2 * plain.labels.size

    @pytest.mark.parametrize("end", ["the worker is killed", "the task is cancelled"])
    async def test_a_product_in_the_making_outlives_its_worker_and_ends_with_its_task(self, lab: Lab, end: str) -> None:
        order = CropTask(CropName(Split.INSTANCE, 0, product=Product.AVG_BARCODES), uuid4().hex)
        async with self.open(lab) as engine:
            await make(engine, task(0), ignore)
            with HeldProduct(lab.root) as product:
                making = asyncio.create_task(make(engine, order, ignore))
                await asyncio.to_thread(product.wait)
                if end == "the worker is killed":
                    self.kill_all()
                else:
                    making.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await making
                    assert published(lab.root) == ["instance/crop_0.h5"]
            if end == "the task is cancelled":
                making = asyncio.create_task(make(engine, order, ignore))
            assert (await making).path == str(lab.root / "instance/crop_0.avg_barcodes.h5")
        assert [name for name in files_below(lab.root) if name.endswith(".tmp")] == []

    async def test_one_engine_makes_crop_after_crop(self, lab: Lab) -> None:
        async with self.open(lab) as engine:
            files = [await make(engine, task(crop), ignore) for crop in (0, 1, 2)]
        for spec, file in zip(SPECS, files, strict=True):
            assert_crop_file_equals_oracle(Path(file.path), lab.source(spec))

    # Failing

    @pytest.mark.parametrize(
        ("wanted", "error", "named"),
        [
            (CropName(Split.INSTANCE, 99), UnknownCropError, "crop 99"),
            (CropName(Split.INSTANCE, 0, (77,)), UnknownChannelError, "not 77"),
        ],
        ids=["crop", "channel"],
    )
    async def test_what_does_not_exist_is_a_typed_error_and_leaves_nothing(
        self, lab: Lab, wanted, error, named
    ) -> None:
        async with self.open(lab) as engine:
            with pytest.raises(error, match=named):
                await make(engine, CropTask(wanted, uuid4().hex), ignore)
            assert files_below(lab.root) == []
            await make(engine, task(0), ignore)

    async def test_a_failure_in_the_middle_is_typed_leaves_nothing_and_costs_the_next_crop_nothing(
        self, lab: Lab
    ) -> None:
        lab.proxy.add(Status(403), key=LATE)
        async with self.open(lab) as engine:
            with pytest.raises(SourceDeniedError, match=r"raw/5\.1\.1\.1") as caught:
                await make(engine, task(0), ignore)
            assert caught.value.remedy
            assert files_below(lab.root) == []
            await make(engine, task(1), ignore)

    async def test_strict_reaches_the_work(self, lab: Lab) -> None:
        async with self.open(lab) as engine:
            with pytest.raises(MissingChunksError, match="1 chunks are absent"):
                await make(engine, dataclasses.replace(task(3), strict=True), ignore)
            assert (await make(engine, task(3), ignore)).missing_chunks == 1

    # Cancelling

    async def test_cancelling_stops_the_work_and_leaves_nothing(self, lab: Lab) -> None:
        stall = Stall()
        lab.proxy.add(stall, key=LATE)
        async with self.open(lab) as engine:
            making = asyncio.create_task(make(engine, task(0), ignore))
            await requested(lab.proxy, LATE)
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making
            assert files_below(lab.root) == []
            stall.release()
            file = await make(engine, task(0), ignore)
            assert_crop_file_equals_oracle(Path(file.path), lab.source(SPEC))

    @pytest.mark.parametrize("turns", [0, 3, 50])
    async def test_cancelling_at_the_very_beginning_leaves_no_process(self, lab: Lab, turns: int) -> None:
        async with self.open(lab) as engine:
            making = asyncio.create_task(make(engine, task(0), ignore))
            for _ in range(turns):
                await asyncio.sleep(0)
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making
            assert self.running() == []
            # A lease is no part of a crop: an engine that just meets its workers shows them one.
            assert all(name.startswith(f"{STATE_FOLDER}/leases/") for name in files_below(lab.root))
        assert files_below(lab.root) == []
        gc.collect()  # warns of a socket that nobody closed

    async def test_cancelling_what_waits_its_turn_leaves_the_others_alone(self, lab: Lab) -> None:
        stall = Stall()
        lab.proxy.add(stall, key=RAW)
        async with self.open(lab) as engine:
            making = [asyncio.create_task(make(engine, task(crop), ignore)) for crop in range(self.workers)]
            for crop in range(self.workers):
                await requested(lab.proxy, object_key(SPECS[crop], "raw/"))
            waiting = asyncio.create_task(make(engine, task(2), ignore))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            stall.release()
            await asyncio.gather(*making)
        assert len(published(lab.root)) == self.workers

    # As many as there are workers

    async def test_no_more_crops_are_made_at_once_than_there_are_workers(self, lab: Lab) -> None:
        active: set[int] = set()
        most: list[int] = []

        async with self.open(lab) as engine:

            async def make_one(crop: int) -> None:
                def report(progress: Progress) -> None:
                    active.add(crop)
                    most.append(len(active))

                await make(engine, task(crop), report)
                active.discard(crop)

            stall = Stall()
            lab.proxy.add(stall, key=RAW)
            making = [asyncio.create_task(make_one(crop)) for crop in range(3)]
            for crop in range(self.workers):
                await requested(lab.proxy, object_key(SPECS[crop], "raw/"))
            assert len(self.running()) <= self.workers
            stall.release()
            await asyncio.gather(*making)
        assert max(most) == self.workers

    # Workers that die

    async def test_a_killed_worker_costs_one_retry(self, lab: Lab) -> None:
        rule = lab.proxy.add(Stall(), key=LATE, times=1)
        async with self.open(lab) as engine:
            making = asyncio.create_task(make(engine, task(0), ignore))
            await hit(lab.proxy, rule, 1)
            self.kill_all()
            file = await making
        assert_crop_file_equals_oracle(Path(file.path), lab.source(SPEC))
        assert lab.fetched(SPEC)["raw/5.1.1.1"] == 2
        assert [name for name in files_below(lab.root) if name.endswith(".tmp")] == []

    async def test_a_crop_that_kills_its_worker_three_times_fails_alone(self, lab: Lab) -> None:
        rule = lab.proxy.add(Stall(), key=LATE)
        async with self.open(lab) as engine:
            making = asyncio.create_task(make(engine, task(0), ignore))
            for strike in range(1, MAX_STRIKES + 1):
                await hit(lab.proxy, rule, strike)
                self.kill_all()
            with pytest.raises(WorkerError, match=rf"instance/crop_0\.zarr.*{MAX_STRIKES} worker.*SIGKILL"):
                await making
            assert files_below(lab.root) == []
            file = await make(engine, task(1), ignore)
            assert_crop_file_equals_oracle(Path(file.path), lab.source(SPECS[1]))

    @pytest.mark.slow
    async def test_a_worker_that_hangs_is_replaced(self, lab: Lab) -> None:
        rule = lab.proxy.add(Stall(), key=LATE, times=1)
        async with self.open(lab, silence=10.0) as engine:
            making = asyncio.create_task(make(engine, task(0), ignore))
            await hit(lab.proxy, rule, 1)
            stopped = self.running()
            for process in stopped:
                os.kill(process.pid, signal.SIGSTOP)
            file = await making
            assert not any(process.is_running for process in stopped)
        assert_crop_file_equals_oracle(Path(file.path), lab.source(SPEC))

    async def test_an_idle_worker_that_died_costs_nothing_but_a_new_one(self, lab: Lab) -> None:
        async with self.open(lab) as engine:
            await make(engine, task(0), ignore)
            self.kill_all()
            file = await make(engine, task(1), ignore)
            assert_crop_file_equals_oracle(Path(file.path), lab.source(SPECS[1]))

    # Ending

    async def test_closing_ends_every_worker(self, lab: Lab) -> None:
        async with self.open(lab) as engine:
            await asyncio.gather(*(make(engine, task(crop), ignore) for crop in (0, 1)))
            await engine.aclose()
            assert self.running() == []
            await engine.aclose()

    async def test_an_engine_that_made_nothing_has_nothing_to_close(self, lab: Lab) -> None:
        async with self.open(lab) as engine:
            await engine.check()
        assert files_below(lab.root) == []

    def kill_all(self) -> None:
        """SIGKILL every worker, and wait until they are gone."""
        found = self.running()
        assert found
        for process in found:
            process.kill()
        for process in found:
            process.wait()


METADATA = {f"{array}/{name}" for array in ("raw", "labels") for name in (".zarray", ".zattrs")}


def RAW(key: str) -> bool:  # noqa: N802 - reads as the constant that it stands for
    """Whether a key is that of a chunk of raw."""
    return "/raw/" in key and not key.rpartition("/")[2].startswith(".")


class Watch:
    """A progress callback to wait on."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._last = Progress()

    def __call__(self, progress: Progress) -> None:
        self._last = progress
        self._changed.set()

    async def until(self, condition: Callable[[Progress], bool]) -> None:
        while not condition(self._last):
            self._changed.clear()
            await self._changed.wait()


def task(crop: int, channels: tuple[int, ...] | None = None) -> CropTask:
    """An order for a crop under a token of its own."""
    return CropTask(CropName(Split.INSTANCE, crop, None if channels is None else tuple(sorted(channels))), uuid4().hex)


async def requested(proxy: FaultProxy, key: str) -> None:
    """Wait until an object whose key begins with `key` has been asked for."""

    def has_come(proxy: FaultProxy) -> bool:
        return any(
            seen.key.startswith(key) and not seen.key.endswith((".zarray", ".zattrs")) for seen in proxy.requests
        )

    await asyncio.to_thread(proxy.wait_until, has_come, 60.0)


async def hit(proxy: FaultProxy, rule: Rule, times: int) -> None:
    """Wait until a rule has decided that often."""
    await asyncio.to_thread(proxy.wait_until, lambda _: rule.hits >= times, 60.0)
