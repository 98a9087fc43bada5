"""A job while it runs, in memory: what its watchers see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime

from prismcache.schema import CropFile, CropProgress, Job, JobEvent, JobRequest, State
from prismcache_service.cache.cache import CropName
from prismcache_service.jobs.flights import Outcome
from prismcache_service.pipeline.progress import Progress
from prismcache_service.store.base import JobRecord

_TICK_BITS = 20


class LiveJob:
    """State, progress and watchers of one job.

    The revision is the number of the latest recorded event, then a count of what was not recorded (progress), so that
    it grows over restarts of the service too.
    """

    def __init__(self, stored: JobRecord) -> None:
        self.id, self.owner, self.request = stored.id, stored.owner, stored.request
        self.crops = {crop.crop: crop for crop in stored.crops}
        self.state = state_of(stored.crops, stored.state)
        self._created_at = stored.created_at
        self._event, self._ticks = stored.last_event, 0
        self._changed = asyncio.Event()
        self.recording = asyncio.Lock()
        self.submitters = set(stored.submitters)
        self.ended_at = 0.0  # monotonic, in s
        self.is_abandoned = self.is_cancelled = False

    @property
    def revision(self) -> int:
        return (self._event << _TICK_BITS) + self._ticks

    @property
    def is_over(self) -> bool:
        return self.state.is_final

    def can_serve(self, request: JobRequest, owner: str) -> bool:
        """True if this job does what `request` asks, and is not being stopped."""
        return (self.request, self.owner) == (request, owner) and not self.is_cancelled

    def name(self, crop: int) -> CropName:
        """The file that the job wants of a crop."""
        channels = self.request.channels
        return CropName(self.request.split, crop, None if channels is None else tuple(sorted(set(channels))))

    def open_crops(self) -> list[int]:
        """The crops that are not in a final state."""
        return [crop.crop for crop in self.crops.values() if not crop.state.is_final]

    def snapshot(self) -> Job:
        """The job as it is now."""
        return Job(
            id=self.id,
            revision=self.revision,
            state=self.state,
            split=self.request.split,
            channels=self.request.channels,
            crops=tuple(self.crops.values()),
            strict=self.request.strict,
            priority=self.request.priority,
            owner=self.owner,
            created_at=self._created_at,
        )

    async def newer(self, revision: int | None, timeout: float) -> Job:  # noqa: ASYNC109 - a long poll has no error
        """A snapshot other than `revision` (None: than now), or the same after `timeout` seconds."""
        known = self.revision if revision is None else revision
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.revision == known and not (self.is_over or self.is_abandoned):
                    changed = self._changed
                    await changed.wait()
        return self.snapshot()

    def begin(self, crop: int) -> None:
        """A crop is being made."""
        self._set(self.crops[crop].model_copy(update={"state": State.RUNNING}))

    def progress(self, crop: int, progress: Progress) -> None:
        """A crop has come further."""
        self._set(self.crops[crop].model_copy(update={"state": State.RUNNING, **progress.__dict__}))

    def ended(self, crop: int, outcome: Outcome | None) -> CropProgress:
        """What a crop is once its outcome is recorded (None: cancelled)."""
        known = self.crops[crop]
        if outcome is None:
            return known.model_copy(update={"state": State.CANCELLED})
        if isinstance(outcome, CropFile):
            return known.model_copy(update={"state": State.DONE, "file": outcome})
        return known.model_copy(update={"state": State.FAILED, "problem": outcome})

    def state_with(self, crop: CropProgress) -> State:
        """The job's state once `crop` is recorded."""
        return state_of([crop if known.crop == crop.crop else known for known in self.crops.values()], self.state)

    def final_state(self) -> State:
        """The job's state once its end is recorded."""
        return state_of(self.crops.values(), self.state)

    def record(self, event: JobEvent) -> None:
        """Take over what the store has recorded."""
        self._event, self._ticks = event.seq, 0 if event.seq > self._event else self._ticks + 1
        self.state = event.state
        if event.crop is not None:
            self.crops[event.crop.crop] = event.crop
        self.wake()

    def unstored(self, kind: str, state: State, crop: CropProgress | None) -> JobEvent:
        """An event that the store failed to record; it counts as progress does."""
        return JobEvent(seq=self._event, job=self.id, kind=kind, at=datetime.now(UTC), state=state, crop=crop)

    def abandon(self) -> None:
        """Nobody works on the job any more: its watchers need not wait."""
        self.is_abandoned = True
        self.wake()

    def wake(self) -> None:
        """Let every watcher look."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _set(self, crop: CropProgress) -> None:
        if not self.crops[crop.crop].state.is_final:
            self.crops[crop.crop] = crop
            self._ticks += 1
            self.wake()


def job_of(stored: JobRecord) -> Job:
    """A stored job as its watchers see it."""
    return LiveJob(stored).snapshot()


def state_of(crops: Iterable[CropProgress], current: State) -> State:
    """The state of a job from those of its crops: final when all are; failed before cancelled before done."""
    states = [crop.state for crop in crops]
    if not all(state.is_final for state in states):
        return current
    return next((final for final in (State.FAILED, State.CANCELLED) if final in states), State.DONE)
