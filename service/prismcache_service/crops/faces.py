"""Zarr faces of cached crops, kept open between requests: a viewer asks for hundreds of chunks of one crop."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from prismcache.crop import Crop
from prismcache.crop.zarr_store import FaceMapping, Found
from prismcache.errors import PrismError
from prismcache.schema import CropFile, Product, Split
from prismcache_service.cache import CropCache, CropName, SingleFlight

_MAX_OPEN = 32  # files; each costs a descriptor and 16 bytes a chunk
_RECHECK_S = 1.0  # how long an open face is served without a look at the cache


@dataclass(slots=True)
class OpenFace:
    """A face of one cached file.

    Attributes
    ----------
    file
        The file that the face shows.
    content, crop
        Keys and bytes, and the open file behind them. Closed when the last request that reads it has ended.
    facts
        SHA-256 of the facts that its windows come from; empty without facts.
    checked
        When the cache last confirmed the file, in seconds of the monotonic clock.
    """

    file: CropFile
    content: FaceMapping
    crop: Crop
    facts: str
    checked: float


class FaceService:
    """The zarr faces of a cache folder's crops; `find` returns a file that serves a name (`CropService.file`)."""

    def __init__(self, find: Callable[[CropName], Awaitable[CropFile]], cache: CropCache) -> None:
        self._find, self._cache, self._threads = find, cache, cache.threads
        self._open: OrderedDict[tuple[Split, int], OpenFace] = OrderedDict()
        self._looks = SingleFlight()

    async def face(self, split: Split, crop: int) -> OpenFace:
        """Return the face of the file with all channels.

        A published file never changes, so an open file stays right; but an evicted file is no longer served.

        Raises
        ------
        CropNotCachedError
            If the crop is not cached with all its channels.
        CropCorruptError
            If the file cannot be read as a crop.
        RequestError
            If another program wrote the file, so that it has no zarr face.
        """
        known = self._open.get((split, crop))
        if known is not None and time.monotonic() - known.checked < _RECHECK_S:
            self._open.move_to_end((split, crop))
            return known
        return await self._looks.run((split, crop), lambda: self._look(split, crop))

    async def aclose(self) -> None:
        """Close the files: HDF5 crashes the process at its end if one is still open that another thread opened."""
        await self._looks.aclose()
        while self._open:
            await self._threads.run(self._open.popitem()[1].crop.close)

    async def read(self, face: OpenFace, found: Found) -> bytes:
        """Return the bytes of what ``face.content.find`` found; errors as `FaceMapping.read` raises them."""
        if isinstance(found, bytes):
            return found
        return await self._threads.run(face.content.read, found)

    async def _look(self, split: Split, crop: int) -> OpenFace:
        known = self._open.pop((split, crop), None)
        file = await self._find(CropName(split, crop))
        facts = await self._facts_of(split, crop)
        if known is None or (known.file.sha256, known.facts) != (file.sha256, facts):
            opened = Crop(self._cache.local_path(file))
            known = OpenFace(file, await self._threads.run(FaceMapping, opened), opened, facts, 0.0)
        known.checked = time.monotonic()
        self._open[split, crop] = known
        while len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        return known

    async def _facts_of(self, split: Split, crop: int) -> str:
        try:
            return (await self._find(CropName(split, crop, product=Product.FACTS))).sha256
        except PrismError:  # none, or they cannot be read now
            return ""
