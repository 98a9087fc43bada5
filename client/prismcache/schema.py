"""What is said between client, service and workers: requests, jobs, crops, problems (pydantic, JSON).

Requests refuse unknown fields; answers ignore them, so that an older client understands a newer service.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictBool, StrictInt

CropId = Annotated[StrictInt, Field(ge=0, le=999_999)]
ChannelId = Annotated[StrictInt, Field(ge=0, le=9_999)]
Reach = Annotated[StrictInt, Field(ge=0, le=99_999)]
Context = tuple[Reach, Reach, Reach] | Literal["all"]
"""Voxels (Z, Y, X) that raw reaches beyond the labels on each side, or as far as the source has raw."""
NO_CONTEXT: Context = (0, 0, 0)


class Split(StrEnum):
    """The two published sets of training crops."""

    INSTANCE = "instance"
    SEMANTIC = "semantic"


class Product(StrEnum):
    """What a file holds: the crop itself, or what is derived from it.

    ``fgbg`` and ``border_mask`` exist for semantic crops only.
    """

    CROP = "crop"
    UNLABELLED = "unlabelled"
    AVG_BARCODES = "avg_barcodes"
    FGBG = "fgbg"
    BORDER_MASK = "border_mask"
    FACTS = "facts"


class State(StrEnum):
    """State of a job, or of one crop in it. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})


class CacheState(StrEnum):
    """What the cache has of a crop: nothing, less than an unfinished job wants, some channels, or all of them."""

    ABSENT = "absent"
    MAKING = "making"
    PARTIAL = "partial"
    CACHED = "cached"


# Not deferred: FastAPI silences what pydantic warns of while it takes a model for a body, but not what is built later.
class _Request(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


# Built when they are first used: a program needs few of them, and importing should be quick.
class _Answer(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class Problem(_Answer):
    """An error on the wire (RFC 9457), with a stable `code` and a `remedy`."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    remedy: str = ""


class JobRequest(_Request):
    """Ask for crops of one split.

    `crops` None means every published crop; `channels` None means every channel of each crop.
    `strict` refuses a crop with chunks that are absent from the bucket. Jobs of higher `priority` go first.
    """

    split: Split
    crops: Annotated[tuple[CropId, ...], Field(max_length=1000)] | None = None
    channels: Annotated[tuple[ChannelId, ...], Field(min_length=1, max_length=1000)] | None = None
    strict: StrictBool = False
    priority: Annotated[StrictInt, Field(ge=-10, le=10)] = 0


class CropFile(_Answer):
    """One published file: where the machine that made it sees it, and what identifies its content.

    `channels` are the crop's channels in it, ascending; `size` is in bytes; `missing_chunks` counts source chunks
    that were absent and hold zarr's fill value; `source_fingerprint` is a digest of the source's listing.
    """

    split: Split
    crop: int
    channels: tuple[int, ...]
    path: str
    size: int
    sha256: str
    missing_chunks: int = 0
    source_fingerprint: str = ""


class CropProgress(_Answer):
    """How far one crop of a job is. Totals are 0 until the crop's listing and metadata have been read."""

    crop: int
    state: State = State.QUEUED
    objects_done: int = 0
    objects_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    file: CropFile | None = None
    problem: Problem | None = None


class CropDownload(CropProgress):
    """A crop that the service has, on its way to this machine: bytes are those of the file. Made by clients only."""


class Job(_Answer):
    """A snapshot of a job. `revision` grows with each change, so that a waiter can ask for what is newer.

    `owner` is the name of the token that asked; empty where there are no tokens.
    """

    id: str
    revision: int
    state: State
    split: Split
    channels: tuple[int, ...] | None
    crops: tuple[CropProgress, ...]
    strict: bool = False
    priority: int = 0
    owner: str = ""
    created_at: AwareDatetime | None = None


class JobPage(_Answer):
    """Jobs, newest first; `next_cursor` asks for those before them, None at the end."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = None


class JobEvent(_Answer):
    """Something that happened to a job and was recorded; `seq` grows over all jobs and restarts.

    `kind` is one of ``submitted``, ``resumed``, ``started``, ``crop``, ``finished``; `crop` is set for ``crop``.
    """

    seq: int
    job: str
    kind: str
    at: AwareDatetime
    state: State
    crop: CropProgress | None = None


class LeaseRequest(_Request):
    """Protect these crops from eviction while the asking process uses them."""

    split: Split
    crops: Annotated[tuple[CropId, ...], Field(min_length=1, max_length=1000)]


class Lease(_Answer):
    """A protection from eviction that ends `seconds` after it was last renewed."""

    id: str
    split: Split
    crops: tuple[int, ...]
    seconds: float


class Usage(_Answer):
    """The cache folder: bytes of published files, bytes promised to crops in the making, and the bounds on them.

    The quarantine is what was found wrong in a crop's place; it counts against `max_bytes`, too, and goes before any
    crop is evicted. `free_bytes` and `total_bytes` are the file system's; a None bound means none was set.
    """

    files: int
    used_bytes: int
    reserved_bytes: int
    max_bytes: int | None
    min_free_bytes: int
    free_bytes: int
    total_bytes: int
    quarantine_files: int = 0
    quarantine_bytes: int = 0


class ServiceStatus(_Answer):
    """What a service is doing."""

    version: str
    engine: str
    workers: int
    jobs_queued: int
    jobs_running: int
    crops_queued: int
    crops_running: int
    usage: Usage


class CropInfo(_Answer):
    """A crop as published, and what the cache holds of it.

    `raw_shape` is (C, Z, Y, X), `labels_shape` (Z, Y, X), both in voxels, of the dtypes that files have; `offset` (of
    the labels) and `voxel_size` are in nm, Z,Y,X. `source_bytes` and `source_objects` are those of the whole crop in
    the bucket. Fields are None where the source has not been read.
    """

    split: Split
    crop: int
    state: CacheState = CacheState.ABSENT
    raw_shape: tuple[int, int, int, int] | None = None
    raw_dtype: str = "uint8"
    labels_shape: tuple[int, int, int] | None = None
    labels_dtype: str = "uint32"
    offset: tuple[int, int, int] | None = None
    voxel_size: tuple[int, int, int] | None = None
    source_bytes: int | None = None
    source_objects: int | None = None
    problem: Problem | None = None
    files: tuple[CropFile, ...] = ()
    pinned: bool = False
    leases: int = 0
    last_used_at: AwareDatetime | None = None


class CropPage(_Answer):
    """Every crop of the catalog, by split and id."""

    crops: tuple[CropInfo, ...]


class RemovedFiles(_Answer):
    """What was deleted from the cache."""

    files: tuple[CropFile, ...]


class ClearedQuarantine(_Answer):
    """How much was deleted from the quarantine."""

    files: int
    bytes: int


class VerifyRequest(_Request):
    """Re-read cached files against their manifests; None means all."""

    split: Split | None = None
    crops: Annotated[tuple[CropId, ...], Field(max_length=1000)] | None = None
    repair: StrictBool = False


class Verdict(StrEnum):
    """What `verify` found of one file."""

    OK = "ok"
    REPAIRED = "repaired"
    CORRUPT = "corrupt"


class VerifyResult(_Answer):
    """The verdict on one cached file, with the reason where it is not `ok`."""

    split: Split
    crop: int
    channels: tuple[int, ...]
    path: str
    verdict: Verdict
    reason: str = ""


class VerifyReport(_Answer):
    """The verdicts on all files that were asked about."""

    results: tuple[VerifyResult, ...]
