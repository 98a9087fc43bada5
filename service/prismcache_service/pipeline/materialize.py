"""One crop from the bucket to a finished, verified file: list → plan → stream → check.

`materialize` never publishes: it leaves a complete temporary file, and says what is in it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prismcache.config import Settings
from prismcache.errors import NoSpaceError, SourceChangedError, SourceCorruptError, SourceError, UnknownCropError
from prismcache.layout import FORMAT_VERSION, SourceObject
from prismcache_service.cache.cache import CropName, file_sha256
from prismcache_service.pipeline.bucket.source import Source, fingerprint
from prismcache_service.pipeline.codec.encode import RECIPE
from prismcache_service.pipeline.memory import give_memory_back, resident_bytes
from prismcache_service.pipeline.plan.budget import plan_budget
from prismcache_service.pipeline.plan.metadata import CropSource, read_crop
from prismcache_service.pipeline.plan.plan import CropPlan, plan_crop
from prismcache_service.pipeline.progress import Moved, Progress, Report
from prismcache_service.pipeline.write.hdf5 import CropWriter, check_file
from prismcache_service.pipeline.write.spool import Spool
from prismcache_service.pipeline.write.stream import CropStream
from prismcache_service.pipeline.write.threads import run_in


@dataclass(frozen=True)
class MadeCrop:
    """A finished temporary file and what its manifest needs."""

    channels: tuple[int, ...]
    complete: bool
    sha256: str
    size: int
    source: str
    endpoint: str
    source_fingerprint: str
    source_objects: tuple[SourceObject, ...]
    missing_chunks: int
    recipe: str


class Materializer:
    """Makes crops, one at a time, with threads of its own.

    Parameters
    ----------
    source
        The bucket.
    settings
        Memory limit, threads and concurrency.
    file_mode
        Permissions of the files.

    Attributes
    ----------
    moved
        Bytes through each stage, of the crop in the making or made last.
    """

    def __init__(self, source: Source, settings: Settings, executor: ThreadPoolExecutor, file_mode: int) -> None:
        self._source, self._settings, self._mode = source, settings, file_mode
        self._executor = executor
        self._hdf5_thread = ThreadPoolExecutor(1, "hdf5")
        self._tidying: asyncio.Task[None] | None = None
        self.moved = Moved()

    def close(self) -> None:
        """End the HDF5 thread; files are closed by then."""
        self._hdf5_thread.shutdown()

    def tidy(self) -> None:
        """Give back the memory that a crop left, beside the listing of the next, which waits before it takes any."""
        self._tidying = asyncio.create_task(asyncio.to_thread(give_memory_back))

    async def make(self, name: CropName, target: Path, report: Report, *, strict: bool = False) -> MadeCrop:
        """Make the file `target`, which must not exist; `report` hears of progress on the event loop.

        `strict` refuses a crop with absent chunks.

        A crop that changes in the bucket while it is fetched is begun again, once: versions are never mixed.

        Raises
        ------
        PrismError
            See `prismcache.errors`; the file may then exist in part.
        """
        try:
            return await self._make_or_begin_again(name, target, report, strict=strict)
        except SourceError as error:
            if name.folder in str(error):
                raise
            # Who found it knew an object or a value, but not of which crop.
            raise type(error)(f"{name.folder}: {error}", remedy=error.remedy) from error

    async def _make_or_begin_again(self, name: CropName, target: Path, report: Report, *, strict: bool) -> MadeCrop:
        objects = await self._listing(name)
        try:
            return await self._make(name, objects, target, report, strict=strict)
        except (SourceCorruptError, SourceChangedError):
            again = await self._listing(name)
            if fingerprint(again.values()) == fingerprint(objects.values()):
                raise
        await asyncio.to_thread(target.unlink, missing_ok=True)
        try:
            return await self._make(name, again, target, report, strict=strict)
        except SourceCorruptError as error:
            raise SourceChangedError(f"{name.folder} changed while it was fetched, twice: {error}") from error

    async def _listing(self, name: CropName) -> dict[str, SourceObject]:
        objects = await self._source.list_objects(name.folder)
        if not objects:
            folders = await self._source.list_folders(name.split.value)
            known = sorted(n for n in map(crop_of_folder, folders) if n is not None)
            raise UnknownCropError(
                f"crop {name.crop} of split {name.split.value!r} is not in {self._source.url} ({_known_crops(known)})"
            )
        return objects

    async def _make(
        self, name: CropName, objects: Mapping[str, SourceObject], target: Path, report: Report, *, strict: bool
    ) -> MadeCrop:
        crop = await read_crop(self._source, name.folder, objects)
        plan = plan_crop(crop, name.channels, strict=strict)
        _check_space(plan, target.parent)
        with ExitStack() as files:
            spool = files.enter_context(Spool(target.parent))
            writer = await self._stream(name, crop, plan, target, spool, report)
            files.enter_context(writer)
            fd = await run_in(self._hdf5_thread, writer.close_file)
            # What is hashed is what is read back; the disk takes its time beside it. Not in a thread that has deflated:
            # ISA-L leaves AVX's registers in a state in which SHA instructions take a third longer.
            syncing = asyncio.ensure_future(run_in(self._hdf5_thread, _end, spool, writer, target, plan))
            hashing = asyncio.ensure_future(asyncio.to_thread(file_sha256, fd))
            await asyncio.wait((syncing, hashing))  # neither is left behind with a closed descriptor
            syncing.result()
            sha256 = hashing.result()
            return MadeCrop(
                channels=plan.channels,
                complete=plan.complete,
                sha256=sha256,
                size=os.fstat(fd).st_size,
                source=f"{self._source.url}/{name.folder}",
                endpoint=self._source.endpoint,
                source_fingerprint=fingerprint(objects.values()),
                source_objects=tuple(objects[key] for key in sorted(objects)),
                missing_chunks=plan.missing_chunks,
                recipe=RECIPE,
            )

    async def _stream(
        self, name: CropName, crop: CropSource, plan: CropPlan, target: Path, spool: Spool, report: Report
    ) -> CropWriter:
        if self._tidying is not None:
            await self._tidying
        threads = self._settings.decode_threads or os.cpu_count() or 1
        budget = plan_budget(
            plan,
            limit=self._settings.memory_limit,
            used=resident_bytes(),
            threads=threads,
            concurrency=self._settings.s3_concurrency,
        )
        open_writer = partial(CropWriter, target, plan, self._attributes(name, crop, plan), self._mode)
        stream = CropStream(
            self._source,
            crop,
            plan,
            budget,
            executor=self._executor,
            hdf5_thread=self._hdf5_thread,
            spool=spool,
            on_fetched=_counter(plan, report),
        )
        self.moved = stream.moved
        try:
            return await stream.run(open_writer)
        except BaseExceptionGroup as group:
            raise first_error(group) from group

    def _attributes(self, name: CropName, crop: CropSource, plan: CropPlan) -> dict[str, Any]:
        return {
            "crop_id": name.crop,
            "split": name.split.value,
            "num_channels": len(plan.channels),
            "format_version": FORMAT_VERSION,
            "prismcache_version": version("prismcache"),
            "source": f"{self._source.url}/{name.folder}",
            "source_fingerprint": fingerprint(crop.objects.values()),
            "missing_chunks": plan.missing_chunks,
        }


def crop_of_folder(name: str) -> int | None:
    """The id in a crop's folder name, ``crop_7.zarr``; None for other names."""
    digits = name.removeprefix("crop_").removesuffix(".zarr")
    is_number = digits.isascii() and digits.isdigit() and digits == str(int(digits))  # crop_007.zarr is not crop 7
    return int(digits) if is_number and name == f"crop_{digits}.zarr" else None


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first single exception of a group: tasks that failed after it only followed."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end(spool: Spool, writer: CropWriter, target: Path, plan: CropPlan) -> None:
    spool.close()
    writer.sync()
    check_file(target, plan)


def _known_crops(known: list[int]) -> str:
    return f"it has {', '.join(map(str, known))}" if known else "it has no crop of this split"


def _check_space(plan: CropPlan, folder: Path) -> None:
    stats = os.statvfs(folder)
    free = stats.f_bavail * stats.f_frsize
    if free < plan.file_bytes_bound:
        raise NoSpaceError(
            f"{folder} has {free / 1e6:.0f} MB free, the crop may need {plan.file_bytes_bound / 1e6:.0f} MB"
        )


def _counter(plan: CropPlan, report: Report) -> Callable[[int], None]:
    fetched = plan.fetched()
    objects, size = len(fetched), sum(item.size for item in fetched)
    done = [0, 0]
    report(Progress(0, objects, 0, size))

    def count(bytes_: int) -> None:
        done[0] += 1
        done[1] += bytes_
        report(Progress(done[0], objects, done[1], size))

    return count
