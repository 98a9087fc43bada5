"""An event loop in a thread of its own, for callers without a loop, or with one that they must not block (Jupyter).

`LoopThread` is the thread. `LoopOwner` starts one with the first call of a `PrismClient`, stops it with the client, and
starts another in a forked process.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, TypeVarTuple, Unpack

from prismcache.backend import Backend
from prismcache.client.aio import AsyncPrismClient
from prismcache.config import Settings
from prismcache.errors import ConfigError, JobCancelledError

if TYPE_CHECKING:
    from anyio import CancelScope
    from anyio.from_thread import BlockingPortal

_log = logging.getLogger("prismcache")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

POLL = 0.25
"""Seconds between checks for Ctrl-C, which does not interrupt a wait on Windows."""

GRACE = 15.0
"""Seconds that a cancelled call may take to clean up while its caller waits."""


class LoopThread:
    """A daemon thread that runs an anyio portal until `stop`.

    anyio's own ``start_blocking_portal`` stops its thread when it is garbage collected. That hangs for ever in a forked
    process, where the thread does not exist.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._started: Future[tuple[BlockingPortal, Callable[[], object]]] = Future()
        self._last: Callable[[], Awaitable[object]] | None = None
        self._failure: Exception | None = None
        self._is_quiet = False
        self._thread = threading.Thread(target=self._serve, name="prismcache", daemon=True)
        self._thread.start()
        self._portal, self._signal_stop = self._started.result()

    def _serve(self) -> None:
        import anyio

        try:
            anyio.run(self._serve_until_stopped, backend="asyncio")
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve_until_stopped(self) -> None:
        import asyncio

        from anyio.from_thread import BlockingPortal

        stopping = asyncio.Event()
        async with BlockingPortal() as portal:
            loop = asyncio.get_running_loop()
            self._started.set_result((portal, partial(loop.call_soon_threadsafe, stopping.set)))
            await stopping.wait()
            if self._is_quiet:
                loop.set_exception_handler(lambda _, context: _log.debug("while stopping: %s", context))
            try:
                if self._last is not None:
                    await self._last()
            except Exception as error:  # noqa: BLE001 - `stop` raises it in the thread that called
                self._failure = error
            await portal.stop(cancel_remaining=True)

    def run(self, function: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
        """Await ``function(*args)`` on the loop.

        An exception in the waiting thread (Ctrl-C) cancels the call and waits until it has cleaned up.
        """
        call = _Call(partial(function, *args))
        try:
            future = self._portal.start_task_soon(call)
            while not wait([future], POLL).done:
                pass
        except BaseException:
            with suppress(RuntimeError):  # the loop may have ended meanwhile
                self._portal.start_task_soon(call.cancel)
                call.ended.wait(GRACE)
            raise
        if future.cancelled():
            raise JobCancelledError(
                "the client was closed while this call waited",
                remedy="Keep the client open until its calls have returned; for a PrismDataset, until wait() has.",
            )
        return future.result()

    def iterate(self, start: Callable[[], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
        """Yield the items of the asynchronous generator that `start` makes on the loop, and close it with this one."""
        items: AsyncGenerator[T, None] | None = None

        async def step() -> T:
            nonlocal items
            items = items or start()
            return await anext(items)

        try:
            while True:
                try:
                    item = self.run(step)
                except StopAsyncIteration:
                    items = None  # it has ended: no need to go there again
                    return
                yield item
        finally:
            if items is not None:
                self.dismiss(items.aclose)

    def dismiss(self, function: Callable[[], Awaitable[object]]) -> None:
        """Run `function` for its effect; without waiting in the loop's own thread, where waiting would hang.

        The garbage collector may call this from any thread, also from one that holds what the loop needs to go on; so
        the wait has an end. Nothing is done in a forked process, which has no such thread, nor after the thread has
        ended.
        """
        if not self.is_running:
            return
        if threading.current_thread() is self._thread:
            threading.Thread(target=self.run, args=(function,), daemon=True).start()
        else:
            wait([self._portal.start_task_soon(function)], GRACE)

    @property
    def is_running(self) -> bool:
        """Whether the thread runs, in this process."""
        return os.getpid() == self.pid and self._thread.is_alive()

    def stop(self, last: Callable[[], Awaitable[object]], *, quietly: bool = False, grace: float | None = None) -> None:
        """Run `last` on the loop, then end the thread; one that hangs is left running after `grace` s (`GRACE`)."""
        if not self.is_running:
            return
        self._last = last
        self._is_quiet = quietly
        self._signal_stop()  # unlike a call through the portal, this returns even if the loop is stuck
        if threading.current_thread() is not self._thread:
            self._thread.join(GRACE if grace is None else grace)
        if self._failure is not None:
            raise self._failure


class _Call(Generic[T]):
    """One awaited function that can be cancelled from outside the loop, even while it is being handed over."""

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self.ended = threading.Event()
        self._function = function
        self._scope: CancelScope | None = None
        self._cancelled = False

    async def __call__(self) -> T:
        from anyio import CancelScope

        try:
            with CancelScope() as self._scope:
                if self._cancelled:
                    self._scope.cancel()
                return await self._function()
            raise RuntimeError("cancelled by the waiting thread, which does not look at this")
        finally:
            self.ended.set()

    def cancel(self) -> None:
        """Cancel; to be run on the loop."""
        self._cancelled = True
        if self._scope is None:
            self.ended.set()
        else:
            self._scope.cancel()


class Running(NamedTuple):
    """A thread with an event loop, and the client that uses the loop."""

    loop: LoopThread
    client: AsyncPrismClient

    def drop(self, grace: float | None = None) -> None:
        """Close the client of a `PrismClient` that was collected, or never closed before the interpreter ended.

        While the interpreter ends, parts of it are gone already; so no error is shown.
        """
        try:
            self.loop.stop(self.client.drop, quietly=True, grace=grace)
        except Exception as error:  # noqa: BLE001 - see above
            _log.debug("a client that was dropped: %r", error)


_started: list[Running] = []
"""What the interpreter's end waits for."""


@atexit.register
def _end_all() -> None:
    while _started:
        _started.pop().drop()


class LoopOwner:
    """Starts at most one `Running` for all threads of a process; stops it on `close`, when collected, or at exit.

    The garbage collector runs in any thread, also in one that holds a lock without which the loop cannot end (of
    logging, of a thread pool). So the end of a collected one is begun, and waited for when the interpreter ends.

    Parameters
    ----------
    settings, backend
        For the `AsyncPrismClient` on the loop.
    """

    def __init__(self, settings: Settings, backend: Backend | None) -> None:
        self.settings = settings
        self._backend = backend
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._running: Running | None = None
        self._when_collected: weakref.finalize[Any, Any] | None = None

    def running(self) -> Running:
        """Return the thread and its client; start them if they do not run.

        Raises
        ------
        ConfigError
            In a forked process, if the parent used a given backend, which cannot be made again.
        """
        if os.getpid() != self._pid:
            self._forget_parent()
        with self._lock:
            if self._running is None:
                client = AsyncPrismClient(settings=self.settings, backend=self._backend)
                self._running = Running(LoopThread(), client)
                _started[:] = [*(running for running in _started if running.loop.is_running), self._running]
                self._when_collected = weakref.finalize(self, self._running.drop, grace=0)
                self._when_collected.atexit = False
            return self._running

    def close(self) -> None:
        """Close the client and end the thread, if they run."""
        running, self._running = self._running, None
        if running is not None and self._when_collected is not None:
            self._when_collected.detach()
            running.loop.stop(running.client.aclose)

    def _forget_parent(self) -> None:
        """In a forked process, drop the parent's thread, which does not exist here, and its lock, which may be held."""
        if self._backend is not None and self._running is not None:
            raise ConfigError(
                "a client whose given backend was used before a fork cannot be used after it",
                remedy="Make the client in the process that uses it, or give it settings instead of a backend.",
            )
        if self._when_collected is not None:
            self._when_collected.detach()
        self._start_afresh()
