"""AsyncPrismClient over a backend that plays a script."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from pathlib import Path

import anyio
import pytest

import prismcache.client.aio as aio_module
import prismcache.client.drive as drive_module
from prismcache import (
    AsyncPrismClient,
    CropCorruptError,
    EnsureTimeoutError,
    MissingChunksWarning,
    NoSpaceError,
    RequestError,
    Settings,
    SourceUnreachableError,
    UnknownCropError,
    UnknownSplitError,
)
from prismcache.backend import Backend
from prismcache.client.flow import plan_ensure
from prismcache.schema import CropDownload, Job, Split
from tests.support.fake_backend import MB, FakeBackend, broken, crop_file, in_memory, job, queued, ready, running

pytestmark = pytest.mark.anyio

CROP_0, CROP_1, CROP_5 = (f"/lab/prism/instance/crop_{crop}.h5" for crop in (0, 1, 5))


def client(backend: Backend) -> AsyncPrismClient:
    return AsyncPrismClient(backend=backend)


async def paths_of(backend: FakeBackend, *args: object, **options: object) -> list[str]:
    return await client(backend).ensure(*args, **{"progress": False, **options})


async def test_paths_come_in_the_order_asked_with_duplicates():
    backend = FakeBackend()
    assert await paths_of(backend, "instance", [5, 0, 5]) == [CROP_5, CROP_0, CROP_5]
    assert backend.requests[0].crops == (5, 0)
    assert await paths_of(backend) == [CROP_0, CROP_1, CROP_5]
    assert backend.requests[1].crops is None
    assert backend.cancelled == []


def test_an_open_client_belongs_to_its_event_loop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(aio_module, "load_backend", lambda _: FakeBackend())
    client = AsyncPrismClient(tmp_path)
    assert asyncio.run(client.ensure("instance", 0, progress=False)) == [CROP_0]
    with pytest.raises(RequestError, match="opened in another event loop"):
        asyncio.run(client.ensure("instance", 0, progress=False))


async def test_no_crops_are_no_work():
    backend = FakeBackend()
    assert await paths_of(backend, "semantic", []) == []
    assert backend.requests == []


async def test_arguments_are_checked_before_anything_is_sent():
    backend = FakeBackend()
    for args, kind in (
        (("Train",), UnknownSplitError),
        (("instance", -1), UnknownCropError),
        (("instance", True), RequestError),
    ):
        with pytest.raises(kind):
            await paths_of(backend, *args)
    assert backend.requests == []


async def test_iter_ensure_yields_as_crops_become_ready():
    script = [job(queued(0), running(5)), job(running(0), ready(5)), job(ready(0), ready(5))]
    paths = client(FakeBackend(script)).iter_ensure("instance", [0, 5, 0], progress=False)
    assert [path async for path in paths] == [CROP_5, CROP_0, CROP_0]


async def test_iter_ensure_yields_all_the_good_ones_then_raises():
    full = broken(0, NoSpaceError("full"))
    backend = FakeBackend([job(full, running(5)), job(full, ready(5))])
    found = []
    with pytest.raises(NoSpaceError):  # noqa: PT012 - what was found before matters
        async for path in client(backend).iter_ensure("instance", [0, 5], progress=False):
            found.append(path)  # noqa: PERF401 - interrupted by the error
    assert found == [CROP_5]


async def test_a_file_that_cannot_be_had_here_fails_alone():
    backend = FakeBackend([job(ready(0), running(5)), job(ready(0), ready(5))], unusable={0: CropCorruptError("bad")})
    found = []
    with pytest.raises(CropCorruptError):  # noqa: PT012 - as above
        async for path in client(backend).iter_ensure("instance", [0, 5], progress=False):
            found.append(path)  # noqa: PERF401 - as above
    assert found == [CROP_5]


def downloads_seen(backend: FakeBackend, *crops: int) -> list[CropDownload]:
    """What a program is shown of downloads, where each of their steps takes until the one before was shown."""

    async def main() -> None:
        shown = asyncio.Event()
        shown.set()

        async def step() -> None:
            shown.clear()
            await shown.wait()

        def look(snapshot: Job) -> None:
            found = [crop for crop in snapshot.crops if isinstance(crop, CropDownload)]
            seen.extend(found)
            if found:
                shown.set()

        backend.step = step
        with suppress(CropCorruptError):
            await client(backend).ensure("instance", crops, progress=look)

    seen: list[CropDownload] = []
    asyncio.run(main())
    return seen


async def test_files_that_are_here_are_told_with_their_snapshot():
    backend = FakeBackend(here={0, 5}, downloads={1: [MB]})
    plan = plan_ensure("instance", None)
    async with aclosing(client(backend).steps(plan)) as steps:
        (snapshot, *files), *others = [step async for step in steps]
    assert isinstance(snapshot, Job)
    assert files == [crop_file(0), crop_file(5)]
    assert others[-1] == (crop_file(1),)
    assert await paths_of(backend) == [CROP_0, CROP_1, CROP_5]


def test_a_download_is_shown_in_the_snapshots():
    seen = downloads_seen(FakeBackend(downloads={0: [0, 1 * MB, 2 * MB]}), 0, 5)
    assert [(each.crop, each.state.value, each.bytes_done) for each in seen] == [
        (0, "running", 0), (0, "running", 1 * MB), (0, "running", 2 * MB), (0, "done", 3 * MB)
    ]  # fmt: skip
    assert {each.bytes_total for each in seen} == {3 * MB}


def test_a_download_that_fails_is_shown_too():
    seen = downloads_seen(FakeBackend(downloads={0: [1]}, unusable={0: CropCorruptError("bad")}), 0)
    assert [each.state.value for each in seen] == ["running", "failed"]
    assert seen[-1].problem == CropCorruptError("bad").to_problem()


async def test_cancelling_stops_a_download():
    begun, ended = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    backend = FakeBackend(downloads={0: [1]}, step=step)
    call = asyncio.create_task(paths_of(backend, "instance", 0))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


@pytest.mark.parametrize("waiting", [True, False])
async def test_an_error_of_the_backend_comes_through_and_cancels(waiting):
    unreachable = SourceUnreachableError("no response")
    backend = FakeBackend([job(running(0)), unreachable] if waiting else [unreachable])
    with pytest.raises(SourceUnreachableError, match="no response"):
        await paths_of(backend, "instance", 0)
    assert backend.cancelled == (["job-1"] if waiting else [])


async def test_cancelling_the_task_cancels_the_job():
    backend = FakeBackend([job(running(0)), None])
    task = asyncio.create_task(paths_of(backend, "instance", 0))
    await backend.hangs.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.cancelled == ["job-1"]


async def test_leaving_the_loop_early_cancels_what_remains():
    backend = FakeBackend([job(ready(0), running(5))])
    async with aclosing(client(backend).iter_ensure("instance", [0, 5], progress=False)) as paths:
        async for path in paths:
            assert path == CROP_0
            break
    assert backend.cancelled == ["job-1"]


async def test_a_callback_that_fails_cancels():
    backend = FakeBackend([job(running(0))])
    with pytest.raises(ZeroDivisionError):
        await paths_of(backend, "instance", 0, progress=lambda _: 1 / 0)
    assert backend.cancelled == ["job-1"]


async def test_a_callback_sees_every_snapshot():
    script = [job(queued(0)), job(running(0, 50)), job(ready(0))]
    seen = []
    await paths_of(FakeBackend(list(script)), "instance", 0, progress=seen.append)
    assert seen == script


async def test_a_deadline_that_passes_leaves_the_job_running():
    backend = FakeBackend([job(running(0))])
    with pytest.raises(EnsureTimeoutError, match=r"0 of 1 crops were ready within 0.01 s; not yet: instance/0"):
        await paths_of(backend, "instance", 0, timeout=0.01)
    assert backend.cancelled == []


async def test_no_time_at_all_still_finds_what_is_cached():
    assert await paths_of(FakeBackend(), "instance", 0, timeout=0) == [CROP_0]
    with pytest.raises(EnsureTimeoutError):
        await paths_of(FakeBackend([job(running(0))]), "instance", 0, timeout=0)


@pytest.mark.parametrize("script", [[None], [job(running(0)), None]])
async def test_a_backend_that_hangs_is_cut_off_at_the_deadline(script, monkeypatch):
    monkeypatch.setattr(drive_module, "OVERRUN", 0.02)

    with pytest.raises(EnsureTimeoutError):
        await paths_of(FakeBackend(list(script)), "instance", 0, timeout=0.01)


async def test_absent_chunks_are_warned_of_in_the_callers_name():
    holed = crop_file(0, missing_chunks=4)
    with pytest.warns(MissingChunksWarning, match=r"instance/0: 4 chunks are absent from the bucket") as caught:
        await client(FakeBackend([job(ready(0, holed))])).ensure("instance", 0, progress=False)
    assert caught[0].filename == __file__


async def test_files_tell_channels_and_digest():
    files = await client(FakeBackend()).ensure_files("semantic", 1, channels=[2, 0], progress=False)
    assert files[0].channels == (0, 2)
    assert files[0].path == "/lab/prism/semantic/crop_1.ch00_02.h5"


async def test_what_else_a_backend_offers():
    backend = FakeBackend()
    prism = client(backend)
    assert [info.crop for info in await prism.catalog("instance")] == [0, 1, 5]
    assert len(await prism.catalog()) == 6
    assert (await prism.describe(Split.SEMANTIC, 5)).crop == 5
    assert len(await prism.verify()) == 4
    assert len(await prism.verify("instance", 0)) == 1
    assert [file.crop for file in await prism.remove("instance", [0])] == [0]
    for wrong in ([0, 1], [], -1, True, "0,1"):
        with pytest.raises(RequestError):
            await prism.describe("instance", wrong)
    with pytest.raises(RequestError, match="without their split"):
        await prism.verify(None, [0])


async def test_a_given_backend_stays_open_and_a_loaded_one_is_closed(monkeypatch):
    loaded: list[FakeBackend] = []

    def load(settings: Settings) -> Backend:
        backend = in_memory(settings)
        assert isinstance(backend, FakeBackend)
        loaded.append(backend)
        return backend

    monkeypatch.setattr("prismcache.client.aio.load_backend", load)

    given = FakeBackend()
    async with client(given) as prism:
        await prism.catalog()
    assert not given.closed
    async with AsyncPrismClient("/lab/prism") as prism:
        assert loaded == [], "nothing is opened before it is used"
        await prism.catalog()
        await prism.catalog()
    assert [backend.closed for backend in loaded] == [True]
    await prism.catalog()
    assert len(loaded) == 2, "a closed client opens anew"


def test_arguments_override_settings_override_the_environment(monkeypatch):
    monkeypatch.setenv("PRISMCACHE_S3_BUCKET", "from-environment")
    assert AsyncPrismClient().settings.s3_bucket == "from-environment"
    base = Settings(s3_bucket="from-settings", workers=3)
    assert AsyncPrismClient(settings=base).settings is base
    merged = AsyncPrismClient("/other", settings=base, workers=4).settings
    assert (merged.s3_bucket, merged.workers, merged.root.as_posix()) == ("from-settings", 4, "/other")


async def test_runs_under_a_timeout_of_the_callers_own():
    backend = FakeBackend([job(running(0))])
    with anyio.move_on_after(0.01) as scope:
        await paths_of(backend, "instance", 0)
    assert scope.cancelled_caught
    assert backend.cancelled == ["job-1"]
