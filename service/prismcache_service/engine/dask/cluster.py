"""The connection to a Dask scheduler, which is made again when it breaks, and the inspection of the workers.

Each worker is inspected before its first crop: it must have the service's release and libraries, and see the service's
cache folder. A worker that passes gets a Dask resource. Every crop requires this resource, so Dask sends crops only to
workers that passed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

from distributed import Client, Scheduler

from prismcache.config import Settings
from prismcache.errors import EngineUnavailableError, PrismError
from prismcache.schema import Split
from prismcache_service.cache import CropCache
from prismcache_service.engine.dask.messages import TOPIC, Inspection, differences, settings_json, versions
from prismcache_service.engine.dask.worker import inspect_worker

_log = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two requests for the list of workers
_RESPONSE_S = 10.0
_CONNECT_S = 5.0
_CHECK_S = 1.5
_AGAIN_S = 15.0  # until a worker that failed its inspection is inspected again
_SHOWN = 3  # workers that an error message names
_SCHEDULER_PARTS = ("prismcache", "python", "distributed")


@dataclass
class _Member:
    """A worker of the cluster. `trouble` is why it gets no crops: "" if it passed, None before its inspection."""

    host: str
    trouble: str | None = None
    inspecting: asyncio.Task[None] | None = None
    inspect_at: float = 0.0


class Cluster:
    """The workers of one scheduler.

    `scheduler` is its address, or the path of its scheduler file, which is read again for each connection. `on_news` is
    called with each event of `TOPIC`, a `DaskNews` as JSON.
    """

    def __init__(self, scheduler: str, settings: Settings, on_news: Callable[[str], None]) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._on_news = on_news
        self._cache = CropCache(settings.root)
        self._members: dict[str, _Member] = {}
        self._trouble: str | None = "no connection yet"
        self._client: Client | None = None
        self._changed = asyncio.Event()
        self._doubted = asyncio.Event()
        self._settled = asyncio.Event()  # cleared while a connection is made
        self._keeping: asyncio.Task[None] | None = None

    async def client(self) -> Client:
        """Wait until a worker may make crops, and return the connection to the scheduler."""
        if self._keeping is None:
            # In an empty context, so that the log lines do not name the job that came first.
            self._keeping = asyncio.create_task(self._keep_connected(), context=contextvars.Context())
        while self._client is None or not self.fit():
            await self._changed.wait()
        return self._client

    async def none_fit(self, seconds: float) -> None:
        """Return once no worker was allowed to make crops for this many seconds without a break."""
        while True:
            has_fit = bool(self.fit())
            try:
                async with asyncio.timeout(None if has_fit else seconds):
                    while bool(self.fit()) == has_fit:
                        await self._changed.wait()
            except TimeoutError:
                return

    async def check(self) -> None:
        """Wait 1.5 s for a worker that may make crops.

        Raise `EngineUnavailableError` if no worker may; the message gives the errors of the scheduler and of the
        workers.
        """
        try:
            async with asyncio.timeout(_CHECK_S):
                await self.client()
        except TimeoutError:
            raise EngineUnavailableError(self.trouble()) from None

    def fit(self) -> list[str]:
        """Return the addresses of the workers that may make crops."""
        return [address for address, member in self._members.items() if member.trouble == ""]

    def trouble(self) -> str:
        """Return why no worker may make crops."""
        where = f"the Dask scheduler at {self._scheduler}"
        if self._trouble is not None:
            return f"{where} cannot be used: {self._trouble}"
        if not self._members:
            return f"{where} has no workers"
        found = [f"{at} on {m.host}: {m.trouble or 'not inspected yet'}" for at, m in self._members.items()]
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"{where} has no worker that may be given crops: {'; '.join(found[:_SHOWN])}{more}"

    def doubt(self, client: Client) -> None:
        """Connect again, because a call over this connection failed."""
        if self._client is client:
            self._disconnected("the connection broke")
            self._doubted.set()

    async def call_all(self, seconds: float, function: Callable[..., Any], *arguments: str) -> None:
        """Call a function on all workers that may make crops, and wait at most this many seconds."""
        if self._client is not None and (fit := self.fit()):
            with contextlib.suppress(Exception):
                async with asyncio.timeout(seconds):
                    await self._client.run(function, *arguments, workers=fit, on_error="ignore")

    async def aclose(self) -> None:
        """Disconnect; the scheduler then stops all tasks of this service."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            # If a call is cancelled while Dask connects, Dask leaves a socket open.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._settled.wait()
                    inspecting = [m.inspecting for m in self._members.values() if m.inspecting is not None]
                    await asyncio.gather(*inspecting, return_exceptions=True)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _keep_connected(self) -> None:
        try:
            while True:
                self._settled.clear()
                try:
                    async with self._connected() as client:
                        await self._watch(client)
                except Exception as error:  # noqa: BLE001 - connect again after any error of Dask
                    self._disconnected(str(error) or type(error).__name__)
                self._settled.set()
                await asyncio.sleep(_LOOK_S)
        finally:
            self._trouble = "the connection was closed"  # intended, so that nothing is logged
            self._disconnected(self._trouble)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        where = {"address": self._scheduler} if "://" in self._scheduler else {"scheduler_file": self._scheduler}
        client = Client(**where, asynchronous=True, set_as_default=False, timeout=_CONNECT_S, name="prismcache")
        try:
            async with asyncio.timeout(2 * _CONNECT_S):  # Dask waits for a scheduler file without a limit
                await client
                theirs = await client.run_on_scheduler(versions)
            ours = versions()
            if wrong := differences({name: ours[name] for name in _SCHEDULER_PARTS}, theirs):
                raise EngineUnavailableError(f"it has {wrong}")
            client.subscribe_topic(TOPIC, lambda event: self._on_news(event[1]))
            yield client
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CONNECT_S):
                    await client.close()

    async def _watch(self, client: Client) -> None:
        """Inspect new workers, until `doubt` is called."""
        self._doubted.clear()
        self._client, self._trouble = client, None
        while not self._doubted.is_set():
            try:
                async with asyncio.timeout(_RESPONSE_S):
                    identity = await cast("Any", client.scheduler).identity()
            except Exception as error:  # Dask's messages name its internals
                raise ConnectionError("it does not respond any more") from error
            if not self._doubted.is_set():
                self._look(client, identity["workers"])
            self._settled.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._doubted.wait()

    def _look(self, client: Client, workers: dict[str, Any]) -> None:
        for address in self._members.keys() - workers.keys():
            self._forget(address)
        now = asyncio.get_running_loop().time()
        for address, seen in workers.items():
            member = self._members.setdefault(address, _Member(seen["host"]))
            is_inspected = member.inspecting is not None and not member.inspecting.done()
            if member.trouble != "" and not is_inspected and now >= member.inspect_at:
                member.inspect_at = now + _AGAIN_S
                member.inspecting = asyncio.create_task(self._inspect(client, address, member))

    def _forget(self, address: str) -> None:
        member = self._members.pop(address)
        if member.inspecting is not None:
            member.inspecting.cancel()
        self._tell_change()

    def _disconnected(self, why: str) -> None:
        if self._trouble != why:
            _log.warning("the Dask scheduler at %s cannot be used: %s", self._scheduler, why)
        self._client, self._trouble = None, why
        for address in list(self._members):
            self._forget(address)

    async def _inspect(self, client: Client, address: str, member: _Member) -> None:
        trouble = await self._trouble_of(client, address, member)
        if not trouble:
            with contextlib.suppress(Exception):  # of a connection that breaks, which `_watch` sees as well
                async with asyncio.timeout(_RESPONSE_S):
                    await client.run_on_scheduler(_offer_waiting, address)
        if trouble != member.trouble:
            level = logging.WARNING if trouble else logging.INFO
            text = f"gets no crops: {trouble}" if trouble else "may be given crops"
            _log.log(level, "worker %s on %s %s", address, member.host, text)
        member.trouble = trouble
        self._tell_change()

    async def _trouble_of(self, client: Client, address: str, member: _Member) -> str:
        mark = f"dask-{uuid4().hex}"
        locks = self._cache.locks
        try:
            await self._cache.threads.run(self._cache.prepare, Split.INSTANCE)
            token = await self._cache.threads.run(locks.try_acquire, mark)
        except PrismError as error:
            return str(error)
        try:
            async with asyncio.timeout(_RESPONSE_S):
                responses = await client.run(
                    inspect_worker, settings_json(self._settings), mark, token,
                    workers=[address], on_error="return",
                )  # fmt: skip
        except TimeoutError:
            return f"it does not respond within {_RESPONSE_S:.0f} s"
        except Exception as error:  # noqa: BLE001 - after any error of Dask, this worker gets no crops
            return f"it cannot be inspected: {error}"
        finally:
            await asyncio.shield(self._cache.threads.run(locks.release, mark, token or ""))
        response = responses.get(address)
        if not isinstance(response, str):
            return f"it cannot be inspected: {response}"
        found = Inspection.model_validate_json(response)
        member.host = found.host
        return differences(versions(), found.versions) or found.storage


def _offer_waiting(address: str, dask_scheduler: Scheduler) -> None:
    """Have the scheduler send waiting tasks to a worker that has got the resource which these tasks require.

    If all workers are lost, their tasks wait. Dask looks for waiting tasks when a worker joins, which is before our
    workers get their resource.
    """
    if (worker := dask_scheduler.workers.get(address)) is not None:
        waiting = dask_scheduler.bulk_schedule_unrunnable_after_adding_worker(worker)
        dask_scheduler.transitions(waiting, "prismcache-resource")
