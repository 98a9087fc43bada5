"""A job in memory while it runs, as the clients that follow the job see it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime

from prismcache.schema import CropFile, CropProgress, Job, JobEvent, JobRequest, Progress, State
from prismcache_service.cache import CropName
from prismcache_service.engine import Outcome
from prismcache_service.store import JobRecord

_TICK_BITS = 20


class LiveJob:
    """State, progress and followers of one job.

    The revision combines the number of the latest stored event with a count of the changes since that are not stored
    (progress), so that the revision also grows across restarts of the service.
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
        """Return True if this job has the same request and owner, and is not being cancelled."""
        return (self.request, self.owner) == (request, owner) and not self.is_cancelled

    def name(self, crop: int) -> CropName:
        """Return the name of the file that the job needs for a crop."""
        return CropName.of(self.request, crop)

    def open_crops(self) -> list[int]:
        """Return the numbers of the crops that are not in a final state."""
        return [crop.crop for crop in self.crops.values() if not crop.state.is_final]

    def snapshot(self) -> Job:
        """Return the job as it is now."""
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
            context=self.request.context,
            product=self.request.product,
        )

    async def newer(self, revision: int | None, timeout: float) -> Job:  # noqa: ASYNC109 - its end is not an error
        """Wait until the revision is not `revision` (None: the present one), at most `timeout` s; return the job."""
        known = self.revision if revision is None else revision
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.revision == known and not (self.is_over or self.is_abandoned):
                    changed = self._changed
                    await changed.wait()
        return self.snapshot()

    def begin(self, crop: int) -> None:
        """Set a crop's state to running."""
        self._set(self.crops[crop].model_copy(update={"state": State.RUNNING}))

    def progress(self, crop: int, progress: Progress) -> None:
        """Set a crop's progress."""
        self._set(self.crops[crop].model_copy(update={"state": State.RUNNING, **dict(progress)}))

    def ended(self, crop: int, outcome: Outcome | None) -> CropProgress:
        """Return the crop in its final state for `outcome` (None: cancelled); the job is not changed."""
        known = self.crops[crop].model_copy(update={"waiting_for": ""})
        if outcome is None:
            return known.model_copy(update={"state": State.CANCELLED})
        if isinstance(outcome, CropFile):
            return known.model_copy(update={"state": State.DONE, "file": outcome})
        return known.model_copy(update={"state": State.FAILED, "problem": outcome})

    def state_with(self, crop: CropProgress) -> State:
        """Return the state that the job has once `crop` is recorded."""
        return state_of([crop if known.crop == crop.crop else known for known in self.crops.values()], self.state)

    def final_state(self) -> State:
        """Return the state that the job has once its end is recorded."""
        return state_of(self.crops.values(), self.state)

    def record(self, event: JobEvent) -> None:
        """Apply an event that the store has recorded."""
        self._event, self._ticks = event.seq, 0 if event.seq > self._event else self._ticks + 1
        self.state = event.state
        if event.crop is not None:
            self.crops[event.crop.crop] = event.crop
        self.wake()

    def unstored(self, kind: str, state: State, crop: CropProgress | None) -> JobEvent:
        """Return an event that the store failed to record; the revision counts the event as progress."""
        return JobEvent(seq=self._event, job=self.id, kind=kind, at=datetime.now(UTC), state=state, crop=crop)

    def abandon(self) -> None:
        """Wake the followers for the last time: this process no longer works on the job."""
        self.is_abandoned = True
        self.wake()

    def wake(self) -> None:
        """Wake all tasks that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _set(self, crop: CropProgress) -> None:
        if not self.crops[crop.crop].state.is_final:
            self.crops[crop.crop] = crop
            self._ticks += 1
            self.wake()


def job_of(stored: JobRecord) -> Job:
    """Return a stored job as clients see it."""
    return LiveJob(stored).snapshot()


def state_of(crops: Iterable[CropProgress], current: State) -> State:
    """Return a job's state: `current` until all crops are final; failed if one failed, else cancelled before done."""
    states = [crop.state for crop in crops]
    if not all(state.is_final for state in states):
        return current
    return next((final for final in (State.FAILED, State.CANCELLED) if final in states), State.DONE)
