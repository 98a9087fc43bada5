"""Small crops without a bucket or a service, to test code that uses prismcache. Needs h5py (``prismcache[torch]``).

::

    from prismcache.testing import InMemoryService


    def test_training_reads_every_crop():
        with InMemoryService({("instance", 0): ..., ("instance", 1): ...}) as service, service.client() as client:
            assert len(client.ensure("instance")) == 2
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prismcache._testing_files import Files, file_name_of
from prismcache.backend import ReceivedBytes, backends_in_process
from prismcache.catalog import load_splits
from prismcache.client import AsyncPrismClient, PrismClient
from prismcache.config import Settings
from prismcache.errors import PrismError, UnauthorizedError, UnknownJobError
from prismcache.layout import FileName
from prismcache.schema import (
    CropFile,
    CropInfo,
    CropProgress,
    Job,
    JobRequest,
    Split,
    State,
    VerifyResult,
)
from prismcache.splits import Splits
from prismcache.wishes import Wish, Wishes

__all__ = ["InMemoryService"]

_numbers = count(1)


class InMemoryService:
    """Published crops and a cache folder in this process: clients of its `url` use them instead of a service.

    Files are real, small, and in the published format. Jobs make one crop each time they are looked at, so tests see
    progress without a clock. ``context=`` is honoured; made-up crops have 2, 8 and 8 voxels of it. Products are made as
    a worker makes them, which needs ``prismcache[service]``.

    Parameters
    ----------
    crops
        What is published: by split and number, ``...`` for small made-up arrays (always the same), or a mapping with
        ``raw`` (C, Z, Y, X) uint8 and ``labels`` (Z, Y, X), in the middle of raw. Synapse crops have no labels; they,
        and splits of a catalog of yours, have further arrays (Z, Y, X) by name, each in the middle of raw. Default:
        crops 0, 1 and 2 of instance and semantic.
    root
        The cache folder; default: a temporary folder, deleted at the end.
    token
        Refuse clients with another token.
    catalog
        A catalog file with splits of your own, as for the service (docs/catalogs.md).

    Attributes
    ----------
    url
        For ``PrismClient(url=...)`` or ``PRISMCACHE_URL``, in this process and after a fork.
    root
        The cache folder, inside the ``with`` block.
    requests
        ``POST /v1/jobs`` for each job that a client asked for.

    Examples
    --------
    >>> with InMemoryService({("instance", 0): ..., ("instance", 5): ...}) as service:
    ...     with service.client() as client:
    ...         paths = client.ensure("instance", progress=False)
    ...         len(paths), service.requests.count("POST /v1/jobs")
    (2, 1)
    """

    def __init__(
        self,
        crops: Mapping[tuple[str, int], Any] | None = None,
        *,
        root: str | Path | None = None,
        token: str | None = None,
        catalog: str | Path | None = None,
    ) -> None:
        if crops is None:
            crops = {(split.value, crop): ... for split in (Split.INSTANCE, Split.SEMANTIC) for crop in range(3)}
        self.url = f"http://prismcache-{next(_numbers)}.invalid"
        self.requests: list[str] = []
        self._crops = {(Split(split), crop): given for (split, crop), given in crops.items()}
        self._given_root = root
        self._splits = load_splits(None if catalog is None else Path(catalog))
        self._token = token
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="prismcache-")))
        self.root = folder / "root" if self._given_root is None else Path(self._given_root).absolute()
        self._downloads = folder / "downloads"
        self._lab = Lab(self.root, self._crops, self._splits)
        backends_in_process[self.url] = self._backend
        self._stack.callback(backends_in_process.pop, self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def settings(self, *, mounted: bool = True, **settings: Any) -> dict[str, Any]:
        """Return arguments for a client of this service.

        Parameters
        ----------
        mounted
            Whether the client's machine sees the cache folder; else files are copied to its downloads.
        **settings
            Further settings, which come first.
        """
        found: dict[str, Any] = {"url": self.url, "downloads": self._downloads, "token": self._token}
        return found | ({"root": self.root} if mounted else {}) | settings

    def client(self, *, mounted: bool = True, **settings: Any) -> PrismClient:
        """Return a client of this service, for you to close.

        Parameters
        ----------
        mounted, **settings
            As for `settings`.

        Examples
        --------
        >>> with InMemoryService() as service, service.client(mounted=False) as client:
        ...     client.ensure("semantic", 1, progress=False)[0].endswith("crop_1.h5")
        True
        """
        return PrismClient(**self.settings(mounted=mounted, **settings))

    def async_client(self, *, mounted: bool = True, **settings: Any) -> AsyncPrismClient:
        """Return a client for programs that run an event loop; see `client`."""
        return AsyncPrismClient(**self.settings(mounted=mounted, **settings))

    def cache(self, split: str | Split, crop: int) -> Path:
        """Write a crop's file to the cache; return its path.

        Examples
        --------
        >>> with InMemoryService() as service:
        ...     service.cache("instance", 2).name
        'crop_2.h5'
        """
        with self._lab.lock:
            return Path(self._lab.make(Split(split), FileName(crop)).path)

    def fail(self, split: str | Split, crop: int, error: PrismError | None) -> None:
        """Let jobs fail to make a crop with `error`; None lets them succeed again.

        Examples
        --------
        >>> from prismcache import SourceUnreachableError
        >>> with InMemoryService() as service, service.client() as client:
        ...     service.fail("instance", 0, SourceUnreachableError("the bucket is away"))
        ...     try:
        ...         client.ensure("instance", 0, progress=False)
        ...     except SourceUnreachableError as error:
        ...         print(error)
        the bucket is away
        """
        with self._lab.lock:
            self._lab.failing[Split(split), crop] = error

    def hold(self) -> None:
        """Let no job go on until `resume`."""
        self._lab.held = True

    def resume(self) -> None:
        """Let jobs go on."""
        self._lab.held = False

    def forget_jobs(self) -> None:
        """Forget all jobs, as a service does whose database was deleted."""
        with self._lab.lock:
            self._lab.jobs.clear()

    def _backend(self, settings: Settings) -> _Backend:
        token = None if settings.token is None else settings.token.get_secret_value()
        return _Backend(self._lab, settings, self.requests, allowed=self._token in {None, token})


class Lab(Files):
    """Files, and the jobs that write them; shared by all clients and safe to use from any thread that holds `lock`."""

    def __init__(self, root: Path, crops: Mapping[tuple[Split, int], Any], splits: Splits | None = None) -> None:
        super().__init__(root, crops, splits)
        self.lock = threading.RLock()
        self.held = False
        self.jobs: dict[str, tuple[JobRequest, Job, set[str]]] = {}  # with the names of those who want it

    def submit(self, request: JobRequest, name: str) -> Job:
        """Return the active job for the same request, or a new one, which is final if everything is cached."""
        for same, job, names in self.jobs.values():
            if same == request and not job.state.is_final:
                names.add(name)
                return job
        split, request = request.split, self.splits.checked(request)
        crops = [crop for each, crop in self.published if each == split] if request.crops is None else request.crops
        progress = []
        for crop in crops:
            file = self.good(split, file_name_of(request, crop)) if (split, crop) in self.published else None
            progress.append(CropProgress(crop=crop, state=State.DONE if file else State.RUNNING, file=file))
        job = Job(
            id=uuid.uuid4().hex,
            revision=0,
            state=_state_of(progress),
            split=split,
            channels=request.channels,
            crops=tuple(progress),
            strict=request.strict,
            context=request.context,
            product=request.product,
        )
        self.jobs[job.id] = request, job, {name}
        return job

    def advance(self, job_id: str) -> Job:
        """Make one more crop of a job, unless jobs are held; return the job after that."""
        request, job, _ = self.find(job_id)
        following = next((crop.crop for crop in job.crops if not crop.state.is_final), None)
        if following is None or self.held:
            return job
        try:
            if (error := self.failing.get((job.split, following))) is not None:
                raise error
            file = self.make(job.split, file_name_of(request, following))
        except PrismError as error:
            return self._change(job_id, CropProgress(crop=following, state=State.FAILED, problem=error.to_problem()))
        return self._change(job_id, CropProgress(crop=following, state=State.DONE, file=file))

    def cancel(self, job_id: str, name: str) -> None:
        """End the wish of one call; the job is cancelled with the last of them."""
        _, job, names = self.find(job_id)
        names.discard(name)
        for crop in () if names else job.crops:
            if not crop.state.is_final:
                self._change(job_id, CropProgress(crop=crop.crop, state=State.CANCELLED))

    def find(self, job_id: str) -> tuple[JobRequest, Job, set[str]]:
        if job_id not in self.jobs:
            raise UnknownJobError(f"there is no job {job_id!r}")
        return self.jobs[job_id]

    def _change(self, job_id: str, progress: CropProgress) -> Job:
        request, job, names = self.jobs[job_id]
        crops = tuple(progress if crop.crop == progress.crop else crop for crop in job.crops)
        job = job.model_copy(update={"crops": crops, "state": _state_of(crops), "revision": job.revision + 1})
        self.jobs[job_id] = request, job, names
        return job


def _state_of(crops: Sequence[CropProgress]) -> State:
    states = {crop.state for crop in crops}
    return next((state for state in (State.RUNNING, State.CANCELLED, State.FAILED) if state in states), State.DONE)


class _Backend:
    """The `prismcache.backend.Backend` of one client."""

    def __init__(self, lab: Lab, settings: Settings, requests: list[str], *, allowed: bool) -> None:
        self._lab = lab
        self._settings = settings
        self._requests = requests
        self._allowed = allowed
        self._wishes = Wishes(self._submit, self._cancel)

    async def submit(self, request: JobRequest) -> Job:
        self._requests.append("POST /v1/jobs")
        return await self._wishes.submit(Wish(request))

    async def _submit(self, wish: Wish) -> Job:
        with self._open() as lab:
            return lab.submit(wish.request, wish.name)

    async def wait(self, job: Job, timeout: float) -> Job:  # noqa: ASYNC109 - the deadline of a long poll
        end = asyncio.get_running_loop().time() + timeout
        while True:
            with self._lab.lock:
                newer = self._lab.find(job.id)[1]
                if newer.revision == job.revision:
                    newer = self._lab.advance(job.id)
            if newer.revision != job.revision or newer.state.is_final or asyncio.get_running_loop().time() >= end:
                return self._wishes.follow(newer)
            await asyncio.sleep(0.005)

    async def cancel(self, job: Job) -> None:
        await self._wishes.cancel(job.id)

    async def _cancel(self, job_id: str, name: str) -> None:
        with self._lab.lock:
            if job_id in self._lab.jobs:
                self._lab.cancel(job_id, name)

    async def paths_here(self, files: Sequence[CropFile]) -> Mapping[int, str]:
        return {} if self._settings.mount is None else {file.crop: file.path for file in files}

    async def local_path(self, file: CropFile, report: ReceivedBytes) -> str:
        if self._settings.mount is not None:
            return file.path
        target = self._settings.downloads / Path(file.path).relative_to(self._lab.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, target)
        report(file.size)
        return str(target)

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:  # noqa: ARG002
        with self._open(split) as lab:
            return [lab.describe(*key) for key in lab.published if split in {None, key[0]}]

    async def describe(self, split: Split, crop: int) -> CropInfo:
        with self._open(split) as lab:
            return lab.describe(split, crop)

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        with self._open(split) as lab:
            return lab.verify(split, crops, repair=repair)

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        with self._open(split) as lab:
            return lab.remove(split, crops)

    async def aclose(self) -> None:
        await self._wishes.end()

    @contextmanager
    def _open(self, split: Split | None = None) -> Iterator[Lab]:
        if not self._allowed:
            raise UnauthorizedError("no token, or not a valid one")
        if split is not None:
            self._lab.splits.entry(split)
        with self._lab.lock:
            yield self._lab
