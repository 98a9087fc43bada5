"""A backend without a bucket or a disk: it plays a script of job snapshots, or has every crop at once.

Typed, so that mypy holds it to `prismcache.backend.Backend`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio
import anyio.lowlevel

from prismcache.backend import Backend, ReceivedBytes
from prismcache.config import Settings
from prismcache.errors import PrismError, UnknownCropError
from prismcache.layout import crop_path
from prismcache.schema import (
    NO_CONTEXT,
    Context,
    CropFile,
    CropInfo,
    CropProgress,
    Job,
    JobRequest,
    Product,
    Split,
    State,
    Verdict,
    VerifyResult,
)

Step: TypeAlias = Job | PrismError | BaseException | None
"""What one call of submit or wait does: returns, raises, or (None) hangs until it is cancelled."""

PUBLISHED = (0, 1, 5)
CHANNELS = (0, 1, 2)
MB = 1_000_000


def crop_file(
    crop: int,
    split: Split = Split.INSTANCE,
    *,
    root: str = "/lab/prism",
    channels: Sequence[int] | None = None,
    missing_chunks: int = 0,
    context: Context = NO_CONTEXT,
    product: Product = Product.CROP,
) -> CropFile:
    """A published file of 3 MB."""
    return CropFile(
        split=split,
        crop=crop,
        channels=tuple(channels or CHANNELS),
        path=f"{root}/{crop_path(split, crop, channels, context, product)}",
        size=3 * MB,
        sha256=f"{crop:064x}",
        missing_chunks=missing_chunks,
        context=context,
        product=product,
    )


def queued(crop: int) -> CropProgress:
    """A crop whose turn has not come."""
    return CropProgress(crop=crop)


def running(crop: int, done: int = 0, total: int = 100) -> CropProgress:
    """A crop of which `done` of `total` objects of 1 MB are fetched."""
    return CropProgress(
        crop=crop,
        state=State.RUNNING,
        objects_done=done,
        objects_total=total,
        bytes_done=done * MB,
        bytes_total=total * MB,
    )


def ready(crop: int, file: CropFile | None = None, total: int = 100) -> CropProgress:
    """A crop that is done."""
    return running(crop, total, total).model_copy(update={"state": State.DONE, "file": file or crop_file(crop)})


def broken(crop: int, error: PrismError) -> CropProgress:
    """A crop that failed."""
    return CropProgress(crop=crop, state=State.FAILED, problem=error.to_problem())


def job(*crops: CropProgress, state: State | None = None, revision: int = 0) -> Job:
    """A snapshot; its state follows from the crops' unless given."""
    if state is None:
        states = {crop.state for crop in crops}
        state = State.RUNNING if any(not each.is_final for each in states) else State.DONE
        state = State.FAILED if state is State.DONE and State.FAILED in states else state
    return Job(id="job-1", revision=revision, state=state, split=Split.INSTANCE, channels=None, crops=crops)


@dataclass
class FakeBackend:
    """Plays `script`, one step for each submit or wait, and then hangs; without one, all crops are cached."""

    script: list[Step] = field(default_factory=list)
    root: str = "/lab/prism"
    unusable: dict[int, PrismError] = field(default_factory=dict)
    verdict: Verdict = Verdict.OK
    requests: list[JobRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    removals: list[tuple[Split, tuple[int, ...] | None]] = field(default_factory=list)
    downloads: dict[int, Sequence[int]] = field(default_factory=dict)
    here: set[int] = field(default_factory=set)
    looks: int = 0
    step: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
    closed: bool = False
    hangs: anyio.Event = field(default_factory=anyio.Event)

    async def submit(self, request: JobRequest) -> Job:
        self.requests.append(request)
        return await self._play() if self.script else self._all_cached(request)

    async def wait(self, job: Job, timeout: float) -> Job:  # noqa: ASYNC109 - the protocol's
        if not self.script:
            await anyio.sleep(timeout)
            return job
        return await self._play()

    async def cancel(self, job: Job) -> None:
        await anyio.lowlevel.checkpoint()
        self.cancelled.append(job.id)

    async def paths_here(self, files: Sequence[CropFile]) -> Mapping[int, str]:
        await anyio.lowlevel.checkpoint()
        self.looks += 1
        return {file.crop: file.path for file in files if file.crop in self.here}

    async def local_path(self, file: CropFile, report: ReceivedBytes) -> str:
        for received in self.downloads.get(file.crop, ()):
            report(received)
            await self.step()
        await anyio.lowlevel.checkpoint()
        if file.crop in self.unusable:
            raise self.unusable[file.crop]
        return file.path

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        return [
            await self.describe(each, crop)
            for each in (Split.INSTANCE, Split.SEMANTIC)
            if split in (None, each)
            for crop in PUBLISHED
        ]

    async def describe(self, split: Split, crop: int) -> CropInfo:
        if crop not in PUBLISHED:
            raise UnknownCropError(f"there is no crop {split.value}/{crop}")
        return CropInfo(
            split=split,
            crop=crop,
            raw_shape=(18 if crop else len(CHANNELS), 300, 650, 650),
            labels_shape=(200, 500, 500),
            offset=(20000, 12600, 12600),
            voxel_size=(400, 168, 168),
            source_bytes=1_600_000_000,
            source_objects=1024,
            files=(crop_file(crop, split, root=self.root),) if crop < 5 else (),
        )

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        files = [file for info in await self.catalog(split) for file in info.files]
        return [
            VerifyResult(split=file.split, crop=file.crop, channels=file.channels, path=file.path, verdict=self.verdict)
            for file in files
            if crops is None or file.crop in crops
        ]

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        self.removals.append((split, None if crops is None else tuple(crops)))
        files = [file for info in await self.catalog(split) for file in info.files]
        return [file for file in files if crops is None or file.crop in crops]

    async def aclose(self) -> None:
        self.closed = True

    async def _play(self) -> Job:
        step = self.script.pop(0)
        await anyio.lowlevel.checkpoint()
        if step is None:
            self.hangs.set()
            await anyio.sleep_forever()
        if isinstance(step, BaseException):
            raise step
        assert step is not None
        return step

    def _all_cached(self, request: JobRequest) -> Job:
        crops = PUBLISHED if request.crops is None else request.crops
        files = (
            crop_file(
                crop,
                request.split,
                root=self.root,
                channels=request.channels,
                context=request.context,
                product=request.product,
            )
            for crop in crops
        )
        return job(*(ready(file.crop, file) for file in files))


def in_memory(settings: Settings) -> Backend:
    """A backend factory, as an entry point names one."""
    return FakeBackend(root=settings.root.as_posix())


def steps(*progress: Iterable[CropProgress]) -> list[Step]:
    """A script of snapshots with growing revisions."""
    return [job(*crops, revision=number) for number, crops in enumerate(progress)]
