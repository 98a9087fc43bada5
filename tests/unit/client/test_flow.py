"""The ensure flow as a pure state machine: no loop, no clock, no backend."""

from __future__ import annotations

import math

import pytest

from prismcache.client.flow import (
    MAX_WAIT,
    EnsureState,
    Fail,
    Finish,
    Wait,
    advance,
    begin,
    decide,
    plan_ensure,
    reject,
)
from prismcache.errors import (
    CropCorruptError,
    EnsureTimeoutError,
    JobCancelledError,
    NoSpaceError,
    SourceDeniedError,
    WorkerError,
)
from prismcache.schema import CropProgress, Job, State
from tests.support.fake_backend import broken, crop_file, job, queued, ready, running


def feed(state: EnsureState, *jobs: Job, now: float = 0.0) -> tuple[EnsureState, list[int]]:
    news: list[int] = []
    for each in jobs:
        state, files = advance(state, each, now)
        news += [file.crop for file in files]
    return state, news


def start(crops: object = (0, 5), timeout: float | None = None) -> EnsureState:
    return begin(plan_ensure("instance", crops, timeout=timeout), 0.0)


def failure(state: EnsureState, now: float = 0.0) -> Exception:
    decision = decide(state, now)
    assert isinstance(decision, Fail)
    return decision.error


def test_each_file_is_news_once():
    state, news = feed(start(), job(running(0), queued(5)), job(ready(0), running(5)))
    assert news == [0]
    assert decide(state, 0) == Wait(MAX_WAIT)
    state, news = feed(state, job(ready(0), running(5)), job(ready(0), ready(5)))
    assert news == [5]
    assert decide(state, 0) == Finish()


def test_files_are_arranged_as_asked():
    plan = plan_ensure("instance", [5, 0, 5])
    assert [file.crop for file in plan.arrange({0: crop_file(0), 5: crop_file(5)})] == [5, 0, 5]
    everything = plan_ensure("instance", None)
    assert [file.crop for file in everything.arrange({5: crop_file(5), 0: crop_file(0)})] == [0, 5]


def test_a_job_for_all_is_over_when_the_job_is():
    state, news = feed(start(None), job(state=State.QUEUED))
    assert decide(state, 0) == Wait(MAX_WAIT)
    state, news = feed(state, job(ready(0), state=State.RUNNING))
    assert news == [0]
    assert decide(state, 0) == Wait(MAX_WAIT), "more crops may still be listed"
    state, _ = feed(state, job(ready(0)))
    assert decide(state, 0) == Finish()


def test_nothing_published_is_nothing_to_wait_for():
    state, news = feed(start(None), job(state=State.DONE))
    assert (decide(state, 0), news) == (Finish(), [])


def test_crops_of_the_job_that_were_not_asked_for_do_not_matter():
    state, news = feed(start(0), job(ready(0), broken(1, NoSpaceError("full")), running(5)))
    assert (decide(state, 0), news) == (Finish(), [0])


def test_a_failed_crop_lets_the_others_finish_then_raises():
    state, _ = feed(start(), job(broken(0, NoSpaceError("full")), running(5)))
    assert decide(state, 0) == Wait(MAX_WAIT)
    state, news = feed(state, job(broken(0, NoSpaceError("full")), ready(5)))
    assert news == [5]
    error = failure(state)
    assert isinstance(error, NoSpaceError)
    assert error.__notes__ == [f"remedy: {error.remedy}"]


def test_further_failures_are_notes_in_the_order_asked():
    denied, full = SourceDeniedError("denied"), NoSpaceError("full")
    state, _ = feed(start([5, 1, 0]), job(broken(0, full), broken(1, full), broken(5, denied)))
    error = failure(state)
    assert isinstance(error, SourceDeniedError)
    assert error.remedy == denied.remedy
    assert error.__notes__[1:] == [
        "also failed: crop instance/1: error[no_space]: full",
        "also failed: crop instance/0: error[no_space]: full",
    ]


def test_a_cancelled_crop_explains_less_than_a_failed_one():
    cancelled = CropProgress(crop=0, state=State.CANCELLED)
    state, _ = feed(start(), job(cancelled, broken(5, NoSpaceError("full")), state=State.FAILED))
    error = failure(state)
    assert isinstance(error, NoSpaceError)
    assert "instance/0: error[cancelled]" in error.__notes__[1]


@pytest.mark.parametrize(
    ("snapshot", "kind"),
    [
        (job(queued(0), state=State.CANCELLED), JobCancelledError),
        (job(running(0), state=State.FAILED), WorkerError),
        (job(CropProgress(crop=0, state=State.DONE), state=State.DONE), WorkerError),
        (job(CropProgress(crop=0, state=State.FAILED), state=State.FAILED), WorkerError),
        (job(state=State.DONE), WorkerError),
    ],
)
def test_a_job_that_ends_without_a_crop_is_an_error_not_a_wait(snapshot, kind):
    state, news = feed(start(0), snapshot)
    assert news == []
    error = failure(state)
    assert type(error) is kind
    assert "instance/0" in str(error)


def test_a_file_that_cannot_be_had_here_counts_as_failed():
    state, _ = feed(start(), job(ready(0), ready(5)))
    state = reject(state, 5, CropCorruptError("bad"))
    assert isinstance(failure(state), CropCorruptError)
    assert set(state.ready) == {0}


def test_waits_end_at_the_deadline():
    state, _ = feed(start(timeout=25), job(running(0), queued(5)), now=1)
    assert decide(state, 1) == Wait(MAX_WAIT)
    assert decide(state, 20) == Wait(5)


def test_the_deadline_counts_for_what_was_seen_not_for_how_long_the_caller_took():
    state, _ = feed(start(timeout=25), job(running(0), queued(5)), now=1)
    assert decide(state, 100) == Wait(0), "the caller's own work may have taken so long: look again first"
    late, _ = feed(state, job(ready(0), ready(5)), now=100)
    assert decide(late, 100) == Finish()
    over, _ = feed(state, job(ready(0), running(5)), now=100)
    assert isinstance(failure(over, 100), EnsureTimeoutError)


def test_a_timeout_names_what_is_ready_and_what_is_not():
    snapshot = job(ready(0), running(1), broken(5, NoSpaceError("full")))
    state, _ = feed(start([0, 1, 5], timeout=2.5), snapshot, now=3)
    error = failure(state, 3)
    assert str(error) == "1 of 3 crops were ready within 2.5 s; not yet: instance/1"
    assert error.__notes__[1:] == ["also failed: crop instance/5: error[no_space]: full"]


def test_a_timeout_before_the_crops_are_known_says_so():
    state, _ = feed(start(None, timeout=2), job(state=State.QUEUED), now=3)
    assert str(failure(state, 3)) == "the instance crops were not known within 2 s"


def test_no_timeout_is_no_deadline():
    assert start().deadline == math.inf
    assert start(timeout=math.inf).deadline == math.inf
