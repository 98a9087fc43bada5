"""The code that runs in the workers of a Dask cluster: a plugin for each worker makes crops with a `LocalEngine`.

Crops are made in a child process of the worker, as on the service's own machine: the memory limit, a crash in HDF5, a
child process that hangs and a cancelled crop are handled in the same way, and Dask's event loop is never blocked. The
child process ends when the worker ends.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

from distributed import Worker, WorkerPlugin, get_worker

from prismcache.config import ENV_PREFIX, Settings
from prismcache.errors import PrismError, WorkerError
from prismcache.splits import Splits
from prismcache_service.cache import CropCache
from prismcache_service.engine import News, Outcome
from prismcache_service.engine.dask.messages import (
    TOPIC,
    DaskNews,
    DaskOrder,
    Inspection,
    resource_name,
    versions,
)
from prismcache_service.engine.local.engine import LocalEngine

_OWN_SETTINGS = ("root", "memory_limit", "decode_threads")
_IDLE_S = 60.0
_REMEMBERED = 1000  # stopped orders, of which Dask may still send some


async def make_crop(order: str) -> str:
    """Make the crop of a `DaskOrder` and return a `News` with the outcome, or without one if the order was stopped."""
    return await (await _crop_maker(get_worker())).make(DaskOrder.model_validate_json(order))


async def stop_crop(token: str, dask_worker: Worker) -> None:
    """Stop the order with this token, even if Dask has not sent it yet; return when it has stopped."""
    await (await _crop_maker(dask_worker)).stop(token)


async def end_idle(settings: str, dask_worker: Worker) -> None:
    """End idle child processes that were started for these settings."""
    await (await _crop_maker(dask_worker)).end_idle(settings)


async def inspect_worker(settings: str, mark: str, token: str, dask_worker: Worker) -> str:
    """Return an `Inspection`; if the cache folder is right, give the worker the resource that crops need.

    Parameters
    ----------
    settings
        The service's settings, as JSON.
    mark, token
        Name and token of a lock that the service holds in its cache folder. The worker must find the same lock.
    """
    found = Inspection(
        host=platform.node(),
        versions=versions(),
        storage=await asyncio.to_thread(_trouble_with_storage, own_settings(settings), mark, token),
    )
    if not found.storage:
        await _crop_maker(dask_worker)
        # The resource's name holds the versions, so that only services with this worker's versions use the resource.
        resource = resource_name(Settings.model_validate_json(settings))
        await dask_worker.set_resources(**{resource: dask_worker.state.nthreads})
    return found.model_dump_json()


def own_settings(settings: str) -> Settings:
    """Return the service's settings; this machine's environment overrides root, memory limit and decode threads."""
    values = Settings.model_validate_json(settings).model_dump()
    names = {name: f"{ENV_PREFIX}{name.upper()}" for name in _OWN_SETTINGS}
    environment = {variable: os.environ[variable] for variable in names.values() if os.environ.get(variable)}
    return Settings.load(environment, **{n: value for n, value in values.items() if names.get(n) not in environment})


def _trouble_with_storage(settings: Settings, mark: str, token: str) -> str:
    cache = CropCache(settings.root)
    holder = cache.locks.holder(mark)
    if holder is None or holder.token != token:
        return f"its folder {settings.root} is not the service's cache folder"
    try:
        cache.check_writable()
    except PrismError as error:
        return str(error)
    return ""


class CropMaker(WorkerPlugin):
    """Makes crops on one Dask worker. The first inspection installs it; it stays as long as the worker runs."""

    def __init__(self) -> None:
        self._worker: Worker
        self._engines: dict[tuple[str, float], LocalEngine] = {}
        self._making: dict[str, tuple[str, asyncio.Task[Outcome]]] = {}  # by key: the order's token and its task
        self._stopped: deque[str] = deque(maxlen=_REMEMBERED)
        self._ending_idle: asyncio.Task[None] | None = None

    def setup(self, worker: Worker) -> None:
        """Store the worker; called by Dask."""
        self._worker = worker

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        """Stop all crops and end the child processes; called by Dask when the worker ends."""
        await _end(task for _, task in self._making.values())
        await self.end_idle()

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:  # noqa: ARG002 - Dask's signature
        """Stop a crop whose task Dask releases before its end, because no client needs it any more."""
        if finish == "released" and key in self._making:
            self._making[key][1].cancel()

    async def make(self, order: DaskOrder) -> str:
        """Return a `News` with the order's outcome, or without one if the order was stopped."""
        if order.work.token in self._stopped:
            return News().model_dump_json()
        making = asyncio.create_task(self._make(order))
        self._making[order.key] = order.work.token, making
        if self._ending_idle is not None:
            self._ending_idle.cancel()
        try:
            await asyncio.wait({making})
        finally:  # also when Dask cancels this because the worker ends
            await _end([making])
            del self._making[order.key]
            if not self._making:
                self._ending_idle = asyncio.create_task(self._end_idle_later())
        return News(outcome=None if making.cancelled() else making.result()).model_dump_json()

    async def stop(self, token: str) -> None:
        """Stop an order that runs, or that Dask sends later."""
        self._stopped.append(token)
        await _end(task for of, task in self._making.values() if of == token)

    async def end_idle(self, settings: str | None = None) -> None:
        """End idle child processes, of all services (None) or of services with these settings."""
        for (of, _), engine in self._engines.items():
            if settings in {None, of}:
                await engine.aclose()

    async def _make(self, order: DaskOrder) -> Outcome:
        self._send(order, News())
        settings = own_settings(order.settings)
        # Each attempt has its own token: a worker that Dask gave up may still write to files of the attempt before.
        task = replace(order.work, token=f"{order.work.token}.{uuid4().hex}")
        try:
            # If a worker was lost after it published, the file is there, but its outcome was not sent.
            splits = None if task.entry is None else Splits([task.entry])
            found = (await CropCache(settings.root, splits=splits).find(task.name)).file
            if found is not None and not (task.strict and found.missing_chunks):
                return found
            wanted = order.settings, order.silence
            if wanted not in self._engines:
                await self.end_idle()  # those of a service that ended or has new settings
            engine = self._engines.setdefault(wanted, LocalEngine(settings, silence=order.silence))
            return await engine.run(task, lambda progress: self._send(order, News(progress=progress)))
        except PrismError as error:
            return error.to_problem()
        except Exception as error:  # noqa: BLE001 - every error goes to Dask as a problem
            return WorkerError(f"{task.name.folder} on {platform.node()}: {type(error).__name__}: {error}").to_problem()

    def _send(self, order: DaskOrder, news: News) -> None:
        self._worker.log_event(TOPIC, DaskNews(key=order.key, news=news).model_dump_json())

    async def _end_idle_later(self) -> None:
        await asyncio.sleep(_IDLE_S)  # a service that was killed leaves idle child processes
        await self.end_idle()
        self._engines.clear()


async def _end(tasks: Iterable[asyncio.Task[Outcome]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


async def _crop_maker(worker: Worker) -> CropMaker:
    """Return the worker's plugin; each release of prismcache has its own."""
    name = f"prismcache-{versions()['prismcache']}"
    if name not in worker.plugins:
        await worker.plugin_add(CropMaker(), name)
    return cast("CropMaker", worker.plugins[name])
