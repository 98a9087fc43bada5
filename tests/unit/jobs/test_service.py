"""Jobs: accepted, shared, followed, cancelled, resumed, and ended exactly once."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import timedelta

import pytest

from prismcache.errors import (
    MissingChunksError,
    RequestError,
    ServiceBusyError,
    SourceDeniedError,
    StorageError,
    UnknownCropError,
    UnknownJobError,
)
from prismcache.schema import CropProgress, Job, JobEvent, JobRequest, Progress, Split, State
from prismcache_service.jobs import service as jobs_module
from prismcache_service.jobs.service import JobLimits
from tests.support.job_scene import Maker, Published, Scene, made, play, settle

ONE = CropProgress(crop=0, state=State.DONE, file=made(0))


def states(job: Job) -> list[str]:
    return [crop.state.value for crop in job.crops]


def kinds(items: list[JobEvent | Job]) -> list[str]:
    return [item.kind for item in items if isinstance(item, JobEvent)]


@pytest.fixture(autouse=True)
def no_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "_TICK_S", 0)


def test_what_is_cached_is_answered_at_once_and_stored_nowhere() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0, 1)
        assert (job.state, states(job)) == (State.DONE, ["done", "done"])
        assert await scene.jobs.get(job.id) == await scene.jobs.wait(job.id, None, 60) == job
        assert await scene.events(job.id) == [job]
        assert (await scene.jobs.page()).jobs == ()
        assert set(await scene.last_used.all()) == {(Split.INSTANCE, 0), (Split.INSTANCE, 1)}

    play(story, lambda: Scene(maker=Maker([0, 1])))


def test_a_request_for_nothing_but_unpublished_crops_fails_at_once() -> None:
    async def story(scene: Scene) -> None:
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

    play(story, lambda: Scene(maker=Maker([9])))


def test_the_start_of_an_id_names_a_job_if_no_other_begins_so() -> None:
    async def story(scene: Scene) -> None:
        ids = [(await scene.submit(crop)).id for crop in (0, 1, 9)]  # the last is cached, and so not stored
        for job_id in ids:
            assert await scene.jobs.whole_id(job_id) == job_id
            assert await scene.jobs.whole_id(job_id[:31]) == job_id
        with pytest.raises(RequestError, match="several jobs begin with ''"):
            await scene.jobs.whole_id("")
        with pytest.raises(UnknownJobError, match="no job 'x'"):
            await scene.jobs.whole_id("x")

    play(story, lambda: Scene(maker=Maker([9])))


def test_a_cached_crop_that_strict_refuses_fails_at_once() -> None:
    async def story(scene: Scene) -> None:
        scene.maker.refused[0] = MissingChunksError("3 are absent")
        job = await scene.submit(0)
        assert job.state is State.FAILED
        assert job.crops[0].problem == MissingChunksError("3 are absent").to_problem()

    play(story)


def test_what_is_not_cached_is_made_and_stored_on_the_way() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(5, 0, 5)
        assert (job.state, states(job), job.owner) == (State.QUEUED, ["queued", "done"], "ada")
        assert (await scene.jobs.get(job.id)).state is State.RUNNING
        scene.maker.report(5, Progress(objects_done=1, objects_total=2, bytes_done=10, bytes_total=20))
        now = (await scene.jobs.get(job.id)).crops[0]
        assert (now.state, now.objects_done, now.bytes_total) == (State.RUNNING, 1, 20)
        scene.maker.finish(5)
        ended = await scene.ended(job.id)
        assert ended.state is State.DONE
        assert [crop.file for crop in ended.crops] == [made(5), made(0)]
        assert scene.maker.begun == [5]
        stored = await scene.store.job(job.id)
        assert stored is not None
        assert (stored.state, stored.crops) == (State.DONE, ended.crops)
        assert await scene.stored_kinds(job.id) == ["submitted", "started", "crop", "finished"]

    play(story, lambda: Scene(maker=Maker([0])))


def test_one_crop_that_fails_does_not_stop_the_others() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0, 1)
        scene.maker.fail(0, SourceDeniedError("no"))
        await settle()
        assert not (await scene.jobs.get(job.id)).state.is_final
        scene.maker.finish(1)
        ended = await scene.ended(job.id)
        assert (ended.state, states(ended)) == (State.FAILED, ["failed", "done"])
        assert ended.crops[0].problem == SourceDeniedError("no").to_problem()

    play(story)


def test_the_same_request_joins_the_active_job_and_begins_anew_after_its_end() -> None:
    async def story(scene: Scene) -> None:
        first, second = await scene.submit(0), await scene.submit(0)
        assert first.id == second.id
        assert (await scene.submit(0, priority=3)).id != first.id
        scene.maker.fail(0, SourceDeniedError("no"))
        await scene.ended(first.id)
        assert (await scene.submit(0)).id != first.id

    play(story)


def test_many_equal_requests_at_the_same_instant_are_one_job() -> None:
    async def story(scene: Scene) -> None:
        jobs = await asyncio.gather(*(scene.submit(0) for _ in range(50)))
        assert len({job.id for job in jobs}) == 1
        assert scene.maker.begun == [0]

    play(story)


def test_another_owner_has_a_job_of_its_own_but_the_crop_is_made_once() -> None:
    async def story(scene: Scene) -> None:
        ada, bob = await scene.submit(0), await scene.submit(0, 1, owner="bob")
        assert ada.id != bob.id
        scene.maker.report(0, Progress(objects_done=1, objects_total=2, bytes_done=10, bytes_total=20))
        assert (await scene.jobs.get(bob.id)).crops[0].bytes_done == 10
        scene.maker.finish(0, 1)
        for job in (ada, bob):
            assert (await scene.ended(job.id)).state is State.DONE
        assert scene.maker.begun == [0, 1]

    play(story)


def test_no_crops_means_every_published_one_of_the_split() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.jobs.submit(JobRequest(split=Split.INSTANCE), "ada")
        assert [crop.crop for crop in job.crops] == [3, 8]
        with pytest.raises(UnknownCropError, match="semantic"):
            await scene.jobs.submit(JobRequest(split=Split.SEMANTIC), "ada")

    play(story, lambda: Scene(published=Published([3, 8])))


def test_too_many_crops_are_refused() -> None:
    async def story(scene: Scene) -> None:
        with pytest.raises(RequestError, match="3 crops are too many for one job, the limit is 2"):
            await scene.submit(0, 1, 2)
        assert len((await scene.submit(0, 1, 0, 1)).crops) == 2

    play(story, lambda: Scene(limits=JobLimits(crops=2)))


def test_too_many_jobs_of_one_owner_are_refused_until_one_ends() -> None:
    async def story(scene: Scene) -> None:
        first, _ = await scene.submit(0), await scene.submit(1)
        with pytest.raises(ServiceBusyError, match="2 of them yours"):
            await scene.submit(2)
        assert (await scene.submit(0)).id == first.id
        await scene.submit(2, owner="bob")
        await scene.jobs.cancel(first.id)
        await scene.submit(2)

    play(story, lambda: Scene(limits=JobLimits(jobs_per_owner=2)))


def test_too_many_jobs_of_all_are_refused_but_what_is_cached_is_not() -> None:
    async def story(scene: Scene) -> None:
        await scene.submit(0)
        with pytest.raises(ServiceBusyError, match="1 unfinished jobs, 0 of them yours"):
            await scene.submit(1, owner="bob")
        assert (await scene.submit(7, owner="bob")).state is State.DONE

    play(story, lambda: Scene(maker=Maker([7]), limits=JobLimits(jobs=1)))


def test_a_wait_ends_with_the_next_change_or_the_time() -> None:
    async def story(scene: Scene) -> None:
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

    play(story)


def test_an_unknown_job_is_said_so() -> None:
    async def story(scene: Scene) -> None:
        for ask in (scene.jobs.get("x"), scene.jobs.wait("x", None, 60), scene.jobs.cancel("x"), scene.events("x")):
            with pytest.raises(UnknownJobError, match="'x'"):
                await ask

    play(story)


def test_pages_show_every_stored_job_once_newest_first() -> None:
    async def story(scene: Scene) -> None:
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

    play(story)


def test_a_page_shows_progress_that_is_not_stored() -> None:
    async def story(scene: Scene) -> None:
        await scene.submit(0)
        scene.maker.report(0, Progress(objects_done=1, objects_total=2, bytes_done=3, bytes_total=4))
        assert (await scene.jobs.page()).jobs[0].crops[0].objects_done == 1

    play(story)


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", '["2026-01-01T00:00:00+00:00"]', '["2026-01-01T00:00:00", "no zone"]', '[1, "x"]', "[[[[", "{}",
     '["2026-01-01T00:00:00+00:00", 1]', '{"a": 1, "b": 2}', "1e999"],
)  # fmt: skip
@pytest.mark.parametrize("encoded", [True, False])
def test_a_cursor_that_is_none_of_ours_is_refused(text: str, encoded: bool) -> None:
    async def story(scene: Scene) -> None:
        cursor = base64.urlsafe_b64encode(text.encode()).decode() if encoded else text
        with pytest.raises(RequestError, match="cursor"):
            await scene.jobs.page(cursor=cursor)

    play(story)


def test_a_cursor_of_the_last_day_of_the_calendar_is_no_failure() -> None:
    async def story(scene: Scene) -> None:
        text = json.dumps(["9999-12-31T23:59:59-12:00", "x"])
        await scene.submit(0)
        assert len((await scene.jobs.page(cursor=base64.urlsafe_b64encode(text.encode()).decode())).jobs) == 1

    play(story)


def test_cancelling_stops_what_runs_and_what_waits() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0, 1, 2)
        cancelled = await scene.jobs.cancel(job.id)
        assert (cancelled.state, states(cancelled)) == (State.CANCELLED, ["cancelled"] * 3)
        assert sorted(scene.maker.cancelled) == [0, 1]
        assert scene.jobs.count_crops() == (0, 0)
        assert await scene.jobs.cancel(job.id) == cancelled
        assert await scene.stored_kinds(job.id) == ["submitted", "started", "crop", "crop", "crop", "finished"]

    play(story)


def test_cancelling_keeps_what_was_ready() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0, 1)
        scene.maker.finish(0)
        await settle()
        assert states(await scene.jobs.cancel(job.id)) == ["done", "cancelled"]

    play(story)


def test_a_job_that_two_clients_submitted_is_stopped_by_the_second_who_cancels() -> None:
    async def story(scene: Scene) -> None:
        job, same = await scene.submit(0, client="a"), await scene.submit(0, client="b")
        assert same.id == job.id
        for _ in range(2):  # also where an answer was lost and the request comes again
            assert not (await scene.jobs.cancel(job.id, "a")).state.is_final
        assert scene.maker.cancelled == []
        assert (await scene.jobs.cancel(job.id, "b")).state is State.CANCELLED
        assert scene.maker.cancelled == [0]

    play(story)


@pytest.mark.parametrize("client", ["", "a"])
def test_a_client_that_asks_again_counts_once(client: str) -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0, client=client)
        assert (await scene.submit(0, client=client)).id == job.id
        assert (await scene.jobs.cancel(job.id, client)).state is State.CANCELLED

    play(story)


def test_who_names_no_client_stops_a_job_whoever_wants_it() -> None:
    async def story(scene: Scene) -> None:
        job, _ = await scene.submit(0, client="a"), await scene.submit(0, client="b")
        assert (await scene.jobs.cancel(job.id)).state is State.CANCELLED

    play(story)


def test_a_restart_remembers_who_wants_a_job() -> None:
    async def story(scene: Scene) -> None:
        job, _ = await scene.submit(0, client="a"), await scene.submit(0, client="b")
        await scene.submit(0, client="c")
        await scene.jobs.cancel(job.id, "c")
        await scene.jobs.aclose()
        after = await scene.restarted()
        assert not (await after.jobs.cancel(job.id, "a")).state.is_final
        assert (await after.jobs.cancel(job.id, "b")).state is State.CANCELLED
        await after.jobs.aclose()

    play(story)


def test_a_job_that_is_being_stopped_is_joined_by_nobody() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0)
        scene.store.gate.clear()
        cancelling = asyncio.create_task(scene.jobs.cancel(job.id))
        await settle()
        submitting = asyncio.create_task(scene.submit(0))
        await settle()
        scene.store.gate.set()
        await cancelling
        assert (await submitting).id != job.id

    play(story)


def test_cancelling_leaves_a_crop_that_another_job_wants() -> None:
    async def story(scene: Scene) -> None:
        ada, bob = await scene.submit(0, 1), await scene.submit(0, owner="bob")
        await scene.jobs.cancel(ada.id)
        assert scene.maker.cancelled == [1]
        scene.maker.finish(0)
        assert (await scene.ended(bob.id)).state is State.DONE
        assert (await scene.jobs.get(ada.id)).state is State.CANCELLED

    play(story)


def test_a_job_that_is_cancelled_while_it_begins_begins_no_more() -> None:
    async def story(scene: Scene) -> None:
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

    play(story)


def test_several_crops_that_begin_together_start_the_job_once() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0, 1, 2)
        assert await scene.stored_kinds(job.id) == ["submitted", "started"]

    play(story, lambda: Scene(at_once=3))


def test_several_crops_that_end_together_end_the_job_once() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(*range(8))
        scene.maker.finish(*range(8))
        assert states(await scene.ended(job.id)) == ["done"] * 8
        await settle()
        assert await scene.stored_kinds(job.id) == ["submitted", "started", *["crop"] * 8, "finished"]
        assert scene.jobs.count() == {State.QUEUED: 0, State.RUNNING: 0}

    play(story, lambda: Scene(at_once=8))


def test_a_stream_tells_what_was_and_what_comes_and_ends_with_the_last_snapshot() -> None:
    async def story(scene: Scene) -> None:
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

    play(story)


def test_a_stream_goes_on_after_an_event() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0)
        scene.maker.finish(0)
        last = await scene.ended(job.id)
        everything = await scene.events(job.id)
        recorded = [item for item in everything if isinstance(item, JobEvent)]
        for index, event in enumerate(recorded):
            assert await scene.events(job.id, event.seq) == [*recorded[index + 1 :], last]

    play(story)


def test_a_stream_goes_on_over_a_restart_without_a_gap_or_a_repetition() -> None:
    async def story(scene: Scene) -> None:
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

    play(story)


def test_a_stream_tells_all_events_of_a_job_with_very_many() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(*range(400))
        while len(scene.maker.begun) < 400:
            await settle()
        scene.maker.finish(*range(400))
        await scene.ended(job.id)
        assert kinds(await scene.events(job.id)) == ["submitted", "started", *["crop"] * 400, "finished"]

    play(story, lambda: Scene(at_once=400))


def test_a_restart_takes_up_unfinished_jobs_and_no_others() -> None:
    async def story(scene: Scene) -> None:
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
        after.maker.finish(2)
        job = await after.ended(cut.id)
        assert (states(job), job.owner, job.created_at) == (["done", "done"], "ada", cut.created_at)

    play(story)


def test_what_was_published_before_a_kill_could_be_recorded_is_not_made_again() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0)
        scene.maker.cached.add(0)
        after = await scene.restarted()
        assert (await after.ended(job.id)).state is State.DONE
        assert after.maker.begun == []

    play(story)


@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_a_kill_between_the_last_crop_and_the_end_of_its_job_ends_the_job_at_the_next_start(outcome: str) -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0)
        crop = ONE if outcome == "done" else ONE.model_copy(update={"state": State.FAILED, "file": None})
        await scene.store.update_job(job.id, "crop", State.RUNNING, crop)
        after = await scene.restarted()
        assert (await after.ended(job.id)).state.value == outcome
        assert after.jobs.count() == {State.QUEUED: 0, State.RUNNING: 0}
        assert await after.store.unfinished_jobs() == []
        assert await after.stored_kinds(job.id) == ["submitted", "started", "crop", "resumed", "finished"]

    play(story)


def test_the_same_request_after_a_restart_joins_the_resumed_job() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0)
        after = await scene.restarted()
        assert (await after.submit(0)).id == job.id

    play(story)


def test_closing_leaves_jobs_unfinished_in_the_store_and_lets_watchers_go() -> None:
    async def story(scene: Scene) -> None:
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

    play(story)


@pytest.mark.parametrize("error", [StorageError("disk gone"), KeyError("job"), ValueError("unforeseen")])
def test_a_store_that_fails_keeps_nobody_waiting(error: Exception) -> None:
    async def story(scene: Scene) -> None:
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

    play(story)


def test_a_store_that_fails_accepts_no_job_and_none_is_begun() -> None:
    async def story(scene: Scene) -> None:
        scene.store.error = StorageError("disk gone")
        with pytest.raises(StorageError, match="disk gone"):
            await scene.submit(0)
        assert scene.maker.begun == []
        assert scene.jobs.count() == {State.QUEUED: 0, State.RUNNING: 0}
        scene.store.error = None
        await scene.submit(0)
        assert scene.maker.begun == [0]

    play(story)


def test_a_job_can_be_cancelled_while_the_store_fails() -> None:
    async def story(scene: Scene) -> None:
        job = await scene.submit(0, 1, 2)
        scene.store.error = StorageError("disk gone")
        assert (await scene.jobs.cancel(job.id)).state is State.CANCELLED

    play(story)


def test_crops_of_unfinished_jobs_are_protected_and_for_a_moment_those_of_ended_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(jobs_module, "monotonic", lambda: now[0])

    async def story(scene: Scene) -> None:
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

    play(story, lambda: Scene(maker=Maker([7])))


def test_forgetting_takes_ended_jobs_alone() -> None:
    async def story(scene: Scene) -> None:
        ended, active = await scene.submit(0), await scene.submit(1)
        scene.maker.finish(0)
        await scene.ended(ended.id)
        assert await scene.jobs.forget(timedelta(days=1)) == 0
        assert await scene.jobs.forget(timedelta(seconds=-1)) == 1
        assert [job.id for job in (await scene.jobs.page()).jobs] == [active.id]

    play(story)


def test_what_is_going_on_is_counted() -> None:
    async def story(scene: Scene) -> None:
        for crop in range(4):
            await scene.submit(crop, owner=str(crop))
        assert scene.jobs.count() == {State.QUEUED: 2, State.RUNNING: 2}
        assert scene.jobs.count_crops() == (2, 2)

    play(story)
