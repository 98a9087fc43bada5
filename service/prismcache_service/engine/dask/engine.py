"""The engine on a Dask cluster: each crop is one Dask task, which a worker carries out in a child process of its own.

Dask chooses the worker, and begins a crop again elsewhere when a worker dies or sends no heartbeats. The service keeps
the queue, counts how often a crop was begun, and submits it again when the scheduler was lost. If a worker only seemed
lost, two attempts overlap: each has temporary files of its own, and both would publish a right file.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError as DaskCancelledError
from dataclasses import dataclass
from uuid import uuid4

from distributed import Client, KilledWorker

from prismcache.config import Settings
from prismcache.errors import EngineUnavailableError, WorkerError
from prismcache.schema import CropFile
from prismcache_service.cache import CropCache
from prismcache_service.engine.base import MAX_STRIKES, CropTask, Engine, Outcome
from prismcache_service.engine.dask.cluster import Cluster
from prismcache_service.engine.dask.messages import (
    DaskNews,
    DaskOrder,
    resource_name,
    settings_json,
    task_key,
)
from prismcache_service.engine.dask.worker import end_idle, make_crop, stop_crop
from prismcache_service.engine.local.messages import News, WorkOrder
from prismcache_service.pipeline.progress import Report

_SILENCE_S = 60.0
_STOP_S = 5.0
_END_IDLE_S = 2.0
_MAX_TRIES = 10


@dataclass(eq=False)
class _Run:
    """One call of `DaskEngine.run`: its task's key, who hears of progress, and how often a worker began the task."""

    key: str
    report: Report
    begun: int = 0


class DaskEngine(Engine):
    """Workers of a Dask cluster that see this service's cache folder, each with as many crops as it has threads.

    Parameters
    ----------
    settings
        Everything that a worker needs; at most `settings.workers` crops are made at the same time.
    scheduler
        The scheduler's address (``tcp://…``, ``tls://…``), or the path of its scheduler file.
    timeout
        Seconds that a crop waits while no worker may be given it.
    silence
        Seconds without a line from a worker's child process after which the child counts as hung.
    """

    name = "dask"

    def __init__(
        self, settings: Settings, scheduler: str, *, timeout: float = 300.0, silence: float = _SILENCE_S
    ) -> None:
        self._settings = settings
        self._timeout = timeout
        self._silence = silence
        self._cache = CropCache(settings.root)
        self._free = asyncio.Semaphore(settings.workers)
        self._runs: set[_Run] = set()
        self._cluster = Cluster(scheduler, settings, self._hear)

    async def run(self, task: CropTask, report: Report) -> Outcome:
        run = _Run(task_key(task, self._settings), report)
        self._runs.add(run)
        try:
            async with self._free:
                making = asyncio.create_task(self._make(task, run))
                waiting = asyncio.create_task(self._cluster.none_fit(self._timeout))
                try:
                    await asyncio.wait({making, waiting}, return_when=asyncio.FIRST_COMPLETED)
                    if making.done():
                        return making.result()
                    text = f"for {self._timeout:g} s, {self._cluster.trouble()}"
                    return EngineUnavailableError(text).to_problem()
                finally:
                    for each in (making, waiting):
                        each.cancel()
                    await asyncio.shield(asyncio.wait({making, waiting}))
        finally:
            self._runs.remove(run)
            # Unfinished files of lost workers, also of one that still writes: without its file it publishes nothing.
            await asyncio.shield(self._cache.threads.run(self._cache.discard, task.token))

    async def check(self) -> None:
        await self._cluster.check()

    async def aclose(self) -> None:
        await self._cluster.call_all(_END_IDLE_S, end_idle, settings_json(self._settings))
        await self._cluster.aclose()

    async def _make(self, task: CropTask, run: _Run) -> Outcome:
        folder = task.name.folder
        for _ in range(_MAX_TRIES):
            client = await self._cluster.client()
            try:
                outcome = await self._submit(client, task, run)
            except KilledWorker as error:
                if run.begun >= MAX_STRIKES:
                    text = f"making {folder} ended {run.begun} Dask workers: {error}"
                    return WorkerError(text).to_problem()
                continue  # it waited behind a crop that killed its worker, or Dask is told to try only once
            except (DaskCancelledError, OSError):
                self._cluster.doubt(client)
                continue
            except Exception as error:  # noqa: BLE001 - whatever Dask raises
                return WorkerError(f"making {folder} on the Dask cluster: {type(error).__name__}: {error}").to_problem()
            if outcome is not None:
                return self._cache.shown(outcome) if isinstance(outcome, CropFile) else outcome
        text = f"making {folder} was broken off {_MAX_TRIES} times; see the log of the Dask scheduler"
        return EngineUnavailableError(text).to_problem()

    async def _submit(self, client: Client, task: CropTask, run: _Run) -> Outcome | None:
        """Have the crop made once; return None if another service stopped the task that both shared."""
        # Below the making lock's token, so that sweeps spare what is written, and its end removes it.
        token = f"{task.token}.{uuid4().hex}"
        work = WorkOrder(name=task.name, strict=task.strict, token=token)
        order = DaskOrder(key=run.key, work=work, settings=settings_json(self._settings), silence=self._silence)
        future = client.submit(
            make_crop,
            order.model_dump_json(),
            key=run.key,
            resources={resource_name(self._settings): 1},
            pure=False,
        )
        try:
            return News.model_validate_json(await future).outcome
        except asyncio.CancelledError:
            await asyncio.shield(self._cluster.call_all(_STOP_S, stop_crop, token))
            raise
        finally:
            # Dask then forgets the task, at its loop's next turn: the next of this key runs anew. (Cancelling would
            # be announced to all under the key, and so hit the next one.)
            future.release()
            await asyncio.sleep(0)

    def _hear(self, event: str) -> None:
        told = DaskNews.model_validate_json(event)
        for run in list(self._runs):
            if run.key == told.key and told.news.progress is not None:
                run.report(told.news.progress)
            elif run.key == told.key:
                run.begun += 1
