"""Jobs: streams of events, restarts, and a store that fails."""

from __future__ import annotations

import asyncio

import pytest

from prismcache.errors import StorageError
from prismcache.schema import CropProgress, Job, JobEvent, Progress, State
from tests.support.job_scene import Scene, made, settle, staged, states

pytestmark = pytest.mark.anyio

ONE = CropProgress(crop=0, state=State.DONE, file=made(0))


def kinds(items: list[JobEvent | Job]) -> list[str]:
    return [item.kind for item in items if isinstance(item, JobEvent)]


async def test_a_restart_remembers_who_wants_a_job(scene: Scene) -> None:
    job, _ = await scene.submit(0, client="a"), await scene.submit(0, client="b")
    await scene.submit(0, client="c")
    await scene.jobs.cancel(job.id, "c")
    await scene.jobs.aclose()
    after = await scene.restarted()
    assert not (await after.jobs.cancel(job.id, "a")).state.is_final
    assert (await after.jobs.cancel(job.id, "b")).state is State.CANCELLED
    await after.jobs.aclose()


async def test_a_stream_tells_what_was_and_what_comes_and_ends_with_the_last_snapshot(scene: Scene) -> None:
    job = await scene.submit(0, 1)
    following = asyncio.create_task(scene.events(job.id))
    await settle()
    scene.maker.report(0, Progress(objects_done=1, objects_total=2, bytes_done=10, bytes_total=20))
    await settle()
    scene.maker.finish(0)
    await settle()
    scene.maker.finish(1)
    items = await following
    assert kinds(items) == ["submitted", "started", "crop", "crop", "finished"]
    assert any(isinstance(item, Job) and item.crops[0].bytes_done == 10 for item in items)
    assert items[-1] == await scene.jobs.get(job.id)
    assert isinstance(items[-2], JobEvent)
    numbers = [item.seq for item in items if isinstance(item, JobEvent)]
    assert numbers == sorted(set(numbers))
    revisions = [item.revision for item in items if isinstance(item, Job)]
    assert revisions == sorted(revisions)


async def test_a_stream_goes_on_over_a_restart_without_a_gap_or_a_repetition(scene: Scene) -> None:
    job = await scene.submit(0, 1)
    scene.maker.finish(0)
    await settle()
    before = await scene.stored_kinds(job.id)
    seen = (await scene.store.events(job.id))[-1].seq
    revision = (await scene.jobs.get(job.id)).revision
    after = await scene.restarted()
    assert (await after.jobs.get(job.id)).revision > revision
    following = asyncio.create_task(after.events(job.id, seen))
    await settle()
    after.maker.finish(1)
    assert kinds(await following) == ["resumed", "crop", "finished"]
    assert [*before, "resumed", "crop", "finished"] == await after.stored_kinds(job.id)


@staged(lambda: Scene(at_once=400))
async def test_a_stream_tells_all_events_of_a_job_with_very_many(scene: Scene) -> None:
    job = await scene.submit(*range(400))
    while len(scene.maker.begun) < 400:
        await settle()
    scene.maker.finish(*range(400))
    await scene.ended(job.id)
    assert kinds(await scene.events(job.id)) == ["submitted", "started", *["crop"] * 400, "finished"]


async def test_a_restart_takes_up_unfinished_jobs_and_no_others(scene: Scene) -> None:
    ended, cut, cancelled = await scene.submit(0), await scene.submit(1, 2), await scene.submit(3)
    scene.maker.finish(0)
    await scene.ended(ended.id)
    await scene.jobs.cancel(cancelled.id)
    scene.maker.finish(1)
    await settle()
    after = await scene.restarted()
    assert after.maker.begun == [2]
    assert (await after.jobs.get(ended.id)).state is State.DONE
    assert (await after.jobs.get(cancelled.id)).state is State.CANCELLED
    assert (await after.submit(1, 2)).id == cut.id
    after.maker.finish(2)
    job = await after.ended(cut.id)
    assert (states(job), job.owner, job.created_at) == (["done", "done"], "ada", cut.created_at)


async def test_what_was_published_before_a_kill_could_be_recorded_is_not_made_again(scene: Scene) -> None:
    job = await scene.submit(0)
    scene.maker.cached.add(0)
    after = await scene.restarted()
    assert (await after.ended(job.id)).state is State.DONE
    assert after.maker.begun == []


@pytest.mark.parametrize("outcome", ["done", "failed"])
async def test_a_kill_between_the_last_crop_and_the_end_of_its_job_ends_the_job_at_the_next_start(
    scene: Scene, outcome: str
) -> None:
    job = await scene.submit(0)
    crop = ONE if outcome == "done" else ONE.model_copy(update={"state": State.FAILED, "file": None})
    await scene.store.update_job(job.id, "crop", State.RUNNING, crop)
    after = await scene.restarted()
    assert (await after.ended(job.id)).state.value == outcome
    assert after.jobs.count() == {State.QUEUED: 0, State.RUNNING: 0}
    assert await after.store.unfinished_jobs() == []
    assert await after.stored_kinds(job.id) == ["submitted", "started", "crop", "resumed", "finished"]


async def test_closing_leaves_jobs_unfinished_in_the_store_and_lets_watchers_go(scene: Scene) -> None:
    job = await scene.submit(0, 1)
    waiting = asyncio.create_task(scene.jobs.wait(job.id, None, 60))
    following = asyncio.create_task(scene.events(job.id))
    await settle()
    await scene.jobs.aclose()
    assert not (await waiting).state.is_final
    assert kinds(await following) == ["submitted", "started"]
    assert sorted(scene.maker.cancelled) == [0, 1]
    [record] = await scene.store.unfinished_jobs()
    assert (record.id, {crop.state for crop in record.crops}) == (job.id, {State.QUEUED})


@pytest.mark.parametrize("error", [StorageError("disk gone"), KeyError("job"), ValueError("unforeseen")])
async def test_a_store_that_fails_keeps_nobody_waiting(scene: Scene, error: Exception) -> None:
    ada, bob = await scene.submit(0, 1), await scene.submit(0, owner="bob")
    scene.store.error = error
    scene.maker.finish(0, 1)
    for job in (ada, bob):
        assert (await scene.ended(job.id)).state is State.DONE
    scene.store.error = None
    after = await scene.restarted()  # finds the jobs unfinished, and the crops cached
    for job in (ada, bob):
        assert (await after.ended(job.id)).state is State.DONE
    assert after.maker.begun == []


async def test_a_store_that_fails_accepts_no_job_and_none_is_begun(scene: Scene) -> None:
    scene.store.error = StorageError("disk gone")
    with pytest.raises(StorageError, match="disk gone"):
        await scene.submit(0)
    assert scene.maker.begun == []
    assert scene.jobs.count() == {State.QUEUED: 0, State.RUNNING: 0}
    scene.store.error = None
    await scene.submit(0)
    assert scene.maker.begun == [0]


async def test_a_job_can_be_cancelled_while_the_store_fails(scene: Scene) -> None:
    job = await scene.submit(0, 1, 2)
    scene.store.error = StorageError("disk gone")
    assert (await scene.jobs.cancel(job.id)).state is State.CANCELLED
