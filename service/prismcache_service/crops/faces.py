"""Zarr faces of cached crops, kept open between requests: a viewer asks for hundreds of chunks of one crop."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prismcache.crop import Crop
from prismcache.crop.zarr_store import FaceMapping
from prismcache.schema import CropFile, Split

_MAX_OPEN = 32  # files; each costs a descriptor and 16 bytes a chunk
_RECHECK_S = 1.0  # how long an open face is served without a look at the cache


@dataclass(slots=True)
class OpenFace:
    """A face of one cached file.

    Attributes
    ----------
    file
        The file that the face shows.
    content
        Keys and bytes. Closed when the last request that reads it has ended.
    checked
        When the cache last confirmed the file, in seconds of the monotonic clock.
    """

    file: CropFile
    content: FaceMapping
    checked: float


class FaceService:
    """The zarr faces of a cache folder's crops.

    Parameters
    ----------
    find
        Returns the file of a crop with these channels (None: all), or raises `CropNotCachedError`.
    local_path
        Returns where this machine has a file.
    """

    def __init__(
        self,
        find: Callable[[Split, int, Sequence[int] | None], Awaitable[CropFile]],
        local_path: Callable[[CropFile], Path],
    ) -> None:
        self._find, self._local_path = find, local_path
        self._open: OrderedDict[tuple[Split, int], OpenFace] = OrderedDict()
        self._lock = asyncio.Lock()

    async def face(self, split: Split, crop: int) -> OpenFace:
        """Return the face of the file with all channels.

        A published file never changes, so an open one stays right; but one that was evicted is no longer served.

        Raises
        ------
        CropNotCachedError
            If the crop is not cached with all its channels.
        CropCorruptError
            If the file cannot be read as a crop.
        RequestError
            If another program wrote the file, so that it has no zarr face.
        """
        key = split, crop
        async with self._lock:
            known = self._open.get(key)
            if known is not None and time.monotonic() - known.checked < _RECHECK_S:
                self._open.move_to_end(key)
                return known
            self._open.pop(key, None)
            file = await self._find(split, crop, None)
            if known is None or known.file.sha256 != file.sha256:
                content = await asyncio.to_thread(_open, self._local_path(file))
                known = OpenFace(file, content, 0.0)
            known.checked = time.monotonic()
            self._open[key] = known
            while len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
            return known


def _open(path: Path) -> FaceMapping:
    return FaceMapping(Crop(path))
