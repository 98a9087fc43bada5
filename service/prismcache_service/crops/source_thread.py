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

from prismcache.catalog import published
from prismcache.config import Settings
from prismcache.splits import SplitEntry
from prismcache_service.pipeline import require_service_extra

if TYPE_CHECKING:
    from prismcache_service.pipeline.bucket.source import Source
    from prismcache_service.pipeline.bucket.sources import Sources

T = TypeVar("T")


class SourceThread:
    """The splits' sources, each opened by the first `ask` and kept until `aclose`; a later `ask` opens others.

    Parameters
    ----------
    settings
        The bucket of the splits that name none.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._sources: Sources | None = None
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()  # of the thread's loop

    async def ask(self, question: Callable[[Source], Awaitable[T]], entry: SplitEntry | None = None) -> T:
        """Return what `question` returns of the source of a split, or of the published ones.

        Cancelling this cancels it. The thread is a daemon, so that no exit waits for a bucket.

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
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._ask(question, entry), self._loop))

    async def _ask(self, question: Callable[[Source], Awaitable[T]], entry: SplitEntry | None) -> T:
        async with self._opening:
            sources = self._sources = self._sources or await self._open()
        return await question(await sources.of(entry or published()["instance"]))

    async def _open(self) -> Sources:
        module = import_module("prismcache_service.pipeline.bucket.sources")
        executor = self._opened.enter_context(ThreadPoolExecutor(1))
        sources: Sources = await self._opened.enter_async_context(module.Sources(self._settings, executor))
        return sources

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
        self._sources = None
        await self._opened.aclose()
