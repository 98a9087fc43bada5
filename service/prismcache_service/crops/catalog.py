"""The crops that the bucket publishes, stored in the cache folder so that the bucket is read once a day."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from prismcache.catalog import published
from prismcache.config import Settings
from prismcache.errors import PrismError, SourceUnreachableError, StorageError, UnknownCropError
from prismcache.layout import STATE_FOLDER, SourceObject, file_bytes_bound
from prismcache.schema import CropInfo, CropProgress, JobRequest, Product, Split, State
from prismcache.splits import SplitEntry
from prismcache_service.cache import CropName, DiskThreads, SingleFlight
from prismcache_service.pipeline import require_service_extra

if TYPE_CHECKING:
    from prismcache_service.pipeline.bucket.s3 import Sources
    from prismcache_service.pipeline.bucket.source import Source

T = TypeVar("T")

_CHECK_S = 30.0
_MAX_AGE = timedelta(days=1)  # of a dataset that has not changed since it was published
_OFFLINE_S = 60.0  # for which an old catalog is used before an unreachable bucket is tried again
_REFRESH_S = 60.0  # the bucket is asked for an unknown crop at most this often
_REFRESH_TIMEOUT_S = 5.0
_log = logging.getLogger("prismcache")


class _Remembered(BaseModel):
    read_at: datetime
    source: str
    crops: tuple[CropInfo, ...]


class CatalogService:
    """The published crops of all splits.

    `failure` is the error of the last attempt to read the bucket, and None if the attempt succeeded.
    """

    _refreshed_at = float("-inf")  # when an unknown crop was last looked for in the bucket; monotonic, in s

    def __init__(self, settings: Settings, threads: DiskThreads) -> None:
        self._threads = threads
        self._path = settings.root / STATE_FOLDER / "catalog.json"
        self._responded_at = float("-inf")
        self._reading = SingleFlight()
        self._source_thread = SourceThread(settings)
        self.splits = settings.splits
        place = f"{settings.s3_endpoint_url or ''} s3://{settings.s3_bucket}/{settings.s3_prefix}"
        self._source = f"{place} {self.splits.digest}"
        self._fresh: tuple[datetime, float] | None = None  # when the catalog was read, and until when it counts
        self._part: tuple[float, tuple[CropInfo, ...]] | None = None  # until when a part counts, and its crops
        self.failure: PrismError | None = None

    async def crops(self, *, refresh: bool = False) -> tuple[CropInfo, ...]:
        """Return every published crop, ordered by split and id; `refresh` reads the bucket even if it was read today.

        Without `refresh`, an older catalog is returned with a warning while the bucket cannot be reached, and the crops
        of the other places while only the place of a lab's own splits cannot be read.

        Raises
        ------
        SourceError, MissingExtraError
            If the bucket has to be read and cannot be.
        """
        known = await self._threads.run(self._recall)
        if known is not None and not refresh and self._is_fresh(known.read_at):
            return known.crops
        if self._part is not None and not refresh and monotonic() < self._part[0]:
            return self._part[1]
        try:
            found = await self._reading.run("crops", self._read_and_remember)
        except SourceUnreachableError as error:
            if known is None or refresh:
                raise
            _log.warning("the catalog of %s is used, since the bucket cannot be read: %s", known.read_at.date(), error)
            self._fresh = known.read_at, monotonic() + _OFFLINE_S
            return known.crops
        if refresh and self.failure is not None:
            raise self.failure
        return found

    def _is_fresh(self, read_at: datetime) -> bool:
        """Return whether a catalog that was read then need not be read again.

        The wall clock judges a stamp when this process meets it, and calls one from the future stale; from then on the
        monotonic clock does, so that a clock that is set changes nothing.
        """
        if self._fresh is None or self._fresh[0] != read_at:
            age = datetime.now(UTC) - read_at
            left = (_MAX_AGE - age).total_seconds() if age >= timedelta(0) else 0.0
            self._fresh = read_at, monotonic() + left
        return monotonic() < self._fresh[1]

    @property
    def is_partial(self) -> bool:
        """Whether some places could be read, and others not, when the bucket was last read."""
        return self._part is not None

    async def recall(self) -> tuple[CropInfo, ...]:
        """Return the stored catalog, of any age; empty if none is stored."""
        known = await self._threads.run(self._recall)
        return () if known is None else known.crops

    async def file_bytes_bound(self, name: CropName) -> int:
        """Return an upper bound of the file's bytes; 0 for a crop that is not published. Raises as `crops`."""
        for refresh in (False, True):
            for info in await self.crops(refresh=refresh):
                if (info.split, info.crop) == (name.split, name.crop) and info.raw_shape is not None:
                    return _bytes_bound(info, info.raw_shape, name)
        return 0

    async def objects(self, split: Split, crop: int) -> tuple[list[SourceObject], str]:
        """Return the objects of a crop's folder by key, and the server's name; raise `SourceError` if it fails."""
        entry = self.splits.entry(split)
        folder = entry.crop_folder(crop)

        async def listing(source: Source) -> tuple[list[SourceObject], str]:
            found = await source.list_objects(folder)
            return [found[key] for key in sorted(found)], source.endpoint

        return await self._source_thread.ask(listing, entry)

    async def crops_of(self, request: JobRequest) -> list[int]:
        """Return the crops that a request names, each once; all published crops of the split if it names none.

        Raises
        ------
        UnknownCropError
            If the request names none and none is published.
        SourceError
            If the request names none and the bucket cannot be read.
        """
        if request.crops is not None:
            return list(dict.fromkeys(request.crops))
        crops = [info.crop for info in await self.crops() if info.split == request.split]
        if not crops:
            raise UnknownCropError(f"no crop of split {request.split.value!r} is published")
        return crops

    async def fail_unpublished(self, split: Split, found: Sequence[CropProgress]) -> list[CropProgress]:
        """Return `found`, with every crop marked as failed if the catalog is known and lacks all of them."""
        missing = {crop.crop for crop in found if not crop.state.is_final}
        catalog = await self.recall() if missing else ()
        known = {info.crop for info in catalog if info.split == split}
        if catalog and missing - known and monotonic() - self._refreshed_at > _REFRESH_S:
            self._refreshed_at = monotonic()
            try:
                async with asyncio.timeout(_REFRESH_TIMEOUT_S):
                    known = {info.crop for info in await self.crops(refresh=True) if info.split == split}
            except (PrismError, TimeoutError):
                catalog = ()  # the crop may have been published since; the job will find out
        if not catalog or any(crop.state.is_final or crop.crop in known for crop in found):
            return list(found)
        there = f"there are crops {', '.join(map(str, sorted(known)))}" if known else "it has no crop"
        remedy = "`prismcache ls --refresh` or GET /v1/crops?refresh=true lists what is published."

        def failed(crop: CropProgress) -> CropProgress:
            text = f"crop {crop.crop} of split {split.value!r} is not published: {there}"
            problem = UnknownCropError(text, remedy=remedy).to_problem()
            return crop.model_copy(update={"state": State.FAILED, "problem": problem})

        return [failed(crop) for crop in found]

    async def check(self) -> None:
        """List the first split's folders, at most every half minute; raise `SourceError` if that fails."""
        if monotonic() - self._responded_at > _CHECK_S:
            first = next(iter(self.splits.values()))
            await self._source_thread.ask(lambda source: source.list_folders(first.folder), first)
            self._responded_at = monotonic()

    async def prepare(self) -> None:
        """Open the source before a caller waits for it; errors are left to `check`."""
        with contextlib.suppress(PrismError):
            await self._source_thread.ask(lambda _: asyncio.sleep(0))

    async def aclose(self) -> None:
        """Cancel the reading, and close the source."""
        await self._reading.aclose()
        await self._source_thread.aclose()

    def _recall(self) -> _Remembered | None:
        try:
            known = _Remembered.model_validate_json(self._path.read_bytes())
        except (OSError, ValueError):
            return None
        return known if known.source == self._source else None

    def _remember(self, crops: tuple[CropInfo, ...]) -> None:
        text = _Remembered(read_at=datetime.now(UTC), source=self._source, crops=crops).model_dump_json(indent=1)
        temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.tmp")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(self._path)

    async def _read_and_remember(self) -> tuple[CropInfo, ...]:
        self._part = None
        try:
            crops, self.failure = await self._read()
        except PrismError as error:
            self.failure = error
            raise
        if self.failure is not None:
            _log.warning("some splits are not listed, since their place cannot be read: %s", self.failure)
            self._part = monotonic() + _OFFLINE_S, crops
            return crops
        # An outage is not a property of a crop: such a catalog is not stored.
        if not any(crop.problem and crop.problem.code == SourceUnreachableError.code for crop in crops):
            with contextlib.suppress(StorageError):  # then the bucket is read again next time
                await self._threads.run(self._remember, crops)
        return crops

    async def _read(self) -> tuple[tuple[CropInfo, ...], PrismError | None]:
        """Return the crops of all places that can be read, and the error of one that cannot."""
        require_service_extra()
        # Imported here: the bucket is read once a day, a warm `ensure` runs many times.
        module = await asyncio.to_thread(import_module, "prismcache_service.pipeline.published")
        places: dict[tuple[tuple[str, object], ...], list[SplitEntry]] = {}
        for entry in self.splits.values():
            places.setdefault(tuple(sorted(entry.place.items())), []).append(entry)
        found: list[CropInfo] = []
        failures: list[PrismError] = []
        for entries in places.values():
            try:
                found += await self._source_thread.ask(partial(module.read_published, entries=entries), entries[0])
            except PrismError as error:
                failures.append(error)
        if len(failures) == len(places):
            raise failures[0]
        return tuple(sorted(found, key=lambda info: (info.split, info.crop))), failures[0] if failures else None


def _bytes_bound(info: CropInfo, raw_shape: tuple[int, int, int, int], name: CropName) -> int:
    """Return an upper bound of the bytes of a crop's file."""
    channels, *extent = raw_shape
    if name.channels is not None:
        channels = len(name.channels)
    elif name.product not in {Product.CROP, Product.AVG_BARCODES}:
        channels = 1  # one array, or less
    reach = extent if name.context == "all" else [2 * by for by in name.context]
    shape = [min(n, m + by) for n, m, by in zip(extent, info.labels_shape or extent, reach, strict=True)]
    beside = sum(array.nbytes for array in info.arrays)
    return file_bytes_bound(shape, channels) + (beside * 101 // 100 if name.product is Product.CROP else 0)


class SourceThread:
    """The splits' sources, read in a thread with an event loop of its own, so that the service's loop never waits.

    Importing the SDK takes half a second, opening a client a tenth (botocore reads its models of S3), and parsing a
    listing of a thousand objects some 30 ms. Sources are opened by the first `ask` and kept until `aclose`; a later
    `ask` opens others.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._sources: Sources | None = None

    async def ask(self, question: Callable[[Source], Awaitable[T]], entry: SplitEntry | None = None) -> T:
        """Return what `question` returns of the source of a split, or of the published ones; raise what it raises.

        Cancelling this cancels it. The thread is a daemon, so that no exit waits for a bucket.

        Raises
        ------
        MissingExtraError, ConfigError
            If the source cannot be opened.
        """
        require_service_extra()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="prismcache-source", daemon=True)
            self._thread.start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._ask(question, entry), self._loop))

    async def _ask(self, question: Callable[[Source], Awaitable[T]], entry: SplitEntry | None) -> T:
        if self._sources is None:
            module = import_module("prismcache_service.pipeline.bucket.s3")
            self._sources = module.Sources(self._settings, ThreadPoolExecutor(1))
        return await question(await self._sources.of(entry or published()["instance"]))

    async def aclose(self) -> None:
        """Cancel all questions, close the sources and end the thread."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._close(), loop))
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(self._thread.join)
        loop.close()

    async def _close(self) -> None:
        asking = asyncio.all_tasks() - {asyncio.current_task()}
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        sources, self._sources = self._sources, None
        if sources is not None:
            await sources.aclose()
