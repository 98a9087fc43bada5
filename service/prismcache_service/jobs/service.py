"""Jobs: one request for several crops. Each state is stored before any client sees it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic

from prismcache.errors import PrismError, RequestError, ServiceBusyError, UnknownJobError
from prismcache.schema import CropProgress, Job, JobEvent, JobPage, JobRequest, Split, State
from prismcache_service.crops import CatalogService, EnsureService, LastUsed
from prismcache_service.engine import Outcome
from prismcache_service.jobs.flights import Flights, Wish
from prismcache_service.jobs.history import Observer
from prismcache_service.jobs.live import LiveJob, job_of
from prismcache_service.store import JobRecord, JobStore

_log = logging.getLogger(__name__)

_RECENT = 1000  # ended jobs that are kept in memory
_GRACE_S = 60.0  # crops of a job that has ended are kept for so long, until its client has a retention lease
_TICK_S = 0.1  # a stream shows progress at most this often
_WHOLE_ID = 32  # characters of a job's id


@dataclass(frozen=True)
class JobLimits:
    """Bounds on unfinished jobs and on the crops of one."""

    jobs: int = 10_000
    jobs_per_owner: int = 10_000
    crops: int = 1000


class JobService:
    """Accepts jobs, has their crops made, and reports their states.

    It makes `at_once` crops at the same time. Methods with a job's id raise `UnknownJobError` if there is no such job.
    """

    def __init__(
        self,
        ensure: EnsureService,
        catalog: CatalogService,
        store: JobStore,
        last_used: LastUsed,
        *,
        at_once: int,
        limits: JobLimits,
        observer: Observer,
    ) -> None:
        self._ensure, self._catalog, self._store = ensure, catalog, store
        self._last_used, self._limits, self._observer = last_used, limits, observer
        self._flights = Flights(ensure, at_once, observer, self._started, self._record_crop)
        self._live: dict[str, LiveJob] = {}
        self._recent: OrderedDict[str, LiveJob] = OrderedDict()
        self._accepting = asyncio.Lock()
        self._orders = itertools.count()

    async def start(self) -> None:
        """Resume every unfinished job of the store."""
        for record in await self._store.unfinished_jobs():
            job = LiveJob(record)
            self._live[record.id] = job
            await self._record(job, "resumed", record.state)
            async with job.recording:
                await self._end_if_complete(job)  # the service was killed between the job's last crop and its end
            await self._take_up(job)

    async def aclose(self) -> None:
        """Stop working. Unfinished jobs stay unfinished in the store, and the next start resumes them."""
        await self._flights.aclose()
        for job in self._live.values():
            job.abandon()

    async def submit(self, request: JobRequest, owner: str = "", client: str = "") -> Job:
        """Start a job for a request, or join the owner's active job for the same request; `owner` names the token.

        A job that is final at once (every crop is cached, or known not to be published) is kept in memory for a while,
        but not stored. A `client` that submits again because the first response was lost counts once; all clients
        without a name count as one.

        Raises
        ------
        UnknownCropError
            If all crops are requested and none is published.
        UnknownSplitError, RequestError
            If the catalog has no such split or product, or the request has too many crops.
        ServiceBusyError
            If there are too many unfinished jobs.
        SourceError
            If all crops are requested, and the bucket that would list them cannot be read.
        """
        request = self._catalog.splits.checked(request)
        crops = await self._catalog.crops_of(request)
        if len(crops) > self._limits.crops:
            raise RequestError(f"{len(crops)} crops are too many for one job, the limit is {self._limits.crops}")
        found = await self._catalog.fail_unpublished(request.split, await self._ensure.find_all(request, crops))
        self._last_used.note(request.split, crops)
        hits = sum(crop.state is State.DONE for crop in found)
        self._observer.crops_found(hits=hits, misses=len(found) - hits)
        record = JobRecord(
            uuid.uuid4().hex, owner, request, State.QUEUED, tuple(found), datetime.now(UTC), submitters=(client,)
        )
        job = LiveJob(record)
        return self._remember(job) if job.is_over else await self._accept(job, record, client)

    async def _accept(self, job: LiveJob, record: JobRecord, client: str) -> Job:
        """Store a job and queue its crops, or join the active job for the same request."""
        async with self._accepting:
            active = next((live for live in self._live.values() if live.can_serve(job.request, job.owner)), None)
            if active is not None:
                if client not in active.submitters:
                    active.submitters.add(client)
                    await self._store_submitters(active)
                return active.snapshot()
            mine = sum(live.owner == job.owner for live in self._live.values())
            if len(self._live) >= self._limits.jobs or mine >= self._limits.jobs_per_owner:
                raise ServiceBusyError(f"there are {len(self._live)} unfinished jobs, {mine} of them yours")
            job.record(await self._store.add_job(record))
            self._live[job.id] = job
        await self._take_up(job)
        return job.snapshot()

    async def get(self, job_id: str) -> Job:
        """Return a job as it is now."""
        known = self._known(job_id)
        if known is not None:
            return known.snapshot()
        record = await self._store.job(job_id)
        if record is None:
            raise UnknownJobError(f"there is no job {job_id!r}")
        return job_of(record)

    async def whole_id(self, start: str) -> str:
        """Return the id of the job whose id begins with `start`.

        Raise `RequestError` if there are several.
        """
        if len(start) >= _WHOLE_ID:
            return start
        found = {job_id for job_id in (*self._live, *self._recent) if job_id.startswith(start)}
        found.update(await self._store.job_ids(start, limit=2))
        if not found:
            raise UnknownJobError(f"there is no job {start!r}")
        if len(found) > 1:
            raise RequestError(f"several jobs begin with {start!r}", remedy="Give more characters of the job's id.")
        return found.pop()

    async def wait(self, job_id: str, revision: int | None, timeout: float) -> Job:  # noqa: ASYNC109 - a long poll
        """Wait until the revision is not `revision` (None: the present one), at most `timeout` s; return the job."""
        known = self._known(job_id)
        if known is None:
            return await self.get(job_id)
        return await known.newer(revision, timeout)

    async def page(
        self,
        *,
        states: Collection[State] = (),
        split: Split | None = None,
        owner: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """Return stored jobs, newest first; `cursor` is the `next_cursor` of the page before.

        Raise `RequestError` if this service did not make the cursor.
        """
        before = None if cursor is None else _parse_cursor(cursor)
        found = await self._store.jobs(states=states, split=split, owner=owner, before=before, limit=limit + 1)
        jobs = tuple(known.snapshot() if (known := self._known(r.id)) else job_of(r) for r in found[:limit])
        if len(found) <= limit:
            return JobPage(jobs=jobs)
        last = json.dumps([found[limit - 1].created_at.isoformat(), found[limit - 1].id])
        return JobPage(jobs=jobs, next_cursor=base64.urlsafe_b64encode(last.encode()).decode())

    async def cancel(self, job_id: str, client: str | None = None) -> Job:
        """Cancel a job, or end one client's wish for it; when no client wants the job any more, it is cancelled.

        Crops that another job needs are made all the same. A job in a final state does not change.

        `client` is named as in `submit`; None cancels the job for all clients.
        """
        job = self._live.get(job_id)
        if job is None:
            return await self.get(job_id)
        if client is not None and job.submitters - {client}:
            if client in job.submitters:
                job.submitters.remove(client)
                await self._store_submitters(job)
            return job.snapshot()
        job.is_cancelled = True
        await self._flights.leave(job)
        for crop in job.open_crops():
            await self._record_crop(job, crop, None)
        return job.snapshot()

    async def events(self, job_id: str, after: int = 0) -> AsyncGenerator[JobEvent | Job, None]:
        """Yield the stored events of a job after event `after`, then new ones until the job is final.

        Snapshots between the stored events show progress; the last item is the final snapshot.
        """
        await self.get(job_id)
        shown = -1
        while True:
            job = self._live.get(job_id)
            while recorded := await self._store.events(job_id, after):
                for event in recorded:
                    yield event
                    after = event.seq
            if job is None or job.is_abandoned:
                yield await self.get(job_id)
                return
            if job.revision != shown:
                snapshot = job.snapshot()
                shown = snapshot.revision
                yield snapshot
                await asyncio.sleep(_TICK_S)
            await job.newer(shown, timeout=60)

    def count(self) -> dict[State, int]:
        """Return how many unfinished jobs are queued and how many are running."""
        states = [job.state for job in self._live.values()]
        return {state: states.count(state) for state in (State.QUEUED, State.RUNNING)}

    def count_crops(self) -> tuple[int, int]:
        """Return how many crops wait and how many are being made."""
        return self._flights.count()

    def waiting(self) -> tuple[str, ...]:
        """Return a line for each crop that waits for room or for another process."""
        found = {
            f"{job.request.split}/{crop.crop} waits for {crop.waiting_for}"
            for job in self._live.values()
            for crop in job.crops.values()
            if crop.waiting_for
        }
        return tuple(sorted(found))

    def making(self) -> set[tuple[Split, int]]:
        """Return the crops that unfinished jobs still lack."""
        return {(job.request.split, crop) for job in self._live.values() for crop in job.open_crops()}

    def protected(self) -> set[tuple[Split, int]]:
        """Return the crops that must not be evicted: of unfinished jobs, and of jobs that ended less than a minute ago.

        The clients of the latter have had no time yet to create a retention lease.
        """
        fresh = [job for job in self._recent.values() if monotonic() - job.ended_at < _GRACE_S]
        return {(job.request.split, crop) for job in (*self._live.values(), *fresh) for crop in job.crops}

    async def _take_up(self, job: LiveJob) -> None:
        """Queue every crop of a job that is not final."""
        for crop in job.open_crops():
            if not job.is_cancelled:  # the job may be cancelled while another of its crops is queued
                await self._flights.board(Wish(job, crop, len(job.open_crops()), next(self._orders)))

    async def _started(self, job: LiveJob, crop: int) -> None:
        job.begin(crop)
        async with job.recording:  # other crops of the job may start or end at the same time
            if job.state is State.QUEUED:
                await self._record(job, "started", State.RUNNING)

    async def _record_crop(self, job: LiveJob, crop: int, outcome: Outcome | None) -> None:
        """Store a crop's outcome (None: cancelled), then show it; the last crop ends the job."""
        async with job.recording:
            if crop not in job.open_crops():
                return
            ended = job.ended(crop, outcome)
            state = job.state_with(ended)
            await self._record(job, "crop", State.RUNNING if state.is_final else state, ended)
            await self._end_if_complete(job)

    async def _end_if_complete(self, job: LiveJob) -> None:
        if not job.open_crops():
            await self._record(job, "finished", job.final_state())
            self._live.pop(job.id, None)
            self._remember(job)

    async def _record(self, job: LiveJob, kind: str, state: State, crop: CropProgress | None = None) -> None:
        try:
            event = await self._store.update_job(job.id, kind, state, crop)
        except Exception as error:  # noqa: BLE001 - clients must not wait forever, also after an unexpected error
            # The next start finds the job unfinished and the crop cached.
            _log.error("job %s: %s could not be stored: %s", job.id, kind, error)
            event = job.unstored(kind, state, crop)
        job.record(event)

    async def _store_submitters(self, job: LiveJob) -> None:
        try:
            await self._store.set_submitters(job.id, job.submitters)
        except PrismError as error:  # only matters after a restart: one client could then cancel the job for another
            _log.warning("job %s: its clients could not be stored: %s", job.id, error)

    def _remember(self, job: LiveJob) -> Job:
        job.ended_at = monotonic()
        self._recent[job.id] = job
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        return job.snapshot()

    def _known(self, job_id: str) -> LiveJob | None:
        return self._live.get(job_id) or self._recent.get(job_id)


def _parse_cursor(cursor: str) -> tuple[datetime, str]:
    with contextlib.suppress(ValueError, TypeError):
        created_at, job_id = json.loads(base64.urlsafe_b64decode(cursor))
        when = datetime.fromisoformat(created_at)
        if when.tzinfo is not None and isinstance(job_id, str):
            return when, job_id
    raise RequestError("this service did not make the cursor", remedy="Start again without a cursor.")
