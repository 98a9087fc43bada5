"""One job in memory: its state from its crops, its revision, and those who watch it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from prismcache.errors import SourceDeniedError
from prismcache.schema import CropProgress, JobEvent, JobRequest, Progress, Split, State
from prismcache_service.cache import CropName
from prismcache_service.jobs.live import LiveJob, job_of, state_of
from prismcache_service.store.base import JobRecord
from tests.support.job_scene import made, settle

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROBLEM = SourceDeniedError("no").to_problem()


def record(*crops: CropProgress, **changes: object) -> JobRecord:
    request = JobRequest(split=Split.INSTANCE, crops=tuple(crop.crop for crop in crops), channels=(2, 0, 2))
    return replace(JobRecord("j", "ada", request, State.QUEUED, crops, NOW, 7), **changes)


def event(job: LiveJob, seq: int, state: State = State.RUNNING, crop: CropProgress | None = None) -> JobEvent:
    return JobEvent(seq=seq, job=job.id, kind="crop", at=NOW, state=state, crop=crop)


@pytest.fixture
def job() -> LiveJob:
    return LiveJob(record(CropProgress(crop=4), CropProgress(crop=1)))


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ("", "done"), ("done", "done"), ("done done", "done"), ("done cancelled", "cancelled"),
        ("failed cancelled done", "failed"), ("done queued", "running"), ("failed running", "running"),
    ],
)  # fmt: skip
def test_a_job_is_over_when_all_its_crops_are(states: str, expected: str) -> None:
    crops = [CropProgress(crop=crop, state=State(state)) for crop, state in enumerate(states.split())]
    assert state_of(crops, State.RUNNING).value == expected


def test_a_snapshot_says_what_was_stored(job: LiveJob) -> None:
    shown = job.snapshot()
    assert (shown.id, shown.owner, shown.created_at, shown.channels) == ("j", "ada", NOW, (2, 0, 2))
    assert [crop.crop for crop in shown.crops] == [4, 1]
    assert job_of(record(CropProgress(crop=4), CropProgress(crop=1))) == shown


def test_a_file_is_named_by_its_channels_in_order_each_once(job: LiveJob) -> None:
    assert job.name(4) == CropName(Split.INSTANCE, 4, (0, 2))


def test_each_change_makes_a_greater_revision_also_after_a_restart(job: LiveJob) -> None:
    seen = [job.revision]
    job.begin(4)
    seen.append(job.revision)
    for objects in range(1000):
        job.progress(4, Progress(objects_done=objects, objects_total=1000, bytes_done=0, bytes_total=0))
    seen.append(job.revision)
    job.record(event(job, 9, crop=CropProgress(crop=4, state=State.DONE, file=made(4))))
    seen.append(job.revision)
    job.record(job.unstored("crop", State.RUNNING, CropProgress(crop=1, state=State.FAILED, problem=PROBLEM)))
    seen.append(job.revision)
    seen.append(LiveJob(record(*job.crops.values(), last_event=10)).revision)
    assert seen == sorted(set(seen))


def test_nothing_moves_a_crop_that_has_ended(job: LiveJob) -> None:
    job.record(event(job, 8, crop=CropProgress(crop=4, state=State.DONE, file=made(4))))
    revision = job.revision
    job.progress(4, Progress(objects_done=1, objects_total=2, bytes_done=3, bytes_total=4))
    job.begin(4)
    assert (job.crops[4].state, job.revision, job.open_crops()) == (State.DONE, revision, [1])


def test_what_becomes_of_a_crop_keeps_how_far_it_came(job: LiveJob) -> None:
    job.progress(4, Progress(objects_done=1, objects_total=2, bytes_done=3, bytes_total=4))
    assert job.ended(4, None) == job.crops[4].model_copy(update={"state": State.CANCELLED})
    assert job.ended(4, PROBLEM) == job.crops[4].model_copy(update={"state": State.FAILED, "problem": PROBLEM})
    done = job.ended(4, made(4))
    assert (done.state, done.file, done.bytes_done) == (State.DONE, made(4), 3)
    assert not job.state_with(done).is_final


def test_every_watcher_is_woken_by_a_change_and_none_by_looking(job: LiveJob) -> None:
    async def main() -> None:
        waiting = [asyncio.create_task(job.newer(None, 60)) for _ in range(20)]
        await settle()
        job.wake()
        await settle()
        assert not any(task.done() for task in waiting)
        job.begin(1)
        assert {(await task).revision for task in waiting} == {job.revision}

    asyncio.run(main())
