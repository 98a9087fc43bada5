"""Makes, opens and closes the services, the engine and the store, for the web service and for embedded use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path

from prismcache.config import Settings
from prismcache.errors import MissingExtraError, PrismError
from prismcache.schema import Progress, ServiceStatus, State
from prismcache_service.cache import CropCache, CropName, SingleFlight
from prismcache_service.config import ServiceConfig
from prismcache_service.crops import (
    Bounds,
    CatalogService,
    CropService,
    EnsureService,
    FaceService,
    LastUsed,
    LinkService,
    PreviewService,
    SpaceService,
    StoredFile,
)
from prismcache_service.engine import Engine
from prismcache_service.engine.local.engine import LocalEngine
from prismcache_service.jobs import History, JobLimits, JobService, Observer
from prismcache_service.pipeline import Report
from prismcache_service.store import CropKey, JobStore

_log = logging.getLogger(__name__)
_HOUSEKEEPING_S = 3600.0
_SECOND_SWEEP_S = 20.0
_CHECK_S = 3.0
_NICENESS = 10  # of a service's workers, so that responses do not wait for a core while crops are decoded
_PATIENCE_S = 5.0  # for which a request waits for files that are read again; clients wait for 30 s
_PREPARING_S = 3.0  # for which a start waits for the S3 client, which may have to request credentials


class Factory:
    """The services on one cache folder, connected with each other.

    Parameters
    ----------
    settings
        Cache folder, bucket and pipeline.
    store
        Keeps jobs, leases, pins and last uses; the caller closes it.
    bounds, limits, lease_seconds
        Limits of a service's disk, of jobs and of retention leases; embedded use has no bounds.
    shown_root
        The clients' path of the cache folder, if theirs is another.
    observer
        Counts events for the metrics.
    engine
        Makes the crops; `aclose` closes it. Default: worker processes of this process.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        *,
        bounds: Bounds | None = None,
        limits: JobLimits | None = None,
        lease_seconds: float = 300.0,
        shown_root: Path | None = None,
        observer: Observer | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.settings, self.store, self.observer = settings, store, observer or Observer()
        keep = timedelta(days=settings.keep_quarantine_days)
        self.cache = CropCache(settings.root, shown_root, keep, settings.downloads / ".verified", settings.splits)
        self.engine = engine or LocalEngine(settings)
        self.catalog = CatalogService(settings, self.cache.threads)
        self.last_used = LastUsed(store)
        self.space = SpaceService(
            self.cache, bounds or Bounds(), self._protected, self.last_used.all, on_evicted=self._on_evicted
        )
        is_embedded = bounds is None  # the disk is the only bound then, and people see the client's log
        log = logging.getLogger("prismcache") if is_embedded else _log
        self.ensure = EnsureService(self.cache, self.engine, None if is_embedded else self._room, log.warning)
        self.jobs = JobService(
            self.ensure, self.catalog, store, self.last_used,
            at_once=settings.workers, limits=limits or JobLimits(), observer=self.observer,
        )  # fmt: skip
        self.crops = CropService(
            self.cache, self.catalog, self.ensure, store, self.last_used,
            making=self.jobs.making, lease_seconds=lease_seconds, patience=None if is_embedded else _PATIENCE_S,
        )  # fmt: skip
        self._checking = SingleFlight()  # while one check waits for a hanging disk, no other is started

    async def aclose(self) -> None:
        """Stop all work; unfinished jobs stay in the store."""
        await self.jobs.aclose()
        await self.engine.aclose()
        await self._checking.aclose()
        await self.catalog.aclose()
        await self.crops.aclose()
        await self.cache.aclose()
        with contextlib.suppress(PrismError):
            await self.last_used.flush()

    async def status(self) -> ServiceStatus:
        """Return the service's state: its jobs, crops, workers and disk usage."""
        jobs, (queued, running) = self.jobs.count(), self.jobs.count_crops()
        return ServiceStatus(
            version=version("prismcache"),
            engine=self.engine.name,
            workers=self.settings.workers,
            jobs_queued=jobs[State.QUEUED],
            jobs_running=jobs[State.RUNNING],
            crops_queued=queued,
            crops_running=running,
            usage=await self.space.usage(),
            waiting=self.jobs.waiting(),
        )

    async def readiness(self) -> dict[str, str]:
        """Return "ok" or an error for each of storage, store, engine and source.

        A service whose source fails still serves cached crops.
        """
        checks = {
            "storage": self._checking.run("storage", partial(self.cache.threads.run, self.cache.check_writable)),
            "store": self.store.check(),
            "engine": self.engine.check(),
            "source": self.catalog.check(),
        }
        return dict(zip(checks, await asyncio.gather(*map(_finding, checks.values())), strict=True))

    async def _protected(self) -> Collection[CropKey]:
        return self.jobs.protected() | await self.crops.in_use()

    @asynccontextmanager
    async def _room(self, name: CropName, report: Report) -> AsyncIterator[None]:
        size = await self.catalog.file_bytes_bound(name)
        async with self.space.reserved(size, lambda reason: report(Progress(waiting_for=reason))):
            yield

    def _on_evicted(self, file: StoredFile) -> None:
        _log.info("evicted %s, %d bytes, last used %s", file.name.folder, file.size, file.last_used)
        self.observer.evicted(1, file.size)


class ServiceFactory(Factory):
    """The services of the web service: those of `Factory`, and links, pictures, zarr faces and figures over time."""

    def __init__(self, config: ServiceConfig, store: JobStore, observer: Observer | None = None) -> None:
        super().__init__(
            config,
            store,
            bounds=Bounds(config.max_bytes, config.min_free_bytes, config.low_water),
            limits=JobLimits(config.max_jobs, config.max_jobs_per_owner, config.max_crops_per_job),
            lease_seconds=config.lease_seconds,
            shown_root=config.advertised_root,
            observer=observer,
            engine=engine_of(config),
        )
        self.config = config
        self.history = History(store, self.observer, self.space.usage)
        self.previews = PreviewService(self.cache)
        self.links = LinkService(store)
        self.faces = FaceService(self.crops.file, self.cache)

    async def start(self) -> None:
        """Check and sweep the cache folder; errors as those of `open_factory`."""
        await self.cache.threads.run(self.cache.check_writable)
        if self.config.advertised_root is not None:
            await self.cache.threads.run(self.cache.check_shown_root)
            _log.info("clients get paths below %s for the cache folder %s", self.cache.shown_root, self.cache.root)
        await self._sweep()

    async def aclose(self) -> None:
        """Store the figures, close the faces and stop all work; unfinished jobs stay in the store."""
        with contextlib.suppress(PrismError, TimeoutError):
            async with asyncio.timeout(_CHECK_S):
                await self.history.record()
        await self.faces.aclose()
        await super().aclose()

    async def tidy_for_ever(self) -> None:
        """Delete old jobs, and sweep the cache folder, every hour."""
        # At the start, locks of containers that ended look alive; the second sweep sees that they were not renewed.
        await asyncio.sleep(_SECOND_SWEEP_S)
        while True:
            try:
                await self.store.forget_jobs(datetime.now(UTC) - timedelta(days=self.config.keep_jobs_days))
                await self._sweep()
            except (PrismError, OSError) as error:
                _log.warning("cleaning up failed; the next try is in %.0f s: %s", _HOUSEKEEPING_S, error)
            await asyncio.sleep(_HOUSEKEEPING_S)

    async def _sweep(self) -> None:
        for path in await self.cache.threads.read(self.cache.sweep):
            _log.info("swept %s", path)


async def _finding(check: Awaitable[None]) -> str:
    """Return "ok" or the error of a check; a monitoring system does not wait long for a disk or bucket that hangs."""
    try:
        async with asyncio.timeout(_CHECK_S):
            await check
    except TimeoutError:
        return f"no response within {_CHECK_S:g} s"
    except Exception as error:  # noqa: BLE001 - any error is the check's result
        return str(error)
    return "ok"


@asynccontextmanager
async def open_factory(config: ServiceConfig, observer: Observer | None = None) -> AsyncIterator[ServiceFactory]:
    """Open a factory for a service and continue with unfinished jobs; close the factory at the end of the block.

    Raises
    ------
    ConfigError
        If the store cannot be used, or `advertised_root` is not the cache folder.
    StorageError
        If the cache folder cannot be written.
    """
    # Imported here: embedded use has no database, and SQLAlchemy takes long to import.
    from prismcache_service.store.database import database_url
    from prismcache_service.store.sql import SqlJobStore

    store = await SqlJobStore.open(database_url(config))
    try:
        factory = ServiceFactory(config, store, observer)
        housekeeping = [asyncio.create_task(factory.catalog.prepare())]
        try:
            await factory.start()
            await asyncio.wait(housekeeping, timeout=_PREPARING_S)
            await factory.crops.start()
            await factory.jobs.start()
            keeping = (factory.last_used.flush_for_ever, factory.history.record_for_ever, factory.tidy_for_ever)
            housekeeping += [asyncio.create_task(each()) for each in keeping]
            yield factory
        finally:
            for task in housekeeping:
                task.cancel()
            await asyncio.gather(*housekeeping, return_exceptions=True)
            await factory.aclose()
    finally:
        await store.aclose()


def engine_of(config: ServiceConfig) -> Engine:
    """Return the engine that the settings name; no worker is started yet.

    Raise `MissingExtraError` if the engine needs a package that is not installed.
    """
    if config.engine == "local" or config.dask_scheduler is None:
        return LocalEngine(config, niceness=_NICENESS)
    try:
        from prismcache_service.engine.dask.engine import DaskEngine
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"engine 'dask' needs {error.name}, which is not installed here",
            remedy='Run `pip install "prismcache[dask]"`.',
        ) from None
    return DaskEngine(config, config.dask_scheduler, timeout=config.dask_timeout)
