"""What runs inside the workers of a Dask cluster: one plugin each, which makes crops with a `LocalEngine`.

So a crop is made in a child process of the worker, as on the service's own machine: the memory limit, a crash in HDF5,
a child that hangs and a cancelled crop are handled in the same way, and the worker's loop is always free for Dask.
The child ends with the worker, however the worker ends.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections import deque
from collections.abc import Iterable
from typing import Any, cast
from uuid import uuid4

from distributed import Worker, WorkerPlugin, get_worker

from prismcache.config import ENV_PREFIX, Settings
from prismcache.errors import PrismError, WorkerError
from prismcache_service.cache import CropCache
from prismcache_service.engine.base import CropTask, Outcome
from prismcache_service.engine.dask.messages import (
    TOPIC,
    DaskNews,
    DaskOrder,
    Inspection,
    resource_name,
    versions,
)
from prismcache_service.engine.local.engine import LocalEngine
from prismcache_service.engine.local.messages import News

_OWN_SETTINGS = ("root", "memory_limit", "decode_threads")
_IDLE_S = 60.0
_REMEMBERED = 1000  # stopped orders, of which Dask may still send some


async def make_crop(order: str) -> str:
    """Carry out a `DaskOrder` and return a `News` with its outcome, or without one if the order was stopped."""
    return await (await _crop_maker(get_worker())).make(DaskOrder.model_validate_json(order))


async def stop_crop(token: str, dask_worker: Worker) -> None:
    """Stop the order with this token, also one that Dask has yet to send; return when nothing of it runs."""
    await (await _crop_maker(dask_worker)).stop(token)


async def end_idle(settings: str, dask_worker: Worker) -> None:
    """End idle child processes that were started for these settings."""
    await (await _crop_maker(dask_worker)).end_idle(settings)


async def inspect_worker(settings: str, mark: str, token: str, dask_worker: Worker) -> str:
    """Return an `Inspection`; without differences, give the worker the resource that crops need.

    Parameters
    ----------
    settings
        The service's.
    mark, token
        Name and token of a lock that the service holds in its cache folder. The worker has to find it in its own.
    """
    found = Inspection(
        host=platform.node(),
        versions=versions(),
        storage=await asyncio.to_thread(_trouble_with_storage, own_settings(settings), mark, token),
    )
    if not found.storage:
        await _crop_maker(dask_worker)
        # The name holds the versions, so that no other release than this worker's asks for the resource.
        resource = resource_name(Settings.model_validate_json(settings))
        await dask_worker.set_resources(**{resource: dask_worker.state.nthreads})
    return found.model_dump_json()


def own_settings(settings: str) -> Settings:
    """Return the service's settings, but for those that depend on the machine and are set in this environment."""
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
        """Take over the worker; called by Dask."""
        self._worker = worker

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        """End everything with the worker; called by Dask."""
        await _end(task for _, task in self._making.values())
        await self.end_idle()

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:  # noqa: ARG002 - Dask's signature
        """Stop a crop whose task Dask releases before its end: no client wants it any more."""
        if finish == "released" and key in self._making:
            self._making[key][1].cancel()

    async def make(self, order: DaskOrder) -> str:
        """Carry out an order and return a `News`."""
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
        """Stop an order, now or when it comes."""
        self._stopped.append(token)
        await _end(task for of, task in self._making.values() if of == token)

    async def end_idle(self, settings: str | None = None) -> None:
        """End idle child processes, of all services or of those with these settings."""
        for (of, _), engine in self._engines.items():
            if settings in {None, of}:
                await engine.aclose()

    async def _make(self, order: DaskOrder) -> Outcome:
        self._tell(order, News())
        work, settings = order.work, own_settings(order.settings)
        name = work.name
        # A name of its own for each attempt: a worker that was given up may still write under the one before.
        task = CropTask(name, f"{work.token}.{uuid4().hex}", work.strict)
        try:
            # A worker that was lost after it published left a file, but sent no outcome.
            found = (await CropCache(settings.root).find(name)).file
            if found is not None and not (work.strict and found.missing_chunks):
                return found
            wanted = order.settings, order.silence
            if wanted not in self._engines:
                await self.end_idle()  # of a service that ended, or was started again with other settings
            engine = self._engines.setdefault(wanted, LocalEngine(settings, silence=order.silence))
            return await engine.run(task, lambda progress: self._tell(order, News(progress=progress)))
        except PrismError as error:
            return error.to_problem()
        except Exception as error:  # noqa: BLE001 - the border to Dask: everything becomes a problem
            return WorkerError(f"{name.folder} on {platform.node()}: {type(error).__name__}: {error}").to_problem()

    def _tell(self, order: DaskOrder, news: News) -> None:
        self._worker.log_event(TOPIC, DaskNews(key=order.key, news=news).model_dump_json())

    async def _end_idle_later(self) -> None:
        await asyncio.sleep(_IDLE_S)  # a service that ended without telling leaves idle children
        await self.end_idle()
        self._engines.clear()


async def _end(tasks: Iterable[asyncio.Task[Outcome]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


async def _crop_maker(worker: Worker) -> CropMaker:
    """Return the worker's plugin. Its name holds the release, so that another release has its own."""
    name = f"prismcache-{versions()['prismcache']}"
    if name not in worker.plugins:
        await worker.plugin_add(CropMaker(), name)
    return cast("CropMaker", worker.plugins[name])
