"""A connection to a Dask scheduler that is made again when it breaks, and which workers may be given a crop.

Every worker is inspected before its first crop: it must run the same release and libraries as the service, and see the
service's own cache folder. Who is hung shows in its heartbeats, which the scheduler passes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

from distributed import Client

from prismcache.config import Settings
from prismcache.errors import EngineUnavailableError, PrismError
from prismcache.schema import Split
from prismcache_service.cache.cache import CropCache
from prismcache_service.engine.dask.fitness import differences, versions
from prismcache_service.engine.dask.messages import TOPIC, Inspection, settings_json
from prismcache_service.engine.dask.worker import inspect_worker

_log = logging.getLogger(__name__)

_LOOK_S = 1.0
_ANSWER_S = 10.0
_CONNECT_S = 5.0
_CHECK_S = 1.5
_SETTLE_S = 1.0
_AGAIN_S = 15.0
_SHOWN = 3
_SCHEDULER_PARTS = ("prismcache", "python", "distributed")


@dataclass
class Member:
    """A worker of the cluster.

    Attributes
    ----------
    address, host, threads
        Whose, where, and how many crops it takes at once.
    trouble
        Why it may not be given crops; "" if it may, None as long as that is not known.
    making
        How many crops it has of us.
    lost, died
        Set when it went away, or seems hung; `died` if it went alone, and not the scheduler or the connection.
    """

    address: str
    host: str
    threads: int
    client: Client
    trouble: str | None = None
    making: int = 0
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    died: bool = False
    last_seen: float = 0.0
    heard_at: float = 0.0
    inspecting: asyncio.Task[None] | None = None
    inspected_at: float = 0.0

    def __str__(self) -> str:
        return f"{self.address} on {self.host}"


def choose(members: Iterable[Member]) -> Member | None:
    """The fit worker with the most threads free; None if there is no free thread."""
    free = [member for member in members if member.trouble == "" and member.making < member.threads]
    return max(free, key=lambda member: member.threads - member.making, default=None)


class Cluster:
    """The workers behind one scheduler.

    Parameters
    ----------
    scheduler
        Its address, or the path of its scheduler file, which is read again for each connection.
    settings
        What workers get.
    timeout
        Seconds to wait for a worker that may be given crops while there is none.
    hung_after
        Seconds without a heartbeat after which a worker counts as lost.
    on_event
        Hears of every event of `TOPIC`.
    """

    def __init__(
        self,
        scheduler: str,
        settings: Settings,
        *,
        timeout: float,
        hung_after: float,
        on_event: Callable[[str], None],
    ) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._timeout = timeout
        self._hung_after = hung_after
        self._on_event = on_event
        self._cache = CropCache(settings.root)
        self._members: dict[str, Member] = {}
        self._trouble: str | None = "no connection yet"
        self._changed = asyncio.Event()
        self._doubted = asyncio.Event()
        self._settled = asyncio.Event()  # not while a connection is made, and its workers are seen for the first time
        self._keeping: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def seat(self) -> AsyncIterator[Member]:
        """A free thread of a fit worker for the time of the block.

        Raises
        ------
        EngineUnavailableError
            If there was no fit worker for `timeout` seconds.
        """
        member = await self._free_member()
        member.making += 1
        try:
            yield member
        finally:
            member.making -= 1
            self._tell_change()

    async def check(self) -> None:
        """See that there is a fit worker; waits a little for one.

        Raises
        ------
        EngineUnavailableError
            Says what is wrong with scheduler and workers.
        """
        self._start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_S):
                while not self.fit():
                    await self._changed.wait()
        if not self.fit():
            raise EngineUnavailableError(self.trouble())

    def fit(self) -> list[Member]:
        """The workers that may be given crops."""
        return [member for member in self._members.values() if member.trouble == ""]

    def trouble(self) -> str:
        """Why there is no fit worker."""
        where = f"the Dask scheduler at {self._scheduler}"
        if self._trouble is not None:
            return f"{where} cannot be used: {self._trouble}"
        if not self._members:
            return f"{where} has no workers"
        found = [f"{member}: {member.trouble or 'not inspected yet'}" for member in self._members.values()]
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"{where} has no worker that may be given crops: {'; '.join(found[:_SHOWN])}{more}"

    def lose(self, member: Member) -> None:
        """Count on this worker no more: it was said to be dead."""
        if self._members.get(member.address) is member:
            self._lose(member, died=True)

    def doubt(self, member: Member) -> None:
        """Connect anew: the connection over which this worker was known is said to be gone."""
        if self._members.get(member.address) is member:
            self._doubted.set()
            self._lose_all("the connection broke")

    async def aclose(self) -> None:
        """Leave the cluster; the scheduler then stops whatever still runs for us."""
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            # Dask leaves a socket open when a call is cancelled that connects.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SETTLE_S):
                    await self._settled.wait()
                    inspecting = [m.inspecting for m in self._members.values() if m.inspecting is not None]
                    await asyncio.gather(*inspecting, return_exceptions=True)
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _free_member(self) -> Member:
        self._start()
        loop = asyncio.get_running_loop()
        deadline: float | None = None
        while (member := choose(self._members.values())) is None:
            deadline = None if self.fit() else deadline or loop.time() + self._timeout
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                raise EngineUnavailableError(f"for {self._timeout:g} s, {self.trouble()}") from None
        return member

    def _start(self) -> None:
        if self._keeping is None:
            # In a context of its own: what it logs belongs to no job.
            self._keeping = asyncio.create_task(self._keep(), context=contextvars.Context())

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _keep(self) -> None:
        """Stay connected and look at the workers, for ever."""
        try:
            while True:
                self._settled.clear()
                try:
                    async with self._connected() as client:
                        await self._watch(client)
                except Exception as error:  # noqa: BLE001 - whatever Dask raises, there is another try
                    self._lose_all(str(error) or type(error).__name__)
                self._settled.set()
                await asyncio.sleep(_LOOK_S)
        finally:
            self._trouble = "the connection was closed"  # on purpose, so it is not logged
            self._lose_all(self._trouble)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        where = {"address": self._scheduler} if "://" in self._scheduler else {"scheduler_file": self._scheduler}
        client = Client(**where, asynchronous=True, set_as_default=False, timeout=_CONNECT_S, name="prismcache")
        try:
            async with asyncio.timeout(2 * _CONNECT_S):  # a scheduler file may never come
                await client
                theirs = await client.run_on_scheduler(versions)
            ours = versions()
            if wrong := differences({name: ours[name] for name in _SCHEDULER_PARTS}, theirs):
                raise EngineUnavailableError(f"it has {wrong}")
            client.subscribe_topic(TOPIC, lambda event: self._on_event(event[1]))
            yield client
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CONNECT_S):
                    await client.close()

    async def _watch(self, client: Client) -> None:
        self._doubted.clear()
        self._trouble = None
        while not self._doubted.is_set():
            try:
                async with asyncio.timeout(_ANSWER_S):
                    identity = await cast("Any", client.scheduler).identity()
            except Exception as error:
                raise ConnectionError("it answers no more") from error  # Dask's own words tell of its innards
            self._look(client, identity["workers"])
            self._settled.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._doubted.wait()

    def _look(self, client: Client, workers: dict[str, Any]) -> None:
        now = time.monotonic()
        for address in self._members.keys() - workers.keys():
            self._lose(self._members[address], died=True)
        for address, seen in workers.items():
            member = self._members.get(address)
            if member is not None and self._is_hung(member, seen["last_seen"], now):
                _log.warning("worker %s sends no heartbeats", member)
                self._lose(member, died=True)
                member = None
            if member is None:
                member = Member(address, seen["host"], seen["nthreads"], client, heard_at=now)
                self._members[address] = member
            if member.last_seen != seen["last_seen"]:
                member.last_seen, member.heard_at = seen["last_seen"], now
            self._inspect_if_due(member, now)

    def _is_hung(self, member: Member, last_seen: float, now: float) -> bool:
        return member.last_seen == last_seen and now - member.heard_at > self._hung_after

    def _lose(self, member: Member, *, died: bool) -> None:
        del self._members[member.address]
        member.died = died
        member.lost.set()
        if member.inspecting is not None:
            member.inspecting.cancel()
        self._tell_change()

    def _lose_all(self, why: str) -> None:
        if self._trouble != why:
            _log.warning("the Dask scheduler at %s cannot be used: %s", self._scheduler, why)
        self._trouble = why
        for member in list(self._members.values()):
            self._lose(member, died=False)
        self._tell_change()

    def _inspect_if_due(self, member: Member, now: float) -> None:
        is_running = member.inspecting is not None and not member.inspecting.done()
        if member.trouble == "" or is_running or (member.inspected_at and now - member.inspected_at < _AGAIN_S):
            return
        member.inspected_at = now
        member.inspecting = asyncio.create_task(self._inspect(member))

    async def _inspect(self, member: Member) -> None:
        trouble = await self._trouble_of(member)
        if trouble != member.trouble:
            level = logging.WARNING if trouble else logging.INFO
            _log.log(level, "worker %s %s", member, f"gets no crops: {trouble}" if trouble else "is fit")
        member.trouble = trouble
        self._tell_change()

    async def _trouble_of(self, member: Member) -> str:
        mark = f"dask-{uuid4().hex}"
        leases = self._cache.leases
        try:
            await asyncio.to_thread(self._cache.prepare, Split.INSTANCE)
            token = await asyncio.to_thread(leases.try_acquire, mark)
        except PrismError as error:
            return str(error)
        try:
            async with asyncio.timeout(_ANSWER_S):
                said = await member.client.run(
                    inspect_worker, settings_json(self._settings), mark, token,
                    workers=[member.address], on_error="return",
                )  # fmt: skip
        except TimeoutError:
            return f"it does not answer within {_ANSWER_S:.0f} s"
        except Exception as error:  # noqa: BLE001 - whatever Dask raises, this worker gets no crops
            return f"it cannot be inspected: {error}"
        finally:
            await asyncio.shield(asyncio.to_thread(leases.release, mark, token or ""))
        answer = said.get(member.address)
        if not isinstance(answer, str):
            return f"it cannot be inspected: {answer}"
        found = Inspection.model_validate_json(answer)
        member.host = found.host
        return differences(versions(), found.versions) or found.storage
