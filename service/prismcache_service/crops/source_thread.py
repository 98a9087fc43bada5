"""The bucket, read in a thread of its own with its own event loop, so that the service's loop never waits.

Importing the SDK takes half a second, opening a client a tenth (botocore reads its models of S3), and parsing
a listing of a thousand objects some 30 ms.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

from prismcache.config import Settings
from prismcache_service.extras import require_service_extra

if TYPE_CHECKING:
    from prismcache_service.pipeline.bucket.source import Source

T = TypeVar("T")


class SourceThread:
    """One source, opened by the first `ask` and kept until `aclose`; a later `ask` opens another.

    Parameters
    ----------
    settings
        The bucket.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._source: Source | None = None
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()  # of the thread's loop

    async def ask(self, question: Callable[[Source], Awaitable[T]]) -> T:
        """Return what `question` returns; cancelling this cancels it.

        The thread is a daemon, so that no exit waits for a bucket.

        Raises
        ------
        MissingExtraError, ConfigError
            If the source cannot be opened.
        SourceError
            If `question` raises it.
        """
        require_service_extra()
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="prismcache-source", daemon=True)
            self._thread.start()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._ask(question), self._loop))

    async def _ask(self, question: Callable[[Source], Awaitable[T]]) -> T:
        async with self._opening:
            source = self._source = self._source or await self._open()
        return await question(source)

    async def _open(self) -> Source:
        s3 = import_module("prismcache_service.pipeline.bucket.s3")
        async with AsyncExitStack() as opened:  # if the last step fails, nothing of the others is kept
            executor = opened.enter_context(ThreadPoolExecutor(1))
            source: Source = await opened.enter_async_context(s3.open_s3(self._settings, executor))
            self._opened = opened.pop_all()
        return source

    async def aclose(self) -> None:
        """Cancel all questions, close the source and end the thread."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._close(), loop))
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(self._thread.join)
        loop.close()

    async def _close(self) -> None:
        asking = asyncio.all_tasks() - {asyncio.current_task()}
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        self._source = None
        await self._opened.aclose()
