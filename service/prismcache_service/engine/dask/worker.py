"""What runs inside the workers of a Dask cluster: one `LocalEngine` each.

So a crop is made in a child process of the worker, as it is on the service's own machine: the memory limit, a crash in
HDF5, a child that hangs and a cancel that kills mean the same, and the worker itself is never busy, so that Dask always
hears of it. The child ends with the worker, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections import deque
from typing import Any, cast

from distributed import Worker, WorkerPlugin, get_worker

from prismcache.config import ENV_PREFIX, Settings
from prismcache.errors import PrismError, WorkerError
from prismcache.schema import CropFile
from prismcache_service.cache.cache import CropCache, CropName
from prismcache_service.engine.base import CropTask
from prismcache_service.engine.dask.fitness import versions
from prismcache_service.engine.dask.messages import (
    TOPIC,
    DaskAnswer,
    DaskOrder,
    DaskProgress,
    Inspection,
    Stopped,
)
from prismcache_service.engine.local.engine import LocalEngine
from prismcache_service.engine.local.messages import Failed, Made
from prismcache_service.pipeline.progress import Progress

_OWN_SETTINGS = ("root", "memory_limit", "decode_threads")
_REMEMBERED = 1000
_IDLE_S = 60.0


async def make_crop(order: str) -> str:
    """Carry out a `DaskOrder`, answered by a `DaskAnswer`; the task that the service gives to Dask."""
    station = await _station(get_worker())
    return (await station.make(DaskOrder.model_validate_json(order))).model_dump_json()


async def stop_crop(token: str, dask_worker: Worker) -> None:
    """Stop the order with this token, also one that is still on its way; nothing of it runs afterwards."""
    await (await _station(dask_worker)).stop(token)


async def rest(settings: str, dask_worker: Worker) -> None:
    """End idle child processes that were started for these settings."""
    await (await _station(dask_worker)).rest(settings)


async def inspect_worker(settings: str, mark: str, token: str, dask_worker: Worker) -> str:
    """See whether this worker may be given crops, as an `Inspection`, and make it ready for them.

    Parameters
    ----------
    settings
        The service's.
    mark, token
        Name and token of a lease that the service holds in its cache folder, and that this worker has to find in its.
    """
    await _station(dask_worker)
    storage = await asyncio.to_thread(_see_storage, own_settings(settings), mark, token)
    return Inspection(host=platform.node(), versions=versions(), storage=storage).model_dump_json()


def own_settings(settings: str) -> Settings:
    """The service's settings, but for what depends on the machine and is set in this worker's own environment."""
    values = Settings.model_validate_json(settings).model_dump()
    own = [name for name in _OWN_SETTINGS if os.environ.get(f"{ENV_PREFIX}{name.upper()}")]
    environment = {name: os.environ[name] for name in (f"{ENV_PREFIX}{name.upper()}" for name in own)}
    return Settings.load(environment, **{name: value for name, value in values.items() if name not in own})


def _see_storage(settings: Settings, mark: str, token: str) -> str:
    cache = CropCache(settings.root)
    holder = cache.leases.holder(mark)
    if holder is None or holder.token != token:
        return f"its folder {settings.root} is not the service's cache folder"
    try:
        cache.check_writable()
    except PrismError as error:
        return str(error)
    return ""


class Station(WorkerPlugin):
    """What makes crops on one Dask worker. Installed by the first call of a service, it stays as long as the worker."""

    name = "prismcache"

    def __init__(self) -> None:
        self._worker: Worker
        self._engines: dict[tuple[str, float], LocalEngine] = {}
        self._making: dict[str, tuple[str, asyncio.Task[CropFile]]] = {}
        self._stopped: deque[str] = deque(maxlen=_REMEMBERED)
        self._resting: asyncio.Task[None] | None = None

    def setup(self, worker: Worker) -> None:
        """Called by Dask: this is the worker."""
        self._worker = worker

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        """Called by Dask: the worker ends."""
        await self._end([making for _, making in self._making.values()])
        await self._rest_later(0)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:  # noqa: ARG002 - Dask's signature
        """Called by Dask: a task changes state. One that is released before its end is wanted by nobody any more."""
        if finish == "released" and key in self._making:
            self._making[key][1].cancel()

    async def make(self, order: DaskOrder) -> DaskAnswer:
        """Carry out an order; an answer in any case."""
        token = order.work.token
        if token in self._stopped:
            return DaskAnswer(token=token, event=Stopped())
        making = asyncio.create_task(self._make(order))
        self._making[order.key] = token, making
        if self._resting is not None:
            self._resting.cancel()
        try:
            await asyncio.wait({making})
        finally:  # also when Dask cancels this because the worker ends
            await self._end([making])
            del self._making[order.key]
            if not self._making:
                self._resting = asyncio.create_task(self._rest_later(_IDLE_S))
        return DaskAnswer(token=token, event=_outcome(making))

    async def stop(self, token: str) -> None:
        """Stop an order, now or when it comes."""
        self._stopped.append(token)
        await self._end([making for of, making in self._making.values() if of == token])

    async def rest(self, settings: str) -> None:
        """End what is idle of the engines with these settings."""
        for (of, _), engine in self._engines.items():
            if of == settings:
                await engine.aclose()

    async def _make(self, order: DaskOrder) -> CropFile:
        settings = own_settings(order.settings)
        work = order.work
        # A worker that was lost after it published left a file, and no answer.
        cache = CropCache(settings.root)
        found = await asyncio.to_thread(cache.find, work.split, work.crop, work.channels)
        if found is not None and not (work.strict and found.missing_chunks):
            return found
        task = CropTask(CropName(work.split, work.crop, work.channels), work.token, work.strict)
        engine = await self._engine(order, settings)
        return await engine.run(task, lambda progress: self._tell(order.key, progress))

    def _tell(self, key: str, progress: Progress) -> None:
        self._worker.log_event(TOPIC, DaskProgress(key=key, progress=progress).model_dump_json())

    async def _engine(self, order: DaskOrder, settings: Settings) -> LocalEngine:
        wanted = order.settings, order.silence
        if wanted not in self._engines:
            for engine in self._engines.values():  # of a service that was started again: its idle children go
                await engine.aclose()
        return self._engines.setdefault(wanted, LocalEngine(settings, silence=order.silence))

    async def _rest_later(self, seconds: float) -> None:
        """End all idle children: their service may have ended, and it would not tell."""
        await asyncio.sleep(seconds)
        for engine in self._engines.values():
            await engine.aclose()

    @staticmethod
    async def _end(making: list[asyncio.Task[CropFile]]) -> None:
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)


def _outcome(making: asyncio.Task[CropFile]) -> Made | Failed | Stopped:
    if making.cancelled():
        return Stopped()
    error = making.exception()
    if error is None:
        return Made(file=making.result())
    if not isinstance(error, PrismError):
        error = WorkerError(f"{type(error).__name__}: {error}")
    return Failed(problem=error.to_problem())


async def _station(worker: Worker) -> Station:
    """The worker's station. Its name carries the release: another one must not find this one's."""
    name = f"{Station.name}-{versions()['prismcache']}"
    if name not in worker.plugins:
        await worker.plugin_add(Station(), name)
    return cast("Station", worker.plugins[name])
