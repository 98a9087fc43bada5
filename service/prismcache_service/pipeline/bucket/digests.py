"""Comparing bodies with the MD5 that their listing gave, several at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from prismcache.errors import SourceCorruptError
from prismcache.layout import SourceObject
from prismcache_service.pipeline.bucket.md5 import LANES, md5_of_each
from prismcache_service.pipeline.bucket.source import check_digest, plain_md5


@dataclass(frozen=True)
class _Waiting:
    item: SourceObject
    data: memoryview
    checked: asyncio.Future[None]


class DigestChecks:
    """Checks bodies in an executor's threads: what waits when a thread comes to it is digested side by side.

    Parameters
    ----------
    executor
        The threads.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._waiting: deque[_Waiting] = deque()

    async def check(self, item: SourceObject, data: memoryview) -> None:
        """Compare a body with the MD5 that its listing gave, where it gave one.

        Raises
        ------
        SourceCorruptError
            If they differ.
        """
        if plain_md5(item.etag) is None:
            return
        loop = asyncio.get_running_loop()
        checked = loop.create_future()
        self._waiting.append(_Waiting(item, data, checked))
        self._executor.submit(self._check_some, loop)  # finds nothing left if another one has taken it along
        await checked

    def _check_some(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._take()
        if batch:
            loop.call_soon_threadsafe(_answer, batch, _compare(batch))

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while len(batch) < LANES:
            try:
                waiting = self._waiting.popleft()
            except IndexError:
                break
            if not waiting.checked.cancelled():
                batch.append(waiting)
        return batch


def _compare(batch: Sequence[_Waiting]) -> list[Exception | None]:
    """What is wrong with each."""
    try:
        found = md5_of_each([waiting.data for waiting in batch])
    except Exception as error:  # noqa: BLE001 - goes to those who wait, who would otherwise do so for ever
        return [error] * len(batch)
    wrong: list[Exception | None] = []
    for waiting, digest in zip(batch, found, strict=True):
        try:
            if digest != plain_md5(waiting.item.etag):
                check_digest(waiting.item, waiting.data)
        except SourceCorruptError as error:
            wrong.append(error)
        else:
            wrong.append(None)
    return wrong


def _answer(batch: Sequence[_Waiting], wrong: Sequence[Exception | None]) -> None:
    for waiting, error in zip(batch, wrong, strict=True):
        if waiting.checked.done():  # nobody waits any more
            continue
        if error is None:
            waiting.checked.set_result(None)
        else:
            waiting.checked.set_exception(error)
