"""The interface of a job store: what must survive the service, and one that does not (embedded use).

Times are UTC. Every method is atomic. The memory of the running service is ahead of the store by nothing but progress
in bytes; states, results and events are recorded before they are told to anybody.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from prismcache.schema import CropProgress, JobEvent, JobRequest, Split, State


@dataclass(frozen=True)
class JobRecord:
    """A job as stored. `crops` are in the order asked, each once; `last_event` is the `seq` of its latest event.

    `submitters` are the clients that want it, each once, in any order; "" stands for those that give no name.
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
    """A lease on crops of one split, valid until `expires_at`."""

    id: str
    owner: str
    split: Split
    crops: tuple[int, ...]
    expires_at: datetime


class JobStore(ABC):
    """Jobs with their crops and events, leases, pins, and when crops were last used."""

    @abstractmethod
    async def add_job(self, job: JobRecord) -> JobEvent:
        """Store a new job, with its event ``submitted``."""

    @abstractmethod
    async def update_job(self, job_id: str, kind: str, state: State, crop: CropProgress | None = None) -> JobEvent:
        """Set a job's state, and one of its crops if given, and record the event, all or nothing.

        Raises
        ------
        KeyError
            If there is no such job, or it has no such crop.
        """

    @abstractmethod
    async def set_submitters(self, job_id: str, submitters: Collection[str]) -> None:
        """Store who wants a job; nothing happens if there is no such job."""

    @abstractmethod
    async def job(self, job_id: str) -> JobRecord | None:
        """One job, or None."""

    @abstractmethod
    async def unfinished_jobs(self) -> list[JobRecord]:
        """Jobs in a state that is not final, oldest first."""

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
        """Jobs newest first (by creation, then id); `before` is the (created_at, id) of the last of the page before."""

    @abstractmethod
    async def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[JobEvent]:
        """Events of a job with `seq` above `after`, in order."""

    @abstractmethod
    async def forget_jobs(self, ended_before: datetime) -> int:
        """Delete final jobs whose last event is older, with their events; answers how many."""

    @abstractmethod
    async def put_lease(self, lease: LeaseRecord) -> None:
        """Store a lease, or replace the one with its id."""

    @abstractmethod
    async def lease(self, lease_id: str) -> LeaseRecord | None:
        """One lease, expired or not, or None."""

    @abstractmethod
    async def leases(self, now: datetime) -> list[LeaseRecord]:
        """Leases that are valid at `now`; others may be deleted on the way."""

    @abstractmethod
    async def drop_lease(self, lease_id: str) -> bool:
        """Delete a lease; False if there was none."""

    @abstractmethod
    async def pin(self, split: Split, crop: int, owner: str) -> None:
        """Pin a crop; pinning again changes nothing."""

    @abstractmethod
    async def unpin(self, split: Split, crop: int) -> bool:
        """Unpin a crop; False if it was not pinned."""

    @abstractmethod
    async def pins(self) -> set[tuple[Split, int]]:
        """All pinned crops."""

    @abstractmethod
    async def touch(self, crops: Iterable[tuple[Split, int]], at: datetime) -> None:
        """Remember that crops were used."""

    @abstractmethod
    async def last_used(self) -> Mapping[tuple[Split, int], datetime]:
        """When each crop was last used, as far as known."""

    @abstractmethod
    async def check(self) -> None:
        """See that the store answers; raises `StorageError` if not."""

    @abstractmethod
    async def aclose(self) -> None:
        """Release connections; everything recorded is durable already."""


class MemoryJobStore(JobStore):
    """A store that forgets with its process."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobRecord] = {}
        self._events: dict[str, list[JobEvent]] = {}
        self._leases: dict[str, LeaseRecord] = {}
        self._pins: set[tuple[Split, int]] = set()
        self._used: dict[tuple[Split, int], datetime] = {}
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

    async def pin(self, split: Split, crop: int, owner: str) -> None:  # noqa: ARG002 - part of the interface
        self._pins.add((split, crop))

    async def unpin(self, split: Split, crop: int) -> bool:
        found = (split, crop) in self._pins
        self._pins.discard((split, crop))
        return found

    async def pins(self) -> set[tuple[Split, int]]:
        return set(self._pins)

    async def touch(self, crops: Iterable[tuple[Split, int]], at: datetime) -> None:
        self._used.update(dict.fromkeys(crops, at))

    async def last_used(self) -> Mapping[tuple[Split, int], datetime]:
        return dict(self._used)

    async def check(self) -> None:
        return

    async def aclose(self) -> None:
        return


def _age(job: JobRecord) -> tuple[datetime, str]:
    return job.created_at, job.id
