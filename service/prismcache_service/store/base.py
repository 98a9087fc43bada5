"""The interface of a job store, which keeps what must survive the service, and a store in memory for embedded use.

Times are UTC. Every method is atomic. States, results and events are stored before clients see them; only progress is
not stored.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from prismcache.schema import CropProgress, JobEvent, JobRequest, Split, State

CropKey = tuple[Split, int]
_BOOT = datetime.now(UTC) - timedelta(seconds=time.monotonic())


def steady_now() -> datetime:
    """Return the time that retention leases live by: the clock's when this process began, and what has passed since.

    So a clock that is set neither ends a lease nor prolongs one.
    """
    return _BOOT + timedelta(seconds=time.monotonic())


@dataclass(frozen=True)
class JobRecord:
    """A job as stored. `crops` are in the order of the request, each once; `last_event` is the latest event's `seq`.

    `submitters` are the clients that want the job, each once, in any order; "" stands for all clients without a name.
    """

    id: str
    owner: str
    request: JobRequest
    state: State
    crops: tuple[CropProgress, ...]
    created_at: datetime
    last_event: int = 0
    submitters: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeaseRecord:
    """A retention lease on crops of one split, valid until `steady_now` is `expires_at`."""

    id: str
    owner: str
    split: Split
    crops: tuple[int, ...]
    expires_at: datetime


@dataclass(frozen=True)
class LinkRecord:
    """A capability link to one crop: everything about it but the capability, of which `sha256` is the hash."""

    id: str
    sha256: str
    owner: str
    split: Split
    crop: int
    note: str
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class Figures:
    """What services did in one interval of time.

    Attributes
    ----------
    at
        Start of the interval.
    fetched_bytes
        Bytes that came from the bucket.
    hits, misses
        Crops of accepted jobs that were cached, and that were not.
    used_bytes
        Size of the cached files; the largest, where the interval covers several measurements.
    """

    at: datetime
    fetched_bytes: int
    hits: int
    misses: int
    used_bytes: int


class JobStore(ABC):
    """Stores jobs with crops and events, retention leases, links, pins, last uses of crops, and figures over time."""

    @abstractmethod
    async def add_job(self, job: JobRecord) -> JobEvent:
        """Store a new job with its event ``submitted``; return the event."""

    @abstractmethod
    async def update_job(self, job_id: str, kind: str, state: State, crop: CropProgress | None = None) -> JobEvent:
        """Set a job's state, replace `crop` if given, and store and return the event, all in one transaction.

        Raises
        ------
        KeyError
            If there is no such job, or the job has no such crop.
        """

    @abstractmethod
    async def set_submitters(self, job_id: str, submitters: Collection[str]) -> None:
        """Store which clients want a job; do nothing if there is no such job."""

    @abstractmethod
    async def job(self, job_id: str) -> JobRecord | None:
        """Return one job, or None."""

    @abstractmethod
    async def job_ids(self, start: str, limit: int) -> list[str]:
        """Return at most `limit` ids of jobs that begin with `start`, in order."""

    @abstractmethod
    async def unfinished_jobs(self) -> list[JobRecord]:
        """Return the jobs in a state that is not final, oldest first."""

    @abstractmethod
    async def jobs(
        self,
        *,
        states: Collection[State] = (),
        split: Split | None = None,
        owner: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[JobRecord]:
        """Return jobs newest first (by creation, then id), after the job whose (created_at, id) is `before`."""

    @abstractmethod
    async def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[JobEvent]:
        """Return the events of a job with `seq` above `after`, in order."""

    @abstractmethod
    async def forget_jobs(self, ended_before: datetime) -> int:
        """Delete final jobs whose last event is older, with their events; return how many."""

    @abstractmethod
    async def put_lease(self, lease: LeaseRecord) -> None:
        """Store a retention lease, or replace the one with the same id."""

    @abstractmethod
    async def lease(self, lease_id: str) -> LeaseRecord | None:
        """Return one retention lease, expired or not, or None."""

    @abstractmethod
    async def leases(self, now: datetime) -> list[LeaseRecord]:
        """Return the retention leases that are valid at `now`; expired ones may be deleted."""

    @abstractmethod
    async def drop_lease(self, lease_id: str) -> bool:
        """Delete a retention lease; return False for an unknown lease."""

    @abstractmethod
    async def put_link(self, link: LinkRecord) -> None:
        """Store a new capability link."""

    @abstractmethod
    async def link(self, link_id: str) -> LinkRecord | None:
        """Return one capability link, expired or not, or None."""

    @abstractmethod
    async def links(self, now: datetime) -> list[LinkRecord]:
        """Return the capability links that are valid at `now`; expired ones may be deleted."""

    @abstractmethod
    async def drop_link(self, link_id: str) -> bool:
        """Delete a capability link; return False for an unknown link."""

    @abstractmethod
    async def pin(self, split: Split, crop: int, owner: str) -> None:
        """Pin a crop; pinning again changes nothing."""

    @abstractmethod
    async def unpin(self, split: Split, crop: int) -> bool:
        """Unpin a crop; return False if it was not pinned."""

    @abstractmethod
    async def pins(self) -> set[CropKey]:
        """Return all pinned crops."""

    @abstractmethod
    async def touch(self, crops: Iterable[CropKey], at: datetime) -> None:
        """Store that crops were used at `at`."""

    @abstractmethod
    async def last_used(self) -> Mapping[CropKey, datetime]:
        """Return when each crop was last used, as far as known."""

    @abstractmethod
    async def put_figures(self, row_id: int, figures: Figures, forget_before: datetime) -> None:
        """Store the figures of one process for one interval, or replace the row with the same id; delete old rows.

        Replacing makes a write that is repeated, because its outcome was not learned, count once.
        """

    @abstractmethod
    async def figures(self, since: datetime, seconds: int) -> list[Figures]:
        """Return the figures of all processes together from `since` on, one for each `seconds` that have any."""

    @abstractmethod
    async def check(self) -> None:
        """Raise `StorageError` if the store cannot be read."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release connections. Everything is durable before."""


class MemoryJobStore(JobStore):
    """A store in memory, which ends with its process."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobRecord] = {}
        self._events: dict[str, list[JobEvent]] = {}
        self._leases: dict[str, LeaseRecord] = {}
        self._links: dict[str, LinkRecord] = {}
        self._pins: set[CropKey] = set()
        self._used: dict[CropKey, datetime] = {}
        self._figures: dict[int, Figures] = {}
        self._seq = 0

    async def add_job(self, job: JobRecord) -> JobEvent:
        event = self._event(job.id, "submitted", job.state, None)
        self._jobs[job.id] = replace(job, last_event=event.seq)
        return event

    async def update_job(self, job_id: str, kind: str, state: State, crop: CropProgress | None = None) -> JobEvent:
        job = self._jobs[job_id]
        crops = {known.crop: known for known in job.crops}
        if crop is not None:
            if crop.crop not in crops:
                raise KeyError(crop.crop)
            crops[crop.crop] = crop
        event = self._event(job_id, kind, state, crop)
        self._jobs[job_id] = replace(job, state=state, crops=tuple(crops.values()), last_event=event.seq)
        return event

    def _event(self, job_id: str, kind: str, state: State, crop: CropProgress | None) -> JobEvent:
        self._seq += 1
        event = JobEvent(seq=self._seq, job=job_id, kind=kind, at=datetime.now(UTC), state=state, crop=crop)
        self._events.setdefault(job_id, []).append(event)
        return event

    async def set_submitters(self, job_id: str, submitters: Collection[str]) -> None:
        if job_id in self._jobs:
            self._jobs[job_id] = replace(self._jobs[job_id], submitters=tuple(submitters))

    async def job(self, job_id: str) -> JobRecord | None:
        return self._jobs.get(job_id)

    async def job_ids(self, start: str, limit: int) -> list[str]:
        return sorted(job_id for job_id in self._jobs if job_id.startswith(start))[:limit]

    async def unfinished_jobs(self) -> list[JobRecord]:
        return sorted((j for j in self._jobs.values() if not j.state.is_final), key=_age)

    async def jobs(
        self,
        *,
        states: Collection[State] = (),
        split: Split | None = None,
        owner: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[JobRecord]:
        found = [
            job
            for job in sorted(self._jobs.values(), key=_age, reverse=True)
            if (not states or job.state in states)
            and split in {None, job.request.split}
            and owner in {None, job.owner}
            and (before is None or _age(job) < before)
        ]
        return found[:limit]

    async def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[JobEvent]:
        return [event for event in self._events.get(job_id, ()) if event.seq > after][:limit]

    async def forget_jobs(self, ended_before: datetime) -> int:
        old = [j.id for j in self._jobs.values() if j.state.is_final and self._events[j.id][-1].at < ended_before]
        for job_id in old:
            del self._jobs[job_id], self._events[job_id]
        return len(old)

    async def put_lease(self, lease: LeaseRecord) -> None:
        self._leases[lease.id] = lease

    async def lease(self, lease_id: str) -> LeaseRecord | None:
        return self._leases.get(lease_id)

    async def leases(self, now: datetime) -> list[LeaseRecord]:
        return [lease for lease in self._leases.values() if lease.expires_at > now]

    async def drop_lease(self, lease_id: str) -> bool:
        return self._leases.pop(lease_id, None) is not None

    async def put_link(self, link: LinkRecord) -> None:
        self._links[link.id] = link

    async def link(self, link_id: str) -> LinkRecord | None:
        return self._links.get(link_id)

    async def links(self, now: datetime) -> list[LinkRecord]:
        return [link for link in self._links.values() if link.expires_at > now]

    async def drop_link(self, link_id: str) -> bool:
        return self._links.pop(link_id, None) is not None

    async def pin(self, split: Split, crop: int, owner: str) -> None:  # noqa: ARG002 - part of the interface
        self._pins.add((split, crop))

    async def unpin(self, split: Split, crop: int) -> bool:
        found = (split, crop) in self._pins
        self._pins.discard((split, crop))
        return found

    async def pins(self) -> set[CropKey]:
        return set(self._pins)

    async def touch(self, crops: Iterable[CropKey], at: datetime) -> None:
        self._used.update(dict.fromkeys(crops, at))

    async def last_used(self) -> Mapping[CropKey, datetime]:
        return dict(self._used)

    async def put_figures(self, row_id: int, figures: Figures, forget_before: datetime) -> None:
        kept = {known: row for known, row in self._figures.items() if row.at >= forget_before}
        self._figures = kept | {row_id: figures}

    async def figures(self, since: datetime, seconds: int) -> list[Figures]:
        found: dict[float, list[Figures]] = {}
        for row in self._figures.values():
            if row.at >= since:
                at = row.at.timestamp()
                found.setdefault(at - at % seconds, []).append(row)
        return [
            Figures(
                datetime.fromtimestamp(start, UTC),
                sum(row.fetched_bytes for row in rows),
                sum(row.hits for row in rows),
                sum(row.misses for row in rows),
                max(row.used_bytes for row in rows),
            )
            for start, rows in sorted(found.items())
        ]

    async def check(self) -> None:
        return

    async def aclose(self) -> None:
        return


def _age(job: JobRecord) -> tuple[datetime, str]:
    return job.created_at, job.id
