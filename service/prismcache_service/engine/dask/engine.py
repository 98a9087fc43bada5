"""The engine on a Dask cluster: each crop is one Dask task, which a worker runs in a child process.

Dask chooses the worker, and runs the task on another worker if the first dies or sends no heartbeats. The service keeps
the queue, counts how often a task began, and submits the task again if the scheduler was lost. If a worker was only
thought to be lost, two attempts overlap: each has its own temporary files, and both publish a right file.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError as DaskCancelledError
from dataclasses import dataclass, replace
from uuid import uuid4

from distributed import Client, KilledWorker

from prismcache.config import Settings
from prismcache.errors import EngineUnavailableError, WorkerError
from prismcache.schema import CropFile
from prismcache_service.cache import CropCache
from prismcache_service.engine import MAX_STRIKES, CropTask, Engine, News, Outcome
from prismcache_service.engine.dask.cluster import Cluster
from prismcache_service.engine.dask.messages import (
    DaskNews,
    DaskOrder,
    resource_name,
    settings_json,
    task_key,
)
from prismcache_service.engine.dask.worker import end_idle, make_crop, stop_crop
from prismcache_service.pipeline import Report

_SILENCE_S = 60.0
_STOP_S = 5.0
_END_IDLE_S = 2.0
_MAX_TRIES = 10


@dataclass(eq=False)
class _Run:
    """One call of `DaskEngine.run`: its task's key, its progress callback, and how often a worker began the task."""

    key: str
    report: Report
    begun: int = 0


class DaskEngine(Engine):
    """Workers of a Dask cluster that see this service's cache folder; each makes one crop for each of its threads.

    Parameters
    ----------
    settings
        All settings that a worker needs; at most `settings.workers` crops are made at the same time.
    scheduler
        The scheduler's address (``tcp://…``, ``tls://…``), or the path of its scheduler file.
    timeout
        Seconds for which a crop waits while no worker may make crops.
    silence
        Seconds without a line from a worker's child process after which the child process counts as hung.
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
        self._cluster = Cluster(scheduler, settings, self._on_news)

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
            # Files of lost workers, also of a worker that still writes: without its file it cannot publish.
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
                continue  # another crop killed the worker, or Dask's allowed-failures is less than our retries
            except (DaskCancelledError, OSError):
                self._cluster.doubt(client)
                continue
            except Exception as error:  # noqa: BLE001 - Dask documents no base class of its errors
                return WorkerError(f"making {folder} on the Dask cluster: {type(error).__name__}: {error}").to_problem()
            if outcome is not None:
                return self._cache.shown(outcome) if isinstance(outcome, CropFile) else outcome
        text = f"making {folder} was interrupted {_MAX_TRIES} times; see the log of the Dask scheduler"
        return EngineUnavailableError(text).to_problem()

    async def _submit(self, client: Client, task: CropTask, run: _Run) -> Outcome | None:
        """Submit the crop once; return None if another service stopped the task that both services shared."""
        # Begins with the making lock's token, so that sweeps keep the temporary files until the lock is released.
        token = f"{task.token}.{uuid4().hex}"
        work = replace(task, token=token)
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
            # In the next turn of its loop, Dask forgets the task, so that the next one with this key runs again.
            # (Cancelling goes to all clients of the key, and could stop the next task.)
            future.release()
            await asyncio.sleep(0)

    def _on_news(self, event: str) -> None:
        message = DaskNews.model_validate_json(event)
        for run in [run for run in self._runs if run.key == message.key]:
            if message.news.progress is None:
                run.begun += 1
            else:
                run.report(message.news.progress)
