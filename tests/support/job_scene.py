"""A job service whose crops are made when a test says so: typed stand-ins for everything around `JobService`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import pytest

from prismcache.catalog import published
from prismcache.errors import PrismError
from prismcache.schema import CropFile, CropInfo, CropProgress, Job, JobEvent, JobRequest, Progress, Split, State
from prismcache_service.cache import CropName
from prismcache_service.crops import CatalogService, EnsureService, LastUsed
from prismcache_service.jobs.history import Observer
from prismcache_service.jobs.service import JobLimits, JobService
from prismcache_service.store.base import JobRecord, MemoryJobStore

DEADLINE = 10.0


class Maker(EnsureService):
    """Has the crops in `cached`, and makes others when it is told to."""

    def __init__(self, cached: Collection[int] = ()) -> None:
        self.cached = set(cached)
        self.refused: dict[int, PrismError] = {}
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self._results: dict[int, asyncio.Future[CropFile]] = {}
        self._reports: dict[int, Callable[[Progress], None]] = {}

    async def ensure(self, name: CropName, report: Callable[[Progress], None], *, strict: bool = False) -> CropFile:
        if name.crop in self.cached:
            return made(name.crop, name.split)
        self.begun.append(name.crop)
        self._reports[name.crop] = report
        self._results[name.crop] = asyncio.get_running_loop().create_future()
        try:
            return await self._results[name.crop]
        except asyncio.CancelledError:
            self.cancelled.append(name.crop)
            raise

    async def find_all(self, request: JobRequest, crops: Sequence[int]) -> list[CropProgress]:
        return [self._progress(crop, request.split) for crop in crops]

    def _progress(self, crop: int, split: Split) -> CropProgress:
        if crop in self.refused:
            return CropProgress(crop=crop, state=State.FAILED, problem=self.refused[crop].to_problem())
        if crop in self.cached:
            return CropProgress(crop=crop, state=State.DONE, file=made(crop, split))
        return CropProgress(crop=crop)

    def report(self, crop: int, progress: Progress) -> None:
        """Tell how far a crop is."""
        self._reports[crop](progress)

    def finish(self, *crops: int) -> None:
        """Let these crops be made, all in the same instant."""
        for crop in crops:
            self.cached.add(crop)
            self._results[crop].set_result(made(crop))

    def fail(self, crop: int, error: Exception) -> None:
        """Let this crop's making fail."""
        self._results[crop].set_exception(error)


def made(crop: int, split: Split = Split.INSTANCE) -> CropFile:
    """What `Maker` makes."""
    return CropFile(split=split, crop=crop, channels=(0,), path=f"/root/{crop}", size=1, sha256=f"{crop:064x}")


class Published(CatalogService):
    """A bucket with these instance crops and nothing else."""

    def __init__(self, crops: Collection[int] = (0, 1, 2)) -> None:
        self._crops, self.splits = crops, published()
        self.recalled: Collection[int] = ()
        self.reads = 0

    async def recall(self) -> tuple[CropInfo, ...]:
        return tuple(CropInfo(split=Split.INSTANCE, crop=crop) for crop in self.recalled)

    async def crops(self, *, refresh: bool = False) -> tuple[CropInfo, ...]:
        self.reads += 1
        self.recalled = self._crops
        return tuple(CropInfo(split=Split.INSTANCE, crop=crop) for crop in self._crops)


class UnsteadyStore(MemoryJobStore):
    """A store whose writes wait for `gate`, and fail while there is an `error`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.writes = 0

    async def add_job(self, job: JobRecord) -> JobEvent:
        await self._turn()
        return await super().add_job(job)

    async def update_job(self, job_id: str, kind: str, state: State, crop: CropProgress | None = None) -> JobEvent:
        await self._turn()
        return await super().update_job(job_id, kind, state, crop)

    async def _turn(self) -> None:
        self.writes += 1
        await asyncio.sleep(0)  # as a real one, it lets others run
        await self.gate.wait()
        if self.error is not None:
            raise self.error


@dataclass
class Scene:
    """A job service and what it stands on; `restarted` is the next process on the same store."""

    store: UnsteadyStore = field(default_factory=UnsteadyStore)
    maker: Maker = field(default_factory=Maker)
    published: Published = field(default_factory=Published)
    at_once: int = 2
    limits: JobLimits = field(default_factory=JobLimits)

    def __post_init__(self) -> None:
        self.last_used = LastUsed(self.store)
        self.jobs = JobService(
            self.maker, self.published, self.store, self.last_used,
            at_once=self.at_once, limits=self.limits, observer=Observer(),
        )  # fmt: skip

    async def restarted(self) -> Scene:
        """The service that a new process makes of what the store knows, having taken up its jobs."""
        after = Scene(self.store, Maker(self.maker.cached), self.published, self.at_once, self.limits)
        await after.jobs.start()
        await settle()
        return after

    async def submit(self, *crops: int, owner: str = "ada", client: str = "", priority: int = 0) -> Job:
        """Ask for instance crops, and let begin what can."""
        job = await self.jobs.submit(JobRequest(split=Split.INSTANCE, crops=crops, priority=priority), owner, client)
        await settle()
        return job

    async def ended(self, job_id: str) -> Job:
        """The job once it is over."""
        job = await self.jobs.get(job_id)
        while not job.state.is_final:
            job = await self.jobs.wait(job_id, job.revision, DEADLINE)
        return job

    async def events(self, job_id: str, after: int = 0) -> list[JobEvent | Job]:
        """All that a stream tells until it ends."""
        return [item async for item in self.jobs.events(job_id, after)]

    async def stored_kinds(self, job_id: str) -> list[str]:
        """The kinds of the events that were recorded."""
        return [event.kind for event in await self.store.events(job_id)]


async def settle() -> None:
    """Let every task run until it waits for something from outside."""
    for _ in range(50):
        await asyncio.sleep(0)


def staged(make: Callable[[], Scene]) -> pytest.MarkDecorator:
    """Have the fixture `scene` make another scene than the default one."""
    return pytest.mark.parametrize("scene", [make], indirect=True, ids=["staged"])


def states(job: Job) -> list[str]:
    """Return the states of a job's crops."""
    return [crop.state.value for crop in job.crops]
