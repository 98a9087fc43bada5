"""The engine on a Dask cluster: each crop is one task on one worker, which makes it in a child process of its own.

The service keeps the queue and knows who wants what; Dask carries a crop to a worker and the answer back. Whatever
happens to workers, scheduler and connection, a crop is begun again elsewhere. If a worker only seemed lost, two tries
overlap: each has a temporary name of its own, and both would publish right files.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError as DaskCancelledError
from typing import Any
from uuid import uuid4

from distributed import KilledWorker

from prismcache.config import Settings
from prismcache.errors import EngineUnavailableError, WorkerError, error_from_problem
from prismcache.schema import CropFile
from prismcache_service.cache.cache import CropCache
from prismcache_service.engine.base import MAX_STRIKES, CropTask, Engine
from prismcache_service.engine.dask.cluster import Cluster, Member
from prismcache_service.engine.dask.messages import DaskAnswer, DaskOrder, DaskProgress, settings_json, task_key
from prismcache_service.engine.dask.worker import make_crop, rest, stop_crop
from prismcache_service.engine.local.messages import Failed, Made, WorkOrder
from prismcache_service.pipeline.progress import Report

_HUNG_S = 20.0
_SILENCE_S = 60.0
_STOP_S = 5.0
_REST_S = 2.0
_MAX_BREAKS = 10


class LostError(Exception):
    """The worker, or the way to it, went away before it answered."""


class DaskEngine(Engine):
    """Workers of a Dask cluster that see this service's cache folder, each with as many crops as it has threads.

    Parameters
    ----------
    settings
        Everything that a worker needs; no more than `settings.workers` crops are made at once, however many there are.
    scheduler
        The scheduler's address (``tcp://…``, ``tls://…``), or the path of its scheduler file.
    timeout
        Seconds that a crop waits while no worker may be given it.
    silence
        Seconds without a sign of life after which a worker's child process counts as hung.
    hung_after
        Seconds without a heartbeat after which a worker itself does.
    """

    name = "dask"

    def __init__(
        self,
        settings: Settings,
        scheduler: str,
        *,
        timeout: float = 300.0,
        silence: float = _SILENCE_S,
        hung_after: float = _HUNG_S,
    ) -> None:
        self._settings = settings
        self._silence = silence
        self._cache = CropCache(settings.root)
        self._free = asyncio.Semaphore(settings.workers)
        self._reports: defaultdict[str, list[Report]] = defaultdict(list)
        self._cluster = Cluster(scheduler, settings, timeout=timeout, hung_after=hung_after, on_event=self._hear)

    async def run(self, task: CropTask, report: Report) -> CropFile:
        key = task_key(task, self._settings)
        self._reports[key].append(report)
        try:
            async with self._free:
                return await self._make(task, key)
        finally:
            self._reports[key].remove(report)
            if not self._reports[key]:
                del self._reports[key]
            # What a lost worker left, also one that still writes: without its file it can publish nothing.
            await asyncio.shield(asyncio.to_thread(self._cache.discard, task.token))

    async def check(self) -> None:
        await self._cluster.check()

    async def aclose(self) -> None:
        await self._tell(self._cluster.fit(), _REST_S, rest, settings_json(self._settings))
        await self._cluster.aclose()

    async def _make(self, task: CropTask, key: str) -> CropFile:
        strikes = breaks = 0
        while True:
            # Below the lease's token, so that its sweeps spare and its end removes what the attempt writes.
            token = f"{task.token}.{uuid4().hex}"
            async with self._cluster.seat() as seat:
                try:
                    answer = await self._make_at(seat, task, key, token)
                except LostError as error:
                    strikes, breaks = strikes + seat.died, breaks + (not seat.died)
                    _require_hope(task, strikes, breaks, error)
                    continue
            if isinstance(answer.event, Made):
                return self._cache.shown(answer.event.file)
            # A task of this key that somebody else had under way failed, or was stopped, for reasons of its own.
            if answer.token == token and isinstance(answer.event, Failed):
                raise error_from_problem(answer.event.problem)
            breaks += 1
            _require_hope(task, strikes, breaks, LostError(f"{seat} stopped it"))

    async def _make_at(self, seat: Member, task: CropTask, key: str, token: str) -> DaskAnswer:
        """One attempt on one worker.

        Raises
        ------
        LostError
            If the worker or the connection went away.
        """
        answering = asyncio.create_task(self._answer(seat, task, key, token))
        losing = asyncio.create_task(seat.lost.wait())
        try:
            await asyncio.wait({answering, losing}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            answering.cancel()
            await asyncio.shield(self._tell([seat], _STOP_S, stop_crop, token))
            raise
        finally:
            losing.cancel()
            answering.cancel()
            await asyncio.wait({answering, losing})
        if answering.cancelled():
            raise LostError(f"{seat} is gone, or sends no heartbeats")
        return answering.result()

    async def _answer(self, seat: Member, task: CropTask, key: str, token: str) -> DaskAnswer:
        name = task.name
        work = WorkOrder(split=name.split, crop=name.crop, channels=name.channels, strict=task.strict, token=token)
        order = DaskOrder(key=key, work=work, settings=settings_json(self._settings), silence=self._silence)
        try:
            future = seat.client.submit(make_crop, order.model_dump_json(), key=key, workers=[seat.address], pure=False)
            try:
                return DaskAnswer.model_validate_json(await future)
            finally:
                # Dask then forgets the task, at its loop's next turn: the next of this key runs anew. (Cancelling would
                # be announced to all under the key, and so hit the next one.)
                future.release()
                await asyncio.sleep(0)
        except KilledWorker as error:
            self._cluster.lose(seat)
            raise LostError(f"{seat} died") from error
        except (DaskCancelledError, OSError) as error:
            self._cluster.doubt(seat)
            raise LostError(f"the connection to the scheduler broke: {error}") from error
        except Exception as error:
            raise WorkerError(f"making {name.folder} on {seat}: {type(error).__name__}: {error}") from error

    @staticmethod
    async def _tell(members: Iterable[Member], seconds: float, call: Callable[..., Any], *arguments: str) -> None:
        """Call a function on workers, as far as they can be reached in time."""

        async def tell(member: Member) -> None:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(seconds):
                    await member.client.run(call, *arguments, workers=[member.address], on_error="ignore")

        await asyncio.gather(*map(tell, members))

    def _hear(self, event: str) -> None:
        told = DaskProgress.model_validate_json(event)
        for report in self._reports.get(told.key, ()):
            report(told.progress)


def _require_hope(task: CropTask, strikes: int, breaks: int, last: LostError) -> None:
    """Raise when a crop was begun often enough."""
    name = task.name.folder
    if strikes == MAX_STRIKES:
        raise WorkerError(f"making {name} ended {strikes} Dask workers; of the last: {last}") from last
    if breaks == _MAX_BREAKS:
        raise EngineUnavailableError(f"making {name} was broken off {breaks} times, at last since {last}") from last
