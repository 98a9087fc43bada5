"""Make one crop: list → read metadata → plan → share out memory → stream → sync, check and hash.

Nothing is published here: `Materializer.make` leaves a complete temporary file and returns what its manifest needs.
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

from prismcache.catalog import published
from prismcache.config import Settings
from prismcache.disk import disk_errors, sha256_of
from prismcache.errors import NoSpaceError, SourceChangedError, SourceCorruptError, SourceError, UnknownCropError
from prismcache.layout import FORMAT_VERSION, SourceObject
from prismcache.schema import Progress
from prismcache.splits import SplitEntry
from prismcache_service.cache import CropName
from prismcache_service.pipeline.bucket.source import Source, crop_of_folder, fingerprint
from prismcache_service.pipeline.codec import RECIPE
from prismcache_service.pipeline.plan import CropPlan, CropSource, plan_budget, plan_crop, read_crop
from prismcache_service.pipeline.progress import Moved, Report
from prismcache_service.pipeline.system import give_memory_back, resident_bytes
from prismcache_service.pipeline.write import CropWriter, Spool, Threads, check_file, run_in, stream_crop


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
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CropPlace:
    """Where a crop lies: the source of its split, the split's entry in the catalog, and the crop's folder."""

    source: Source
    entry: SplitEntry
    folder: str

    @property
    def url(self) -> str:
        """The folder with its bucket."""
        return f"{self.source.url}/{self.folder}"


class Materializer:
    """Make crops, one at a time.

    Parameters
    ----------
    source
        The bucket of the published splits.
    settings
        Memory limit, threads and concurrency.
    executor
        Threads that decode and deflate.
    file_mode
        Permissions of the files.

    Attributes
    ----------
    moved
        Bytes through each stage, of the crop in the making or made last.
    """

    def __init__(self, source: Source, settings: Settings, executor: ThreadPoolExecutor, file_mode: int) -> None:
        self._source, self._settings, self._mode = source, settings, file_mode
        self._threads = Threads(executor, ThreadPoolExecutor(1, "hdf5"))
        self._tidying: asyncio.Task[None] | None = None
        self.moved = Moved()

    def close(self) -> None:
        """End the HDF5 thread; files are closed by then."""
        self._threads.hdf5.shutdown()

    def tidy(self) -> None:
        """Start to give back the memory that a crop left; the next crop waits for that before it takes any."""
        self._tidying = asyncio.create_task(asyncio.to_thread(give_memory_back))

    async def make(
        self,
        name: CropName,
        target: Path,
        report: Report,
        *,
        strict: bool = False,
        entry: SplitEntry | None = None,
        source: Source | None = None,
    ) -> MadeCrop:
        """Make the file `target`.

        A crop that changes in the bucket while it is fetched is begun again, once: versions are never mixed.

        Parameters
        ----------
        name
            Which crop, which of its channels, and how far raw reaches beyond the labels.
        target
            The file, which must not exist.
        report
            Called with the progress, on the event loop.
        strict
            Refuse a crop with absent chunks.
        entry, source
            What the split is and where it lies; default: the published one.

        Raises
        ------
        PrismError
            See `prismcache.errors`; the file may then exist in part.
        """
        entry = entry or published().entry(name.split)
        place = CropPlace(source or self._source, entry, entry.crop_folder(name.crop))

        async def attempt(objects: Mapping[str, SourceObject]) -> MadeCrop:
            crop = await read_crop(place.source, place.folder, objects, entry)
            plan = plan_crop(crop, name.channels, strict=strict, context=name.context)
            return await self._make(name, place, crop, plan, target, report)

        try:
            objects = await _listing(name, place)
            try:
                return await attempt(objects)
            except (SourceCorruptError, SourceChangedError):
                again = await _listing(name, place)
                if fingerprint(again.values()) == fingerprint(objects.values()):
                    raise
            await asyncio.to_thread(target.unlink, missing_ok=True)
            try:
                return await attempt(again)
            except SourceCorruptError as error:
                raise SourceChangedError(f"{place.folder} changed while it was fetched, twice: {error}") from error
        except SourceError as error:
            if place.folder in str(error):
                raise
            # The code that raised this knew an object or a value, but not the crop.
            raise type(error)(f"{place.folder}: {error}", remedy=error.remedy) from error

    async def _make(
        self, name: CropName, place: CropPlace, crop: CropSource, plan: CropPlan, target: Path, report: Report
    ) -> MadeCrop:
        _check_space(plan, target.parent)
        if self._tidying is not None:
            await self._tidying
        source_fingerprint = fingerprint(crop.objects.values())
        attributes = {
            "crop_id": name.crop,
            "split": name.split.value,
            "num_channels": len(plan.channels),
            "format_version": FORMAT_VERSION,
            "prismcache_version": version("prismcache"),
            "source": place.url,
            "source_fingerprint": source_fingerprint,
            "missing_chunks": plan.missing_chunks,
        }
        if place.entry.definition:  # so that a reader without the lab's catalog knows what the file is
            attributes["catalog"] = place.entry.to_json()
        with ExitStack() as files:
            spool = files.enter_context(Spool(target))
            open_writer = partial(CropWriter, target, plan, attributes, self._mode)
            writer = files.enter_context(await self._stream(place, plan, spool, open_writer, report))
            sha256, size = await self._finish(spool, writer, target)
        return MadeCrop(
            channels=plan.channels,
            complete=plan.complete,
            sha256=sha256,
            size=size,
            source=place.url,
            endpoint=place.source.endpoint,
            source_fingerprint=source_fingerprint,
            source_objects=tuple(crop.objects[key] for key in sorted(crop.objects)),
            missing_chunks=plan.missing_chunks,
            recipe=RECIPE,
            notes=plan.notes,
        )

    async def _stream(
        self, place: CropPlace, plan: CropPlan, spool: Spool, open_writer: Callable[[], CropWriter], report: Report
    ) -> CropWriter:
        """Share out the memory and fetch, decode, deflate and write all chunks; return the writer, still open."""
        budget = plan_budget(
            plan,
            limit=self._settings.memory_limit,
            used=resident_bytes(),
            threads=self._settings.decode_threads or os.cpu_count() or 1,
            concurrency=self._settings.s3_concurrency,
        )
        self.moved = Moved()
        try:
            return await stream_crop(
                partial(place.source.read, place.folder),
                plan,
                budget,
                open_writer=open_writer,
                threads=self._threads,
                spool=spool,
                on_fetched=_counter(plan, report),
                moved=self.moved,
            )
        except BaseExceptionGroup as group:
            raise first_error(group) from group

    async def _finish(self, spool: Spool, writer: CropWriter, target: Path) -> tuple[str, int]:
        """Close, sync and check the file; return its SHA-256 and its size in bytes."""

        def end() -> None:
            spool.close()
            writer.sync()
            check_file(target, writer.shapes)

        fd = await run_in(self._threads.hdf5, writer.close_file)
        # The hash covers what the system reads back, while the disk writes. It does not run in a thread that has
        # deflated: ISA-L leaves AVX's registers in a state in which SHA instructions take a third longer.
        syncing = asyncio.ensure_future(run_in(self._threads.hdf5, end))
        hashing = asyncio.ensure_future(asyncio.to_thread(sha256_of, fd))
        await asyncio.wait((syncing, hashing))  # neither is left behind with a closed descriptor
        syncing.result()
        return hashing.result(), os.fstat(fd).st_size


async def _listing(name: CropName, place: CropPlace) -> dict[str, SourceObject]:
    objects = await place.source.list_objects(place.folder)
    if not objects:
        folders = await place.source.list_folders(place.entry.folder)
        known = sorted(n for n in map(crop_of_folder, folders) if n is not None)
        has = f"it has {', '.join(map(str, known))}" if known else "it has no crop of this split"
        raise UnknownCropError(f"crop {name.crop} of split {name.split.value!r} is not in {place.source.url} ({has})")
    return objects


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first single exception of a group: the tasks that failed later failed because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _check_space(plan: CropPlan, folder: Path) -> None:
    with disk_errors(folder, "PRISMCACHE_ROOT"):
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
    report(Progress(objects_total=objects, bytes_total=size))

    def count(bytes_: int) -> None:
        done[0] += 1
        done[1] += bytes_
        report(Progress(objects_done=done[0], objects_total=objects, bytes_done=done[1], bytes_total=size))

    return count
