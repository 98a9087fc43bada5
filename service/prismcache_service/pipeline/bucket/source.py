"""The interface of a source of crops: folders of immutable objects that are listed before they are read."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable

from prismcache.layout import SourceObject

_PLAIN_MD5 = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Source(ABC):
    """Crops' objects, by folder. All methods raise only subclasses of `prismcache.errors.SourceError`."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the folders lie, e.g. ``s3://e11bio-prism/ls/models/training_data``."""

    @property
    @abstractmethod
    def endpoint(self) -> str:
        """The server's URL or name, for messages and manifests."""

    @abstractmethod
    async def list_objects(self, folder: str) -> dict[str, SourceObject]:
        """Return every object below `folder`, by key relative to `folder`; empty if the folder does not exist."""

    @abstractmethod
    async def list_folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly below `folder`."""

    @abstractmethod
    async def read(self, folder: str, item: SourceObject) -> memoryview:
        """Read one listed object, verify it and return its bytes.

        Raises
        ------
        SourceCorruptError
            If the object cannot be read with the listed length and digest.
        """

    async def read_document(self, folder: str, item: SourceObject) -> bytes:
        """Read one small listed object, verify it and return it; raises as `read` does."""
        return bytes(await self.read(folder, item))


def bare_etag(etag: str) -> str:
    """Return an ETag without quotes; a weak one (RFC 9110, 8.8.3) stays as it is."""
    return etag if etag.startswith("W/") else etag.strip('"')


def crop_of_folder(name: str) -> int | None:
    """Return the number in a crop's folder name, ``crop_7.zarr``; None for other names."""
    digits = name.removeprefix("crop_").removesuffix(".zarr")
    is_number = digits.isascii() and digits.isdigit() and digits == str(int(digits))  # crop_007.zarr is not crop 7
    return int(digits) if is_number and name == f"crop_{digits}.zarr" else None


def plain_md5(etag: str) -> str | None:
    """Return the MD5 (hex) that an ETag is, or None for one that cannot be an MD5 of the body (multipart, weak)."""
    bare = etag.strip('"').lower()
    return bare if _PLAIN_MD5.fullmatch(bare) else None


def md5_of(data: memoryview) -> str:
    """Return the MD5 (hex) of a body; hashlib releases the GIL."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def fingerprint(objects: Iterable[SourceObject]) -> str:
    """Return the SHA-256 (hex) of keys, sizes and ETags, which is equal for equal content of a crop's folder."""
    digest = hashlib.sha256()
    for item in sorted(objects, key=lambda item: item.key):
        digest.update(f"{item.key}\0{item.size}\0{item.etag}\n".encode())
    return digest.hexdigest()
