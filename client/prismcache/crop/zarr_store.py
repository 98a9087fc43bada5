"""Stores over `ZarrFace` for both zarr libraries. Needs zarr (``prismcache[service]`` brings zarr 3)."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from typing import Any

from prismcache.crop.chunks import Span
from prismcache.crop.made_chunks import Made
from prismcache.crop.voxels import OpenCrop
from prismcache.crop.zarr_face import ZarrFace
from prismcache.errors import CropCorruptError, MissingExtraError, RequestError, StorageError

Found = bytes | Span | Made
"""The bytes of a key, or where or of what they are made."""

_READ_ONLY = "the zarr store of a cached crop is read only"
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class FaceMapping(MutableMapping[str, Any]):
    """The keys and bytes of a crop's zarr hierarchy, as zarr 2 takes a store; refuses to be changed.

    It may be pickled; the process that unpickles it opens the file for itself.

    Parameters
    ----------
    crop
        A `prismcache.Crop`.

    Raises
    ------
    PrismError
        As `ZarrFace` raises them.
    """

    def __init__(self, crop: OpenCrop) -> None:
        self._crop = crop
        self._face = ZarrFace(crop)
        try:
            self._fd = os.open(crop.path, _FLAGS)
        except OSError as error:
            raise StorageError(f"{crop.path} cannot be opened: {error.strerror}") from error

    def __del__(self) -> None:
        if (fd := getattr(self, "_fd", -1)) >= 0:
            with suppress(OSError):  # of a file that was only read nothing can be lost
                os.close(fd)

    def __reduce__(self) -> tuple[type[FaceMapping], tuple[OpenCrop]]:
        return type(self), (self._crop,)

    def find(self, key: str) -> Found | None:
        """Return the bytes of a key, or where or of what they are made; None for an unknown key. No I/O."""
        return self._face.get(key)

    def read(self, found: Found) -> bytes:
        """Return the bytes of what `find` found.

        Raises
        ------
        StorageError
            If the file cannot be read.
        CropCorruptError
            If the file is shorter than it was, or a chunk cannot be inflated.
        """
        if isinstance(found, Made):
            return found.make([self._read(span) if span else None for span in found.spans])
        return self._read(found) if isinstance(found, Span) else found

    def __getitem__(self, key: str) -> Any:
        found = self.find(key)
        if found is None:
            raise KeyError(key)
        return self.read(found)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._face)

    def __len__(self) -> int:
        return sum(1 for _ in self._face)

    def __setitem__(self, key: str, value: bytes) -> None:
        raise RequestError(f"{_READ_ONLY}: {key!r} cannot be written")

    def __delitem__(self, key: str) -> None:
        raise RequestError(f"{_READ_ONLY}: {key!r} cannot be deleted")

    def _read(self, span: Span) -> bytes:
        try:
            found = os.pread(self._fd, span.size, span.offset)
        except OSError as error:
            raise StorageError(f"{self._crop.path} cannot be read: {error.strerror}") from error
        if len(found) != span.size:
            raise CropCorruptError(f"{self._crop.path} ends at byte {span.offset + len(found)}, within a chunk")
        return found


class FaceBuffers(FaceMapping):
    """A `FaceMapping` whose values are zarr 3's buffers."""

    def __getitem__(self, key: str) -> Any:
        from zarr.core.buffer import default_buffer_prototype

        return default_buffer_prototype().buffer.from_bytes(super().__getitem__(key))


def open_store(crop: OpenCrop) -> Any:
    """Return a read-only store of the installed zarr library over a crop.

    Raises
    ------
    MissingExtraError
        If zarr is not installed.
    PrismError
        As `ZarrFace` raises them.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError(
            "a zarr store needs zarr, which is not installed", remedy='pip install "prismcache[service]"'
        ) from error
    if zarr.__version__.startswith("2."):
        return FaceMapping(crop)
    from zarr.storage import MemoryStore

    return MemoryStore(FaceBuffers(crop), read_only=True)
