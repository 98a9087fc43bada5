"""The one way from the event loop to the cache folder: threads of its own, with deadlines.

A mount may hang or take seconds for each operation. Only these threads wait for it: the event loop, asyncio's default
threads, and every request that needs no disk go on.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from prismcache.disk import storage_error
from prismcache.errors import StorageError

T = TypeVar("T")

DEADLINE_S = 30.0


class DiskThreads:
    """Threads for operations on one cache folder; none is started before there is work.

    Short operations, readings of whole files, and renewals of making locks have threads of their own, so that none of
    the three waits for another kind.
    """

    def __init__(self) -> None:
        self._operations = ThreadPoolExecutor(16, "cache")
        self._readings = ThreadPoolExecutor(4, "cache-reading")
        self._renewals = ThreadPoolExecutor(4, "cache-renewal")

    async def run(
        self,
        operation: Callable[..., T],
        *arguments: Any,
        seconds: float = DEADLINE_S,
        undo: Callable[[], object] | None = None,
    ) -> T:
        """Return what a short operation returns.

        Parameters
        ----------
        operation, arguments
            What is called in a thread.
        seconds
            Deadline; an operation that has begun goes on after it, unobserved.
        undo
            Called in a thread after an operation whose caller has stopped waiting (deadline, or cancelled).

        Raises
        ------
        StorageError
            At the deadline, and for every OSError of the operation.
        """
        return await self._run(self._operations, seconds, undo, operation, *arguments)

    async def read(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Return what an operation returns that reads whole files and takes as long as it takes; errors as in `run`."""
        return await self._run(self._readings, None, None, operation, *arguments)

    async def renew(self, operation: Callable[..., T], *arguments: Any) -> T:
        """Return what the renewal of a making lock returns; errors as in `run`."""
        return await self._run(self._renewals, DEADLINE_S, None, operation, *arguments)

    def close(self) -> None:
        """End the threads that have no work; those that wait for a hanging mount are not waited for."""
        for pool in (self._operations, self._readings, self._renewals):
            pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    async def _run(
        pool: ThreadPoolExecutor,
        seconds: float | None,
        undo: Callable[[], object] | None,
        operation: Callable[..., T],
        *arguments: Any,
    ) -> T:
        work = pool.submit(contextvars.copy_context().run, operation, *arguments)
        future = asyncio.wrap_future(work)
        try:
            done, _ = await asyncio.wait({future}, timeout=seconds)
        except asyncio.CancelledError:
            _abandon(work, future, undo)
            raise
        if not done:
            _abandon(work, future, undo)
            raise StorageError(
                f"the cache folder gave no response within {seconds:g} s",
                remedy="Check whether the disk or the network mount of PRISMCACHE_ROOT hangs.",
            )
        try:
            return future.result()
        except OSError as error:
            raise storage_error(error, error.filename or "the cache folder") from error


def _abandon(work: Future[T], future: asyncio.Future[T], undo: Callable[[], object] | None) -> None:
    if not work.cancel() and undo is not None:
        # In a thread of its own, as the pool may have been told to end.
        work.add_done_callback(lambda _: threading.Thread(target=undo, daemon=True).start())
    future.cancel()


class SingleFlight:
    """Runs one task for each key at a time: further callers wait for it; it goes on when a caller is cancelled."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Any]] = {}

    async def run(self, key: Hashable, start: Callable[[], Awaitable[T]]) -> T:
        """Return what the running task for `key` returns; `start` makes the task if none is running."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.ensure_future(_awaited(start))
            task.add_done_callback(partial(self._forget, key))
        found: T = await asyncio.shield(task)
        return found

    def _forget(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn when every caller was cancelled

    async def aclose(self) -> None:
        """Cancel what is running."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _awaited(start: Callable[[], Awaitable[T]]) -> T:
    return await start()
