"""How many objects are fetched at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_BYTES = 40_000_000
"""What a link of 10 Gbit/s brings in 30 ms, the time to an object's first byte."""


class InFlight:
    """Lets so many requests, and bytes, be under way; in the order in which they ask.

    Small objects need many requests to fill a link. As many large ones would share it until all of them come to their
    ends at once, and leave nothing to decode before.

    Parameters
    ----------
    requests
        How many.
    size
        Of their bodies together; a single larger one goes alone.
    """

    def __init__(self, requests: int, size: int = MAX_BYTES) -> None:
        self._most, self._most_bytes = requests, size
        self._count, self._bytes = 0, 0
        self._turn = asyncio.Lock()
        self._ended = asyncio.Event()

    @asynccontextmanager
    async def fetching(self, size: int) -> AsyncIterator[None]:
        """Wait for room for a body of `size` bytes, which the block fetches."""
        async with self._turn:
            while self._count == self._most or (self._count and self._bytes + size > self._most_bytes):
                self._ended.clear()
                await self._ended.wait()
            self._count, self._bytes = self._count + 1, self._bytes + size
        try:
            yield
        finally:
            self._count, self._bytes = self._count - 1, self._bytes - size
            self._ended.set()
