"""Jobs: accepted, shared, followed, cancelled, resumed, and ended exactly once."""

from __future__ import annotations

import asyncio
import base64

import pytest

from prismcache.errors import (
    MissingChunksError,
    PrismError,
    RequestError,
    ServiceBusyError,
    SourceDeniedError,
    UnknownCropError,
    UnknownJobError,
)
from prismcache.schema import JobRequest, Progress, Split, State
from prismcache_service.jobs import service as jobs_module
from prismcache_service.jobs.service import JobLimits
from tests.support.job_scene import Maker, Published, Scene, made, settle, staged, states

pytestmark = pytest.mark.anyio


@staged(lambda: Scene(maker=Maker([0, 1])))
async def test_what_is_cached_is_final_at_once_and_not_stored(scene: Scene) -> None:
    job = await scene.submit(0, 1)
    assert (job.state, states(job)) == (State.DONE, ["done", "done"])
    assert await scene.jobs.get(job.id) == await scene.jobs.wait(job.id, None, 60) == job
    assert await scene.events(job.id) == [job]
    assert (await scene.jobs.page()).jobs == ()
    assert set(await scene.last_used.all()) == {(Split.INSTANCE, 0), (Split.INSTANCE, 1)}


@staged(lambda: Scene(maker=Maker([9])))
async def test_a_request_for_nothing_but_unpublished_crops_fails_at_once(scene: Scene) -> None:
    scene.published.recalled = (0, 1)
    alone = await scene.submit(77, 78)
    assert (alone.state, states(alone)) == (State.FAILED, ["failed", "failed"])
    assert (
        alone.crops[0].problem
        == UnknownCropError(
            "crop 77 of split 'instance' is not published: there are crops 0, 1, 2",
            remedy="`prismcache ls --refresh` or GET /v1/crops?refresh=true lists what is published.",
        ).to_problem()
    )
    assert states(await scene.submit(0, 77, 9)) == ["queued", "queued", "done"]
    assert states(await scene.submit(2)) == ["queued"]  # published since the catalog was remembered
    assert (scene.maker.begun, scene.published.reads) == ([0, 77], 1)  # the bucket is not asked for each mistake


@staged(lambda: Scene(maker=Maker([9])))
async def test_the_start_of_an_id_names_a_job_if_no_other_begins_so(scene: Scene) -> None:
    ids = [(await scene.submit(crop)).id for crop in (0, 1, 9)]  # the last is cached, and so not stored
    for job_id in ids:
        assert await scene.jobs.whole_id(job_id) == job_id
        assert await scene.jobs.whole_id(job_id[:31]) == job_id
    with pytest.raises(RequestError, match="several jobs begin with ''"):
        await scene.jobs.whole_id("")
    with pytest.raises(UnknownJobError, match="no job 'x'"):
        await scene.jobs.whole_id("x")


async def test_a_cached_crop_that_strict_refuses_fails_at_once(scene: Scene) -> None:
    scene.maker.refused[0] = MissingChunksError("3 are absent")
    job = await scene.submit(0)
    assert job.state is State.FAILED
    assert job.crops[0].problem == MissingChunksError("3 are absent").to_problem()


@staged(lambda: Scene(maker=Maker([0])))
async def test_what_is_not_cached_is_made_and_stored_on_the_way(scene: Scene) -> None:
    job = await scene.submit(5, 0, 5)
    assert (job.state, states(job), job.owner) == (State.QUEUED, ["queued", "done"], "ada")
    assert (await scene.jobs.get(job.id)).state is State.RUNNING
    scene.maker.report(5, Progress(objects_done=1, objects_total=2, bytes_done=10, bytes_total=20))
    now = (await scene.jobs.get(job.id)).crops[0]
    assert (now.state, now.objects_done, now.bytes_total) == (State.RUNNING, 1, 20)
    assert (await scene.jobs.page()).jobs[0].crops[0] == now  # though progress is not stored
    scene.maker.finish(5)
    ended = await scene.ended(job.id)
    assert ended.state is State.DONE
    assert [crop.file for crop in ended.crops] == [made(5), made(0)]
    assert scene.maker.begun == [5]
    stored = await scene.store.job(job.id)
    assert stored is not None
    assert (stored.state, stored.crops) == (State.DONE, ended.crops)
    assert await scene.stored_kinds(job.id) == ["submitted", "started", "crop", "finished"]


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (SourceDeniedError("no"), SourceDeniedError("no")),
        (ZeroDivisionError("by zero"), PrismError("instance/crop_0.zarr: ZeroDivisionError: by zero")),
    ],
)
async def test_one_crop_that_fails_does_not_stop_the_others(
    scene: Scene, error: Exception, problem: PrismError
) -> None:
    job = await scene.submit(0, 1)
    scene.maker.fail(0, error)
    await settle()
    assert not (await scene.jobs.get(job.id)).state.is_final
    scene.maker.finish(1)
    ended = await scene.ended(job.id)
    assert (ended.state, states(ended)) == (State.FAILED, ["failed", "done"])
    assert ended.crops[0].problem == problem.to_problem()


async def test_the_same_request_joins_the_active_job_and_begins_anew_after_its_end(scene: Scene) -> None:
    first, *others = await asyncio.gather(*(scene.submit(0) for _ in range(50)))
    assert {job.id for job in others} == {first.id}
    assert scene.maker.begun == [0]
    assert (await scene.submit(0, priority=3)).id != first.id
    scene.maker.fail(0, SourceDeniedError("no"))
    await scene.ended(first.id)
    assert (await scene.submit(0)).id != first.id


async def test_another_owner_has_a_job_of_its_own_but_the_crop_is_made_once(scene: Scene) -> None:
    ada, bob = await scene.submit(0), await scene.submit(0, 1, owner="bob")
    assert ada.id != bob.id
    scene.maker.report(0, Progress(objects_done=1, objects_total=2, bytes_done=10, bytes_total=20))
    assert (await scene.jobs.get(bob.id)).crops[0].bytes_done == 10
    scene.maker.finish(0, 1)
    for job in (ada, bob):
        assert (await scene.ended(job.id)).state is State.DONE
    assert scene.maker.begun == [0, 1]


@staged(lambda: Scene(published=Published([3, 8])))
async def test_no_crops_means_every_published_one_of_the_split(scene: Scene) -> None:
    job = await scene.jobs.submit(JobRequest(split=Split.INSTANCE), "ada")
    assert [crop.crop for crop in job.crops] == [3, 8]
    with pytest.raises(UnknownCropError, match="semantic"):
        await scene.jobs.submit(JobRequest(split=Split.SEMANTIC), "ada")


@staged(lambda: Scene(limits=JobLimits(crops=2)))
async def test_too_many_crops_are_refused(scene: Scene) -> None:
    with pytest.raises(RequestError, match="3 crops are too many for one job, the limit is 2"):
        await scene.submit(0, 1, 2)
    assert len((await scene.submit(0, 1, 0, 1)).crops) == 2


@staged(lambda: Scene(limits=JobLimits(jobs_per_owner=2)))
async def test_too_many_jobs_of_one_owner_are_refused_until_one_ends(scene: Scene) -> None:
    first, _ = await scene.submit(0), await scene.submit(1)
    with pytest.raises(ServiceBusyError, match="2 of them yours"):
        await scene.submit(2)
    assert (await scene.submit(0)).id == first.id
    await scene.submit(2, owner="bob")
    await scene.jobs.cancel(first.id)
    await scene.submit(2)


@staged(lambda: Scene(maker=Maker([7]), limits=JobLimits(jobs=1)))
async def test_too_many_jobs_of_all_are_refused_but_what_is_cached_is_not(scene: Scene) -> None:
    await scene.submit(0)
    with pytest.raises(ServiceBusyError, match="1 unfinished jobs, 0 of them yours"):
        await scene.submit(1, owner="bob")
    assert (await scene.submit(7, owner="bob")).state is State.DONE


async def test_a_wait_ends_with_the_next_change_or_the_time(scene: Scene) -> None:
    job = await scene.submit(0)
    now = await scene.jobs.get(job.id)
    assert now.revision > job.revision
    assert await scene.jobs.wait(job.id, job.revision, 60) == now
    assert await scene.jobs.wait(job.id, now.revision, 0) == now
    assert await scene.jobs.wait(job.id, None, 0) == now
    waiting = [asyncio.create_task(scene.jobs.wait(job.id, known, 60)) for known in (now.revision, None)]
    await settle()
    scene.maker.report(0, Progress(objects_done=1, objects_total=2, bytes_done=3, bytes_total=4))
    newer = [await each for each in waiting]
    assert newer[0] == newer[1]
    assert newer[0].revision > now.revision
    scene.maker.finish(0)
    ended = await scene.ended(job.id)
    assert await scene.jobs.wait(job.id, ended.revision, 60) == ended


async def test_an_unknown_job_is_an_error(scene: Scene) -> None:
    for ask in (scene.jobs.get("x"), scene.jobs.wait("x", None, 60), scene.jobs.cancel("x"), scene.events("x")):
        with pytest.raises(UnknownJobError, match="'x'"):
            await ask


async def test_pages_show_every_stored_job_once_newest_first(scene: Scene) -> None:
    ids = [(await scene.submit(crop, owner="ada" if crop % 2 else "bob")).id for crop in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        page = await scene.jobs.page(cursor=cursor, limit=2)
        seen += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert [job.owner for job in (await scene.jobs.page(owner="ada")).jobs] == ["ada", "ada"]
    assert {job.id for job in (await scene.jobs.page(states=[State.RUNNING])).jobs} == set(ids[:2])
    assert (await scene.jobs.page(split=Split.SEMANTIC)).jobs == ()


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", '["2026-01-01T00:00:00+00:00"]', '["2026-01-01T00:00:00", "no zone"]', '[1, "x"]', "[[[[", "{}",
     '["2026-01-01T00:00:00+00:00", 1]', '{"a": 1, "b": 2}', "1e999"],
)  # fmt: skip
@pytest.mark.parametrize("encoded", [True, False])
async def test_a_cursor_that_is_none_of_ours_is_refused(scene: Scene, text: str, encoded: bool) -> None:
    cursor = base64.urlsafe_b64encode(text.encode()).decode() if encoded else text
    with pytest.raises(RequestError, match="cursor"):
        await scene.jobs.page(cursor=cursor)


async def test_cancelling_keeps_what_is_ready_and_stops_the_rest(scene: Scene) -> None:
    job = await scene.submit(0, 1, 2, 3)
    scene.maker.finish(0)
    await settle()
    cancelled = await scene.jobs.cancel(job.id)
    assert (cancelled.state, states(cancelled)) == (State.CANCELLED, ["done", *["cancelled"] * 3])
    assert sorted(scene.maker.cancelled) == [1, 2]
    assert scene.jobs.count_crops() == (0, 0)
    assert await scene.jobs.cancel(job.id) == cancelled
    assert await scene.stored_kinds(job.id) == ["submitted", "started", *["crop"] * 4, "finished"]


@pytest.mark.parametrize(
    ("submitted", "cancelled"),
    [(["a", "b"], ["a", "a", "b"]), (["", ""], [""]), (["a", "a"], ["a"]), (["a", "b"], [None])],
)
async def test_a_job_stops_once_no_client_wants_it(
    scene: Scene, submitted: list[str], cancelled: list[str | None]
) -> None:
    [job_id] = {(await scene.submit(0, client=client)).id for client in submitted}
    *early, last = cancelled
    for client in early:  # "a" twice: the first response was lost
        assert not (await scene.jobs.cancel(job_id, client)).state.is_final
    assert scene.maker.cancelled == []
    assert (await scene.jobs.cancel(job_id, last)).state is State.CANCELLED
    assert scene.maker.cancelled == [0]


async def test_a_job_that_is_being_stopped_is_joined_by_nobody(scene: Scene) -> None:
    job = await scene.submit(0)
    scene.store.gate.clear()
    cancelling = asyncio.create_task(scene.jobs.cancel(job.id))
    await settle()
    submitting = asyncio.create_task(scene.submit(0))
    await settle()
    scene.store.gate.set()
    await cancelling
    assert (await submitting).id != job.id


async def test_cancelling_leaves_a_crop_that_another_job_wants(scene: Scene) -> None:
    ada, bob = await scene.submit(0, 1), await scene.submit(0, owner="bob")
    await scene.jobs.cancel(ada.id)
    assert scene.maker.cancelled == [1]
    scene.maker.finish(0)
    assert (await scene.ended(bob.id)).state is State.DONE
    assert (await scene.jobs.get(ada.id)).state is State.CANCELLED


async def test_a_job_that_is_cancelled_while_it_begins_begins_no_more(scene: Scene) -> None:
    await scene.submit(0, owner="bob")
    submitting = asyncio.create_task(scene.submit(0, 1))
    while not (mine := (await scene.jobs.page(owner="ada")).jobs):  # noqa: ASYNC110 - nobody tells of a submission
        await asyncio.sleep(0)
    scene.store.gate.clear()  # the job learns that crop 0 is under way, which is stored
    await settle()
    cancelling = asyncio.create_task(scene.jobs.cancel(mine[0].id))
    await settle()
    scene.store.gate.set()
    assert states(await cancelling) == ["cancelled", "cancelled"]
    await submitting
    assert scene.maker.begun == [0]
    assert scene.jobs.count_crops() == (0, 1)


@staged(lambda: Scene(at_once=8))
async def test_several_crops_that_end_together_end_the_job_once(scene: Scene) -> None:
    job = await scene.submit(*range(8))
    scene.maker.finish(*range(8))
    assert states(await scene.ended(job.id)) == ["done"] * 8
    await settle()
    assert await scene.stored_kinds(job.id) == ["submitted", "started", *["crop"] * 8, "finished"]
    assert scene.jobs.count() == {State.QUEUED: 0, State.RUNNING: 0}


@staged(lambda: Scene(maker=Maker([7])))
async def test_crops_of_unfinished_jobs_are_protected_and_for_a_moment_those_of_ended_ones(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(jobs_module, "monotonic", lambda: now[0])
    await scene.submit(7)  # a hit: its client takes a lease in a moment
    job = await scene.submit(0, 7)
    now[0] += 1000
    assert scene.jobs.protected() == {(Split.INSTANCE, 0), (Split.INSTANCE, 7)}
    scene.maker.finish(0)
    await scene.ended(job.id)
    now[0] += 59
    assert scene.jobs.protected() == {(Split.INSTANCE, 0), (Split.INSTANCE, 7)}
    now[0] += 2
    assert scene.jobs.protected() == set()


async def test_what_is_going_on_is_counted(scene: Scene) -> None:
    for crop in range(4):
        await scene.submit(crop, owner=str(crop))
    assert scene.jobs.count() == {State.QUEUED: 2, State.RUNNING: 2}
    assert scene.jobs.count_crops() == (2, 2)
