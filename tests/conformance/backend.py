"""What every backend must do, whoever makes the crops: in this process, in a service, in memory.

A subclass gives the fixture `stage`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import h5py
import numpy as np
import pytest

from prismcache.backend import Backend
from prismcache.client.aio import AsyncPrismClient
from prismcache.config import Settings
from prismcache.errors import CropNotCachedError, EnsureTimeoutError, UnknownChannelError, UnknownCropError
from prismcache.schema import CropFile, Job, JobRequest, Product, Split, State, Verdict

T = TypeVar("T")
PUBLISHED = (("instance", 0), ("instance", 2), ("semantic", 1))
CHANNELS = 3


class Stage(Protocol):
    """A lab with `PUBLISHED` in its bucket, `CHANNELS` channels each, and an empty cache."""

    root: Path

    def backend(self) -> Backend:
        """A new one; called on the loop that uses it."""

    def hold(self) -> None:
        """Let no crop be finished until `resume`."""

    def resume(self) -> None:
        """Let crops be made again."""


class BackendSuite:
    """The tests; each on a stage of its own."""

    @pytest.fixture
    def stage(self) -> Stage:
        raise NotImplementedError

    @pytest.fixture
    def play(self, stage) -> Callable[[Callable[[Backend], Awaitable[T]]], T]:
        """Run a scene with a fresh backend."""

        def run(scene: Callable[[Backend], Awaitable[T]]) -> T:
            async def main() -> T:
                backend = stage.backend()
                try:
                    return await scene(backend)
                finally:
                    await backend.aclose()

            return asyncio.run(main())

        return run

    @pytest.fixture
    def ensure(self, play) -> Callable[..., list[CropFile]]:
        """The files that a client gets."""

        def run(*args: Any, **options: Any) -> list[CropFile]:
            return play(lambda backend: client_of(backend).ensure_files(*args, progress=False, **options))

        return run

    def test_a_crop_is_made_and_is_where_it_is_said_to_be(self, play):
        async def scene(backend: Backend) -> tuple[Job, Job, str]:
            first = await backend.submit(JobRequest(split=Split.INSTANCE, crops=(0,)))
            last = await final(backend, first)
            return first, last, await backend.local_path(file_of(last, 0), lambda received: None)

        first, last, path = play(scene)
        file = file_of(last, 0)
        assert not first.state.is_final
        assert (last.id, last.state, last.split) == (first.id, State.DONE, Split.INSTANCE)
        assert last.revision > first.revision
        assert (file.split, file.crop, file.channels) == (Split.INSTANCE, 0, (0, 1, 2))
        content = Path(path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
        with h5py.File(path) as crop:
            assert sorted(crop["raw"]) == ["ch_00", "ch_01", "ch_02"]

    def test_a_cached_crop_is_returned_at_once_and_lies_in_the_root(self, play, ensure, stage):
        [file] = ensure("instance", 0)
        assert file.path == str(stage.root / "instance" / "crop_0.h5")

        async def scene(backend: Backend) -> Job:
            return await backend.submit(JobRequest(split=Split.INSTANCE, crops=(0,), channels=(1,)))

        job = play(scene)
        assert job.state is State.DONE
        assert file_of(job, 0).sha256 == file.sha256  # the fuller file serves

    def test_files_on_this_machine_are_known_without_waiting(self, play, ensure):
        files = ensure("instance")

        async def scene(backend: Backend) -> tuple[dict[int, str], list[CropFile]]:
            job = await backend.submit(JobRequest(split=Split.INSTANCE, crops=(0, 2)))
            named = [file_of(job, crop) for crop in (2, 0)]
            return dict(await backend.paths_here(named)), named

        paths, named = play(scene)
        assert paths == {file.crop: file.path for file in files}
        assert [file.crop for file in named] == [2, 0]

    def test_all_crops_are_those_of_the_split(self, ensure):
        assert [file.crop for file in ensure("instance")] == [0, 2]
        assert [file.crop for file in ensure("semantic")] == [1]

    def test_order_and_duplicates_are_the_callers(self, ensure):
        assert [file.crop for file in ensure("instance", [2, 0, 2])] == [2, 0, 2]

    def test_channels_are_a_file_of_their_own(self, ensure):
        [file] = ensure("semantic", 1, channels=[2, 0])
        assert file.channels == (0, 2)
        assert Path(file.path).name == "crop_1.ch00_02.h5"

    def test_context_and_products_are_files_of_their_own(self, ensure, play):
        [wide] = ensure("instance", 0, context=(1, 2, 3))
        assert (Path(wide.path).name, wide.context) == ("crop_0.ctx1-2-3.h5", (1, 2, 3))
        with h5py.File(wide.path) as file:
            labels = file["labels"][...]
            assert file["raw/ch_02"].shape == tuple(n + 2 * by for n, by in zip(labels.shape, (1, 2, 3), strict=True))
        assert ensure("instance", 0, context=(1, 1, 0), channels=1) == [wide]
        [made] = ensure("instance", 0, product="unlabelled")
        assert (Path(made.path).name, made.product) == ("crop_0.unlabelled.h5", Product.UNLABELLED)
        with h5py.File(made.path) as file:
            assert np.array_equal(file["unlabelled"][...], labels > 0)
        info = play(lambda backend: backend.describe(Split.INSTANCE, 0))
        names = ["crop_0.ctx1-2-3.h5", "crop_0.h5", "crop_0.unlabelled.h5"]
        assert sorted(Path(file.path).name for file in info.files) == names
        damage(Path(made.path))
        verdicts = {Path(each.path).name: each.verdict for each in play(lambda backend: backend.verify(repair=True))}
        assert verdicts == dict.fromkeys(names, Verdict.OK) | {"crop_0.unlabelled.h5": Verdict.REPAIRED}
        assert ensure("instance", 0, product="unlabelled") == [made]

    @pytest.mark.parametrize(
        ("crops", "channels", "kind"), [([0, 9], None, UnknownCropError), ([0], CHANNELS, UnknownChannelError)]
    )
    def test_an_unknown_crop_or_channel_is_a_typed_error(self, ensure, crops, channels, kind):
        with pytest.raises(kind):
            ensure("instance", crops, channels=channels)

    def test_waiting_ends_with_its_time(self, play, stage):
        stage.hold()

        async def scene(backend: Backend) -> tuple[Job, Job]:
            job = await backend.submit(JobRequest(split=Split.INSTANCE, crops=(0,)))
            waited = await backend.wait(job, 0.2)
            await backend.cancel(waited)
            return job, waited

        job, waited = play(scene)
        assert waited.id == job.id
        assert not waited.state.is_final

    def test_a_deadline_of_nothing_finds_what_is_cached(self, ensure, stage):
        ensure("instance", 0)
        stage.hold()
        assert len(ensure("instance", 0, timeout=0)) == 1
        with pytest.raises(EnsureTimeoutError, match="1 of 2"):
            ensure("instance", [0, 2], timeout=0)

    def test_a_cancelled_request_can_be_made_again(self, play, ensure, stage):
        stage.hold()

        async def scene(backend: Backend) -> None:
            job = await backend.submit(JobRequest(split=Split.INSTANCE, crops=(0,)))
            await backend.cancel(job)
            await backend.cancel(job)

        play(scene)
        stage.resume()
        assert len(ensure("instance", 0)) == 1

    def test_a_cancelled_call_leaves_the_job_to_the_others(self, play, stage):
        stage.hold()

        async def scene(backend: Backend) -> list[Job]:
            request = JobRequest(split=Split.INSTANCE, crops=(0,))
            first, second = await backend.submit(request), await backend.submit(request)
            assert first.id == second.id
            await backend.cancel(first)
            one_left = await backend.wait(second, 0.2)
            await backend.cancel(second)
            return [one_left, await backend.submit(request)]

        one_left, anew = play(scene)
        assert not one_left.state.is_final
        assert anew.id != one_left.id

    @pytest.mark.parametrize("ticks", [1, 3, 10, 30])
    def test_a_call_that_is_cancelled_while_it_submits_wants_the_job_no_more(self, play, stage, ticks):
        stage.hold()

        async def scene(backend: Backend) -> list[Job]:
            request = JobRequest(split=Split.INSTANCE, crops=(0,))
            call = asyncio.create_task(backend.submit(request))
            for _ in range(ticks):
                await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await backend.cancel(await call)  # it was quicker
            second = await backend.submit(request)
            await backend.cancel(second)
            return [second, await backend.submit(request)]

        second, third = play(scene)
        assert third.id != second.id

    def test_closing_ends_running_jobs(self, play, ensure, stage):
        stage.hold()
        play(lambda backend: backend.submit(JobRequest(split=Split.INSTANCE, crops=(0,))))
        stage.resume()
        assert len(ensure("instance", 0)) == 1

    def test_several_at_once_get_the_same(self, play):
        async def scene(backend: Backend) -> list[list[str]]:
            client = client_of(backend)
            calls = [client.ensure("instance", crops, progress=False) for crops in (0, [0, 2], None, 0)]
            return await asyncio.gather(*calls)

        one, two, every, again = play(scene)
        assert one == again == two[:1]
        assert two == every

    def test_the_catalog_lists_published_crops_with_cached_files(self, play, ensure):
        [file] = ensure("instance", 2)
        infos = play(lambda backend: backend.catalog())
        assert [(info.split.value, info.crop) for info in infos] == list(PUBLISHED)
        assert [[each.sha256 for each in info.files] for info in infos] == [[], [file.sha256], []]
        assert [info.crop for info in play(lambda backend: backend.catalog(Split.SEMANTIC, refresh=True))] == [1]

    def test_one_crop_in_full(self, play):
        info = play(lambda backend: backend.describe(Split.INSTANCE, 0))
        assert info.raw_shape is not None
        assert info.raw_shape[0] == CHANNELS
        assert None not in (info.labels_shape, info.offset, info.voxel_size, info.source_bytes, info.source_objects)
        with pytest.raises(UnknownCropError):
            play(lambda backend: backend.describe(Split.INSTANCE, 9))

    def test_verify_finds_damage_and_repairs_it(self, play, ensure, stage):
        ensure("semantic")
        [file] = ensure("instance", 0)
        assert [result.verdict for result in play(lambda backend: backend.verify())] == [Verdict.OK, Verdict.OK]
        damage(stage.root / "instance" / "crop_0.h5")
        [bad] = play(lambda backend: backend.verify(Split.INSTANCE, [0]))
        assert (bad.verdict, bad.crop) == (Verdict.CORRUPT, 0)
        assert bad.reason
        [mended] = play(lambda backend: backend.verify(Split.INSTANCE, repair=True))
        assert mended.verdict is Verdict.REPAIRED
        assert ensure("instance", 0)[0].sha256 == file.sha256

    def test_damage_is_never_returned(self, ensure, stage):
        [file] = ensure("instance", 0)
        damage(stage.root / "instance" / "crop_0.h5")
        assert hashlib.sha256(Path(ensure("instance", 0)[0].path).read_bytes()).hexdigest() == file.sha256

    def test_verify_of_a_crop_that_is_not_cached(self, play):
        assert play(lambda backend: backend.verify()) == []
        with pytest.raises(CropNotCachedError):
            play(lambda backend: backend.verify(Split.INSTANCE, [2]))

    def test_remove(self, play, ensure, stage):
        ensure("instance")
        ensure("instance", 0, channels=0)

        async def scene(backend: Backend) -> list[list[CropFile]]:
            await client_of(backend).ensure("instance", progress=False)  # which one's own removal need not heed
            return [await backend.remove(Split.INSTANCE, [0, 9]), await backend.remove(Split.INSTANCE)]

        assert [[file.crop for file in files] for files in play(scene)] == [[0], [2]]
        assert list((stage.root / "instance").glob("*.h5")) == []
        assert play(lambda backend: backend.remove(Split.INSTANCE)) == []


def client_of(backend: Backend) -> AsyncPrismClient:
    """Return a client of this backend that ignores the environment."""
    return AsyncPrismClient(settings=Settings.load({}), backend=backend)


async def final(backend: Backend, job: Job) -> Job:
    """Wait for the end of a job."""
    while not job.state.is_final:
        job = await backend.wait(job, 5)
    return job


def file_of(job: Job, crop: int) -> CropFile:
    """The file of a crop that is done."""
    [file] = [each.file for each in job.crops if each.crop == crop]
    assert file is not None
    return file


def damage(path: Path) -> None:
    """Change one byte of a published file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
