"""The places of a catalog's splits: the bucket of the settings, and those that a lab's own splits name."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from prismcache.config import Settings
from prismcache.splits import SplitEntry
from prismcache_service.pipeline.bucket.s3 import open_s3
from prismcache_service.pipeline.bucket.source import Source


class Sources:
    """One source for each place, opened when it is first needed and kept until the end of the block.

    Parameters
    ----------
    settings
        The bucket of all splits that name none.
    executor
        Threads for digests.
    """

    def __init__(self, settings: Settings, executor: Executor) -> None:
        self._settings, self._executor = settings, executor
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._sources: dict[tuple[tuple[str, object], ...], Source] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    async def of(self, entry: SplitEntry) -> Source:
        """Return the source of a split.

        Raises
        ------
        ConfigError
            If the place's endpoint is no URL, or credentials were asked for and there are none.
        """
        place = tuple(sorted(entry.place.items()))
        async with self._opening:
            if place not in self._sources:
                settings = self._settings.model_copy(update=entry.place)
                self._sources[place] = await self._opened.enter_async_context(open_s3(settings, self._executor))
        return self._sources[place]
