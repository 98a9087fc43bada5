"""Make one crop: list → read metadata → plan → share out memory → stream → sync, check and hash.

Nothing is published here: `Materializer.make` leaves a complete temporary file and returns its manifest.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py

from prismcache.config import Settings
from prismcache.disk import disk_errors, sha256_of
from prismcache.errors import NoSpaceError, SourceChangedError, SourceCorruptError, SourceError, UnknownCropError
from prismcache.layout import FORMAT_VERSION, FileStamp, Manifest, SourceList, SourceObject
from prismcache.schema import Progress
from prismcache.splits import SplitEntry
from prismcache_service.cache import FILE_MODE, CropName
from prismcache_service.pipeline import Report
from prismcache_service.pipeline.bucket.source import Source, crop_of_folder, fingerprint
from prismcache_service.pipeline.codec import RECIPE
from prismcache_service.pipeline.plan import CropPlan, plan_budget, plan_crop, read_crop
from prismcache_service.pipeline.system import Threads, give_memory_back, resident_bytes, run_in
from prismcache_service.pipeline.write import CropWriter, Spool, check_file, stream_crop

_LIBRARIES = ("zarr", "numcodecs", "isal", "h5py", "numpy", "aiobotocore")


@dataclass(frozen=True)
class Order:
    """What is made: the crop's name, its split's entry in the catalog and source, and the file to write."""

    name: CropName
    entry: SplitEntry
    source: Source
    target: Path

    @property
    def folder(self) -> str:
        """The crop's folder in the source."""
        return self.entry.crop_folder(self.name.crop)

    @property
    def url(self) -> str:
        """The folder with its bucket."""
        return f"{self.source.url}/{self.folder}"


class Materializer:
    """Makes crops, one at a time."""

    def __init__(self, settings: Settings, executor: ThreadPoolExecutor) -> None:
        self._settings = settings
        self._threads = Threads(executor, ThreadPoolExecutor(1, "hdf5"))
        self._tidying: asyncio.Task[None] | None = None

    def close(self) -> None:
        """End the HDF5 thread; files are closed by then."""
        self._threads.hdf5.shutdown()

    def tidy(self) -> None:
        """Start to give back the memory that a crop left; the next crop waits for that before it takes any."""
        self._tidying = asyncio.create_task(asyncio.to_thread(give_memory_back))

    async def make(self, order: Order, report: Report, *, strict: bool = False) -> tuple[Manifest, SourceList]:
        """Make the file `order.target`, which must not exist; return its manifest, without a stamp, and its objects.

        A crop that changes in the bucket while it is fetched is begun again, once: versions are never mixed.

        `report` is called with the progress, on the event loop. `strict` refuses a crop with absent chunks. After an
        error, the file may exist in part.
        """
        try:
            objects = await _listing(order)
            try:
                return await self._attempt(order, objects, report, strict=strict)
            except (SourceCorruptError, SourceChangedError):
                again = await _listing(order)
                if fingerprint(again.values()) == fingerprint(objects.values()):
                    raise
            await asyncio.to_thread(order.target.unlink, missing_ok=True)
            try:
                return await self._attempt(order, again, report, strict=strict)
            except SourceCorruptError as error:
                raise SourceChangedError(f"{order.folder} changed while it was fetched, twice: {error}") from error
        except SourceError as error:
            if order.folder in str(error):
                raise
            # The code that raised this knew an object or a value, but not the crop.
            raise type(error)(f"{order.folder}: {error}", remedy=error.remedy) from error

    async def _attempt(
        self, order: Order, objects: Mapping[str, SourceObject], report: Report, *, strict: bool
    ) -> tuple[Manifest, SourceList]:
        crop = await read_crop(order.source, order.folder, objects, order.entry)
        plan = plan_crop(crop, order.name.channels, strict=strict, context=order.name.context)
        _check_space(plan, order.target.parent)
        if self._tidying is not None:
            await self._tidying
        sources = SourceList(
            source_fingerprint=fingerprint(objects.values()), objects=tuple(objects[key] for key in sorted(objects))
        )
        with ExitStack() as files:
            spool = files.enter_context(Spool(order.target))
            attributes = _attributes(order, plan, sources.source_fingerprint)
            open_writer = partial(CropWriter, order.target, plan, attributes, FILE_MODE)
            writer = files.enter_context(await self._stream(order, plan, spool, open_writer, report))
            sha256, size = await self._finish(spool, writer, order.target)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            split=order.name.split,
            crop=order.name.crop,
            channels=plan.channels,
            complete=plan.complete,
            sha256=sha256,
            size=size,
            stamp=FileStamp(size=size, mtime_ns=0, ctime_ns=0),
            source=order.url,
            endpoint=order.source.endpoint,
            source_fingerprint=sources.source_fingerprint,
            missing_chunks=plan.missing_chunks,
            notes=plan.notes,
            recipe=RECIPE,
            context=order.name.context,
            definition=order.entry.definition,
            **software(),
        )
        return manifest, sources

    async def _stream(
        self, order: Order, plan: CropPlan, spool: Spool, open_writer: Callable[[], CropWriter], report: Report
    ) -> CropWriter:
        """Share out the memory and fetch, decode, deflate and write all chunks; return the writer, still open."""
        budget = plan_budget(
            plan,
            limit=self._settings.memory_limit,
            used=resident_bytes(),
            threads=self._settings.decode_threads or os.cpu_count() or 1,
            concurrency=self._settings.s3_concurrency,
        )
        try:
            return await stream_crop(
                partial(order.source.read, order.folder),
                plan,
                budget,
                open_writer=open_writer,
                threads=self._threads,
                spool=spool,
                on_fetched=_counter(plan, report),
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


async def _listing(order: Order) -> dict[str, SourceObject]:
    objects = await order.source.list_objects(order.folder)
    if not objects:
        folders = await order.source.list_folders(order.entry.folder)
        known = sorted(n for n in map(crop_of_folder, folders) if n is not None)
        has = f"it has {', '.join(map(str, known))}" if known else "it has no crop of this split"
        name = order.name
        raise UnknownCropError(f"crop {name.crop} of split {name.split.value!r} is not in {order.source.url} ({has})")
    return objects


def _attributes(order: Order, plan: CropPlan, source_fingerprint: str) -> dict[str, Any]:
    """Return the attributes of the file's root group."""
    attributes = {
        "crop_id": order.name.crop,
        "split": order.name.split.value,
        "num_channels": len(plan.channels),
        "format_version": FORMAT_VERSION,
        "prismcache_version": version("prismcache"),
        "source": order.url,
        "source_fingerprint": source_fingerprint,
        "missing_chunks": plan.missing_chunks,
    }
    if order.entry.definition:  # so that a reader without the lab's catalog knows what the file is
        attributes["catalog"] = order.entry.to_json()
    return attributes


def software() -> dict[str, Any]:
    """Return the fields of a manifest that name the software that made the file, and the time."""
    return {
        "prismcache_version": version("prismcache"),
        "libraries": {name: version(name) for name in _LIBRARIES} | {"hdf5": h5py.version.hdf5_version},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


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
