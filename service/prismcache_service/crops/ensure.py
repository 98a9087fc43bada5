"""Hit, wait or make: one crop becomes cached, and one process at a time makes it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from prismcache.errors import CropNotCachedError, MissingChunksError, PrismError, StorageUnwritableError
from prismcache.schema import CropFile, CropProgress, JobRequest, Product, Progress, State
from prismcache_service.cache import CropCache, CropName, Found, Watch
from prismcache_service.engine import CropTask, Engine, Outcome
from prismcache_service.pipeline import Report

Room = Callable[[CropName, Report], AbstractAsyncContextManager[None]]

_log = logging.getLogger(__name__)
_OF_A_PRODUCT = {"voxels_done", "voxels_total", "waiting_for"}  # its own figures; the others are its crop's


class EnsureService:
    """Gets crops into one cache folder.

    `room` holds room for a file while it is made; without it the disk is the only bound. `on_set_aside` is called with
    a sentence for each damaged or unknown file that was moved out of a crop's place.
    """

    def __init__(
        self,
        cache: CropCache,
        engine: Engine,
        room: Room | None = None,
        on_set_aside: Callable[[str], None] = _log.warning,
    ) -> None:
        self._cache = cache
        self._engine = engine
        self._room: Room = room or (lambda _name, _report: contextlib.nullcontext())
        self._on_set_aside = on_set_aside

    async def find_all(self, request: JobRequest, crops: Sequence[int]) -> list[CropProgress]:
        """Look a request's crops up: each is done with its file, failed, or queued.

        No file is read as a whole here: a crop whose file has to be read again is queued, and `ensure` reads it.
        """
        return await self._cache.threads.run(lambda: [self._look(request, crop) for crop in crops])

    def _look(self, request: JobRequest, crop: int) -> CropProgress:
        try:
            found = _file_of(self._cache.look(CropName.of(request, crop)), strict=request.strict)
        except PrismError as error:
            return CropProgress(crop=crop, state=State.FAILED, problem=error.to_problem())
        return CropProgress(crop=crop, state=State.DONE if found else State.QUEUED, file=found)

    async def ensure(self, name: CropName, report: Report, *, strict: bool = False) -> Outcome:
        """Return a right file of a crop that `find_all` did not find, or the problem of the worker that had to make it.

        The file is looked up once more under the making lock, and then made. For a product, the crop comes first; if
        the crop is removed or made anew while the product is made from it, both are made once more.

        Parameters
        ----------
        name
            The file wanted; a file with more channels or context serves as well.
        report
            Called with progress if the crop is made here.
        strict
            Refuse a crop with absent chunks, also a cached one.
        """
        if name.product is Product.CROP:
            return await self._ensure_file(name, report, strict=strict)
        fetched = Progress()

        def report_crop(progress: Progress) -> None:
            nonlocal fetched
            fetched = progress
            report(progress)

        def report_product(progress: Progress) -> None:
            report(progress.model_copy(update=fetched.model_dump(exclude=_OF_A_PRODUCT)))

        async def make_both() -> Outcome:
            crop = await self._ensure_file(CropName(name.split, name.crop), report_crop, strict=strict)
            return await self._ensure_file(name, report_product, strict=strict) if isinstance(crop, CropFile) else crop

        outcome = await make_both()
        is_gone = not isinstance(outcome, CropFile) and outcome.code == CropNotCachedError.code
        return await make_both() if is_gone else outcome

    async def _ensure_file(self, name: CropName, report: Report, *, strict: bool) -> Outcome:
        watch, locks, told = Watch(), self._cache.locks, ""
        try:
            await self._cache.threads.run(self._cache.prepare, name.split)
            while (token := await locks.acquire(name.lock, watch)) is None:
                if watch.holder is not None and told != watch.holder.process:
                    told = watch.holder.process
                    report(Progress(waiting_for=f"{told}, which makes the same file"))
        except StorageUnwritableError:
            # A root that this process may only read: its files are still good, perhaps after being read again.
            if found := _file_of(await self._cache.find(name), strict=strict):
                return found
            raise
        async with locks.held(name.lock, token):
            return await self._look_or_make(CropTask(name, token, strict, self._cache.splits.entry(name.split)), report)

    async def _look_or_make(self, task: CropTask, report: Report) -> Outcome:
        await self._cache.threads.read(self._cache.sweep)  # reads files whose publication lacked only the last step
        found = await self._cache.find(task.name)
        if file := _file_of(found, strict=task.strict):
            return file
        for name, reason in found.wrong.items():
            if await self._cache.threads.run(self._cache.set_aside, name):
                path = self._cache.shown_path(name)
                self._on_set_aside(
                    f"{path} was moved to the quarantine and is fetched again: it {reason.removeprefix(f'{path} ')}"
                )
        async with self._room(task.name, report):
            outcome = await self._engine.run(task, report)
        return self._cache.shown(outcome) if isinstance(outcome, CropFile) else outcome


def _file_of(found: Found, *, strict: bool) -> CropFile | None:
    if found.file is not None and strict and found.file.missing_chunks:
        raise MissingChunksError(f"{found.file.path} was made with {found.file.missing_chunks} absent chunks")
    return found.file
