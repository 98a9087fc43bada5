"""An event loop in a thread of its own, for callers that have none (or one that they must not block, as in Jupyter)."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar, TypeVarTuple, Unpack

from prismcache.errors import JobCancelledError

if TYPE_CHECKING:
    from anyio import CancelScope
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

POLL = 0.25
"""Seconds between looks for Ctrl-C, which on Windows does not interrupt a wait."""

GRACE = 15.0
"""Seconds that a cancelled call may take to clean up, while the caller is kept waiting."""


class LoopThread:
    """A daemon thread that runs an anyio portal until `stop`.

    Not anyio's own ``start_blocking_portal``: that one stops its thread when it is garbage collected, which hangs for
    ever in a forked process, where the thread does not exist.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._started: Future[tuple[BlockingPortal, Callable[[], object]]] = Future()
        self._last: Callable[[], Awaitable[object]] | None = None
        self._failure: Exception | None = None
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
            try:
                if self._last is not None:
                    await self._last()
            except Exception as error:  # noqa: BLE001 - raised by `stop`, in the thread that asked
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
            raise JobCancelledError("the client was closed while this call waited")
        return future.result()

    def iterate(self, start: Callable[[], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
        """The items of what `start` makes on the loop, each awaited there; closing this closes it there."""
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
        """Run `function` for its effect; without waiting if this is the loop's own thread, where waiting would hang.

        The garbage collector may call from any thread. In a forked process, which has no such thread, nothing is done.
        """
        if os.getpid() != self.pid:
            return
        if threading.current_thread() is self._thread:
            threading.Thread(target=self.run, args=(function,), daemon=True).start()
        else:
            self.run(function)

    def stop(self, last: Callable[[], Awaitable[object]]) -> None:
        """Run `last` on the loop, then end the thread; a thread that hangs is left behind after `GRACE`."""
        if os.getpid() != self.pid or not self._thread.is_alive():
            return
        self._last = last
        self._signal_stop()  # unlike a call through the portal, this returns even if the loop is stuck
        if threading.current_thread() is not self._thread:
            self._thread.join(GRACE)
        if self._failure is not None:
            raise self._failure


class _Call(Generic[T]):
    """One awaited function that can be cancelled from outside of the loop, even while it is being handed over."""

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
