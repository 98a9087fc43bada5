"""The messages between client, service and workers: requests, jobs, crops, problems (pydantic, JSON).

Requests refuse unknown fields; responses ignore them, so that an older client understands a newer service.

Modules of models do not import `annotations` from `__future__`: pydantic would have to compile each annotation again,
which took a quarter of the time to import the client.
"""

import math
import re
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from prismcache.html import table
from prismcache.numbers import EXPANSION, MAX_CROP, SPLIT_NAME, format_bytes, format_voxel_size

CropId = Annotated[StrictInt, Field(ge=0, le=MAX_CROP)]
ChannelId = Annotated[StrictInt, Field(ge=0, le=9_999)]
Reach = Annotated[StrictInt, Field(ge=0, le=99_999)]
Context = tuple[Reach, Reach, Reach] | Literal["all"]
"""Voxels (Z, Y, X) that raw reaches beyond the labels on each side, or as far as the source has raw."""
NO_CONTEXT: Context = (0, 0, 0)


def _number_list(value: object) -> object:
    if isinstance(value, list | tuple):
        return value
    raise PydanticCustomError("number_list", "Input should be a list of numbers, such as [0, 5]")


_NumberList = BeforeValidator(_number_list)
"""Says in a caller's terms that one number or a text is not a list."""


class Split(StrEnum):
    """A set of crops. The members are those that E11 Bio publishes.

    ``Split("mito")`` is the split of that name in a lab's own catalog (`prismcache.splits`): any name of small letters,
    digits and ``_`` is one. The service, or the embedded pipeline, refuses names that its catalog lacks. Compare with
    ``==``.
    """

    INSTANCE = "instance"
    SEMANTIC = "semantic"
    SYNAPSES = "synapses"

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str) or not SPLIT_NAME.fullmatch(value):
            return None
        member = str.__new__(cls, value)
        member._name_, member._value_ = value.upper(), str(value)
        return member


class Product(StrEnum):
    """What a file holds: the crop itself, or what is derived from it; the catalog says which products a split has."""

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
    """The cached part of a crop: nothing, less than an unfinished job wants, some channels, or all channels."""

    ABSENT = "absent"
    MAKING = "making"
    PARTIAL = "partial"
    CACHED = "cached"


# Both are built with their first use: a program needs few of these models, and importing should be quick.
class _Request(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class _Response(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class Problem(_Response):
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
    `context` is how many voxels (Z, Y, X) raw reaches beyond the labels on each side, or "all"; the file has what the
    source has. `product` asks for what is derived from the whole crop, which has neither channels nor context.
    """

    split: Split
    crops: Annotated[tuple[CropId, ...], Field(max_length=1000), _NumberList] | None = None
    channels: Annotated[tuple[ChannelId, ...], Field(min_length=1, max_length=1000), _NumberList] | None = None
    strict: StrictBool = False
    priority: Annotated[StrictInt, Field(ge=-10, le=10)] = 0
    context: Context = NO_CONTEXT
    product: Product = Product.CROP

    @model_validator(mode="after")
    def _product_is_whole(self) -> Self:
        if self.product is not Product.CROP and (self.channels is not None or self.context != NO_CONTEXT):
            raise ValueError(f"product {self.product.value!r} is made from the whole crop: leave out channels, context")
        return self


class CropFile(_Response):
    """One published file: where the machine that made it sees it, and what identifies its content.

    `channels` are the crop's channels in it, ascending; `size` is in bytes; `missing_chunks` counts source chunks
    that were absent and hold zarr's fill value; `source_fingerprint` is a digest of the source's listing; `notes` are
    sentences on what its source lacks (a voxel size, ETags); clients show them as warnings.
    """

    split: Split
    crop: int
    channels: tuple[int, ...]
    path: str
    size: int
    sha256: str
    missing_chunks: int = 0
    source_fingerprint: str = ""
    notes: tuple[str, ...] = ()
    context: Context = NO_CONTEXT
    product: Product = Product.CROP


class Progress(_Response):
    """Chunk objects and bytes fetched and verified so far, of those needed; for a product, then the voxels computed.

    Totals of objects and bytes are 0 until the crop's listing and metadata have been read, and stay 0 for a product of
    a cached crop; `voxels_total` is 0 until a worker has begun to make a product from the crop. `waiting_for` is what
    must come first, such as room in the cache folder, and who holds that; empty while nothing is waited for.
    """

    objects_done: int = 0
    objects_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    voxels_done: int = 0
    voxels_total: int = 0
    waiting_for: str = ""


class CropProgress(Progress):
    """The state and progress of one crop of a job."""

    crop: int
    state: State = State.QUEUED
    file: CropFile | None = None
    problem: Problem | None = None


class CropDownload(CropProgress):
    """A crop whose file is downloaded from the service: bytes are those of the file. Made by clients only."""


class Job(_Response):
    """A snapshot of a job. `revision` grows with each change, so that a client can wait for a newer snapshot.

    `owner` is the name of the token that submitted the job; empty where there are no tokens.
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
    context: Context = NO_CONTEXT
    product: Product = Product.CROP

    def __str__(self) -> str:
        """Return one line for people; `repr` has everything."""
        ready = sum(crop.state is State.DONE for crop in self.crops)
        return f"job {self.id}: {self.split.value}, {self.state.value}, {ready} of {len(self.crops)} crops ready"

    def _repr_html_(self) -> str:
        rows = [
            (crop.crop, crop.state.value, _received(crop), crop.problem and crop.problem.detail) for crop in self.crops
        ]
        return table(str(self), ["crop", "state", "fetched", "problem"], rows)


def _received(crop: CropProgress) -> str:
    if not crop.bytes_total:
        return ""
    return f"{format_bytes(crop.bytes_done)} of {format_bytes(crop.bytes_total)}"


class JobPage(_Response):
    """Jobs, newest first; `next_cursor` is the cursor of the next page, None at the end."""

    jobs: tuple[Job, ...]
    next_cursor: str | None = None


class JobEvent(_Response):
    """A recorded event of a job; `seq` grows over all jobs and restarts.

    `kind` is one of ``submitted``, ``resumed``, ``started``, ``crop``, ``finished``; `crop` is set for ``crop``.
    """

    seq: int
    job: str
    kind: str
    at: AwareDatetime
    state: State
    crop: CropProgress | None = None


class LeaseRequest(_Request):
    """Protect these crops from eviction while the caller's process uses them (a retention lease)."""

    split: Split
    crops: Annotated[tuple[CropId, ...], Field(min_length=1, max_length=1000), _NumberList]


class Lease(_Response):
    """A retention lease: a protection from eviction that ends `seconds` after its last renewal."""

    id: str
    split: Split
    crops: tuple[int, ...]
    seconds: float


class Usage(_Response):
    """The cache folder: bytes of published files, bytes promised to crops in the making, and the bounds on them.

    The quarantine holds damaged files that were set aside; it counts against `max_bytes`, too, and is deleted before
    any crop is evicted. `free_bytes` and `total_bytes` are the file system's; a None bound means none was set.
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


class ServiceStatus(_Response):
    """The state of a service; `waiting` has a line for each crop that waits for more than its turn."""

    version: str
    engine: str
    workers: int
    jobs_queued: int
    jobs_running: int
    crops_queued: int
    crops_running: int
    usage: Usage
    waiting: tuple[str, ...] = ()


class ArrayInfo(_Response):
    """An array that rides along in a crop's file, (Z, Y, X): shape in voxels, dtype, and offset (nm) where known."""

    name: str
    shape: tuple[int, int, int]
    dtype: str
    offset: tuple[int, int, int] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return math.prod(self.shape) * (int(re.sub(r"\D", "", self.dtype) or 8) // 8)  # "bool" has no digits


class CropInfo(_Response):
    """A crop as published, and its cached files.

    `raw_shape` is (C, Z, Y, X), `labels_shape` (Z, Y, X), both in voxels, of the dtypes that files have; `offset` (of
    the labels) and `voxel_size` are in nm, Z,Y,X. `source_bytes` and `source_objects` are those of the whole crop in
    the bucket. Fields are None where the source has not been read; `labels_shape` is None, too, in a split without
    labels, of which `offset` is raw's. `classes` says that labels are classes. `arrays` ride along in the crop's file;
    `products` can be asked for. `expansion` says how many times larger the imaged tissue is than in the brain, and
    `same_tissue` which other crops, such as "instance/2", show the same.
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
    arrays: tuple[ArrayInfo, ...] = ()
    has_labels: bool = True
    classes: bool = False
    products: tuple[Product, ...] = ()
    expansion: float = EXPANSION
    same_tissue: tuple[str, ...] = ()
    problem: Problem | None = None
    files: tuple[CropFile, ...] = ()
    pinned: bool = False
    leases: int = 0
    last_used_at: AwareDatetime | None = None

    def _repr_html_(self) -> str:
        shown = {
            "state": self.state.value,
            "raw, voxels (C, Z, Y, X)": self.raw_shape,
            "labels, voxels (Z, Y, X)": self.labels_shape,
            "arrays": ", ".join(f"{array.name} {array.shape} {array.dtype}" for array in self.arrays) or None,
            "voxel size": self.voxel_size and format_voxel_size(self.voxel_size, self.expansion),
            "offset, nm (Z, Y, X)": self.offset,
            "same tissue as": ", ".join(self.same_tissue) or None,
            "in the bucket": None if self.source_bytes is None else format_bytes(self.source_bytes),
            "files": ", ".join(file.path for file in self.files) or None,
            "problem": self.problem and self.problem.detail,
        }
        rows = [(name, value) for name, value in shown.items() if value is not None]
        return table(f"{self.split.value} crop {self.crop}", [], rows)


class CropPage(_Response):
    """Every crop of the catalog, by split and id."""

    crops: tuple[CropInfo, ...]


class RemovedFiles(_Response):
    """The files that were deleted from the cache."""

    files: tuple[CropFile, ...]


class ClearedQuarantine(_Response):
    """The number and size of the files that were deleted from the quarantine."""

    files: int
    bytes: int


class VerifyRequest(_Request):
    """Re-read cached files against their manifests; None means all."""

    split: Split | None = None
    crops: Annotated[tuple[CropId, ...], Field(max_length=1000), _NumberList] | None = None
    repair: StrictBool = False


class Verdict(StrEnum):
    """The result of `verify` for one file."""

    OK = "ok"
    REPAIRED = "repaired"
    CORRUPT = "corrupt"


class VerifyResult(_Response):
    """The verdict on one cached file, with the reason where it is not `ok`."""

    split: Split
    crop: int
    channels: tuple[int, ...]
    path: str
    verdict: Verdict
    reason: str = ""


class VerifyReport(_Response):
    """The verdicts on all files of the request."""

    results: tuple[VerifyResult, ...]
