"""What an in-memory service knows and does, without HTTP: jobs, crops, pins, leases. Safe to share between threads."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prismcache._testing_files import VOXEL_SIZE, CropArrays, crop_arrays, write_crop
from prismcache.disk import sha256_of
from prismcache.errors import (
    CropInUseError,
    CropNotCachedError,
    PrismError,
    UnknownChannelError,
    UnknownCropError,
    UnknownJobError,
    UnknownLeaseError,
)
from prismcache.layout import cache_state, crop_path, manifest_path
from prismcache.schema import (
    CropFile,
    CropInfo,
    CropProgress,
    Job,
    JobEvent,
    JobRequest,
    Lease,
    LeaseRequest,
    Split,
    State,
    Verdict,
    VerifyRequest,
    VerifyResult,
)

Key = tuple[Split, int]
FileKey = tuple[Split, int, tuple[int, ...] | None]

LEASE_SECONDS = 300.0
OBJECTS = 4
"""Objects that a made-up crop consists of."""


@dataclass
class _Record:
    request: JobRequest
    job: Job
    events: list[JobEvent] = field(default_factory=list)
    submitters: set[str] = field(default_factory=set)


class Lab:
    """The state behind `prismcache.testing.InMemoryService`.

    A job goes on when it is looked at: each look makes one crop, so that tests see progress without any clock.

    Parameters
    ----------
    root
        The cache folder.
    crops
        What is published, by split and number; see `crop_arrays`.
    """

    def __init__(self, root: Path, crops: Mapping[Key, Any]) -> None:
        self.root = root
        self.published = {(Split(split), crop): given for (split, crop), given in sorted(crops.items())}
        self.lock = threading.RLock()
        self.held = False
        self.failing: dict[Key, PrismError] = {}
        self.files: dict[FileKey, CropFile] = {}
        self.pins: set[Key] = set()
        self.leases: dict[str, Lease] = {}
        self.lease_seconds = LEASE_SECONDS
        self._jobs: dict[str, _Record] = {}
        self._arrays: dict[Key, CropArrays] = {}
        self._seq = 0

    def forget_jobs(self) -> None:
        """As after a restart with an empty job store."""
        self._jobs.clear()

    def submit(self, request: JobRequest, client: str = "") -> Job:
        """A new job, or the active one for the same request; final if all is cached."""
        for record in self._jobs.values():
            if record.request == request and not record.job.state.is_final:
                record.submitters.add(client)
                return record.job
        crops = [crop for split, crop in self.published if split is request.split]
        wanted = crops if request.crops is None else list(dict.fromkeys(request.crops))
        progress = tuple(self._at_first(request, crop) for crop in wanted)
        job = Job(
            id=uuid.uuid4().hex,
            revision=0,
            state=_state_of(progress),
            split=request.split,
            channels=request.channels,
            crops=progress,
            strict=request.strict,
            priority=request.priority,
            created_at=datetime.now(UTC),
        )
        self._jobs[job.id] = record = _Record(request, job, submitters={client})
        self._record(record, "submitted")
        if job.state.is_final:
            self._record(record, "finished")
        return job

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        return [record.job for record in reversed(self._jobs.values())]

    def look(self, job_id: str) -> Job:
        """A job as it is, without making it go on."""
        return self._find(job_id).job

    def advance(self, job_id: str) -> Job:
        """Make one more crop of the job, unless the lab is held; the job after that."""
        record = self._find(job_id)
        following = next((crop for crop in record.job.crops if not crop.state.is_final), None)
        if following is not None and not self.held:
            self._change(record, self._made(record.request, following.crop))
        return record.job

    def events(self, job_id: str, after: int) -> list[JobEvent]:
        """What was recorded of a job since event `after`."""
        return [event for event in self._find(job_id).events if event.seq > after]

    def cancel(self, job_id: str, client: str | None = None) -> Job:
        """Cancel what is not final of a job, unless it is only one of several clients that wants it no more."""
        record = self._find(job_id)
        if client is not None and record.submitters - {client}:
            record.submitters.discard(client)
            return record.job
        for crop in record.job.crops:
            if not crop.state.is_final:
                self._change(record, CropProgress(crop=crop.crop, state=State.CANCELLED))
        return record.job

    def describe(self, split: Split, crop: int) -> CropInfo:
        """One crop."""
        arrays = self._source(split, crop)
        files = tuple(file for key, file in self.files.items() if key[:2] == (split, crop))
        making = {(job.split, each.crop) for job in self.jobs() for each in job.crops if not each.state.is_final}
        return CropInfo(
            split=split,
            crop=crop,
            state=cache_state(files, is_making=(split, crop) in making),
            raw_shape=arrays.raw.shape,
            labels_shape=arrays.labels.shape,
            offset=(0, 0, 0),
            voxel_size=VOXEL_SIZE,
            source_bytes=arrays.raw.nbytes + arrays.labels.nbytes,
            source_objects=OBJECTS,
            files=files,
            pinned=(split, crop) in self.pins,
            leases=len(self._leases_of(split, crop)),
        )

    def catalog(self, split: Split | None) -> tuple[CropInfo, ...]:
        """Every crop, or those of one split."""
        return tuple(self.describe(*key) for key in self.published if split in {None, key[0]})

    def evict(self, split: Split, crop: int) -> tuple[CropFile, ...]:
        """Delete a crop's files."""
        if (split, crop) in self.pins or self._leases_of(split, crop):
            raise CropInUseError(f"crop {split.value}/{crop} is pinned or leased")
        keys = [key for key in self.files if key[:2] == (split, crop)]
        for key in keys:
            (self.root / crop_path(*key)).unlink(missing_ok=True)
            (self.root / manifest_path(*key)).unlink(missing_ok=True)
        return tuple(self.files.pop(key) for key in keys)

    def pin(self, split: Split, crop: int, *, pinned: bool) -> CropInfo:
        """Pin or unpin a crop."""
        self._source(split, crop)
        (self.pins.add if pinned else self.pins.discard)((split, crop))
        return self.describe(split, crop)

    def lease(self, request: LeaseRequest) -> Lease:
        """A new lease."""
        lease = Lease(id=uuid.uuid4().hex, split=request.split, crops=request.crops, seconds=self.lease_seconds)
        self.leases[lease.id] = lease
        return lease

    def renew(self, lease_id: str) -> Lease:
        """The lease, which lives on."""
        if lease_id not in self.leases:
            raise UnknownLeaseError(f"there is no lease {lease_id!r}")
        return self.leases[lease_id]

    def release(self, lease_id: str) -> None:
        """End a lease."""
        self.renew(lease_id)
        del self.leases[lease_id]

    def find_file(self, split: Split, crop: int, channels: tuple[int, ...] | None) -> CropFile:
        """The cached file of exactly these channels (None: all)."""
        if (split, crop, channels) not in self.files:
            raise CropNotCachedError(f"crop {split.value}/{crop} is not cached")
        return self.files[split, crop, channels]

    def make(self, split: Split, crop: int, channels: tuple[int, ...] | None = None) -> CropFile:
        """A file that serves the channels, written if need be."""
        arrays = self._source(split, crop)
        for channel in channels or ():
            if channel not in arrays.channels:
                raise UnknownChannelError(f"crop {split.value}/{crop} has no channel {channel}")
        subset = None if channels == arrays.channels else channels
        found = self._good_file((split, crop, None)) or self._good_file((split, crop, subset))
        if found is None:
            found = self.files[split, crop, subset] = write_crop(self.root, split, crop, arrays, subset)
        return found

    def verify(self, asked: VerifyRequest) -> tuple[VerifyResult, ...]:
        """Read files again, and write bad ones anew if that is asked for."""
        chosen = {
            key: file
            for key, file in self.files.items()
            if asked.split in {None, key[0]} and (asked.crops is None or key[1] in asked.crops)
        }
        if absent := set(asked.crops or ()) - {key[1] for key in chosen}:
            raise CropNotCachedError(f"not cached: crops {', '.join(map(str, sorted(absent)))}")
        return tuple(self._verified(key, file, repair=asked.repair) for key, file in chosen.items())

    def _verified(self, key: FileKey, file: CropFile, *, repair: bool) -> VerifyResult:
        verdict, reason = Verdict.OK, ""
        if self._good_file(key) is None:
            verdict, reason = Verdict.CORRUPT, f"{file.path} is not what was published"
            if repair:
                self.make(*key)
                verdict = Verdict.REPAIRED
        return VerifyResult(
            split=key[0], crop=key[1], channels=file.channels, path=file.path, verdict=verdict, reason=reason
        )

    def _good_file(self, key: FileKey) -> CropFile | None:
        """What is cached under `key`, if its content is still what was written."""
        file = self.files.get(key)
        if file is None or not Path(file.path).is_file():
            return None
        return file if sha256_of(Path(file.path)) == file.sha256 else None

    def _find(self, job_id: str) -> _Record:
        found = [record for known, record in self._jobs.items() if known.startswith(job_id)]
        if len(found) != 1:
            raise UnknownJobError(f"there is no job {job_id!r}")
        return found[0]

    def _source(self, split: Split, crop: int) -> CropArrays:
        if (split, crop) not in self.published:
            raise UnknownCropError(f"crop {crop} of split {split.value!r} is not published")
        if (split, crop) not in self._arrays:
            self._arrays[split, crop] = crop_arrays(split, crop, self.published[split, crop])
        return self._arrays[split, crop]

    def _at_first(self, request: JobRequest, crop: int) -> CropProgress:
        for subset in (None, request.channels):
            if (file := self._good_file((request.split, crop, subset))) is not None:
                return CropProgress(crop=crop, state=State.DONE, file=file)
        return CropProgress(crop=crop, state=State.RUNNING)

    def _made(self, request: JobRequest, crop: int) -> CropProgress:
        try:
            if (error := self.failing.get((request.split, crop))) is not None:
                raise error
            file = self.make(request.split, crop, request.channels)
        except PrismError as error:
            return CropProgress(crop=crop, state=State.FAILED, problem=error.to_problem())
        size = self._source(request.split, crop).raw.nbytes
        return CropProgress(
            crop=crop,
            state=State.DONE,
            objects_done=OBJECTS,
            objects_total=OBJECTS,
            bytes_done=size,
            bytes_total=size,
            file=file,
        )

    def _change(self, record: _Record, progress: CropProgress) -> None:
        crops = tuple(progress if crop.crop == progress.crop else crop for crop in record.job.crops)
        changes = {"crops": crops, "state": _state_of(crops), "revision": record.job.revision + 1}
        record.job = record.job.model_copy(update=changes)
        self._record(record, "crop", progress)
        if record.job.state.is_final:
            self._record(record, "finished")

    def _record(self, record: _Record, kind: str, crop: CropProgress | None = None) -> None:
        self._seq, job, now = self._seq + 1, record.job, datetime.now(UTC)
        record.events.append(JobEvent(seq=self._seq, job=job.id, kind=kind, at=now, state=job.state, crop=crop))

    def _leases_of(self, split: Split, crop: int) -> list[Lease]:
        return [lease for lease in self.leases.values() if lease.split is split and crop in lease.crops]


def _state_of(crops: tuple[CropProgress, ...]) -> State:
    states = {crop.state for crop in crops}
    for state in (State.RUNNING, State.CANCELLED, State.FAILED):
        if state in states:
            return state
    return State.DONE
