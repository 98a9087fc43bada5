"""A `Source` over a local folder: what a bucket is, without a server."""

from __future__ import annotations

import hashlib
from pathlib import Path

from prismcache.errors import SourceCorruptError
from prismcache.layout import SourceObject
from prismcache_service.pipeline.bucket.source import Source, md5_of, plain_md5


class FolderSource(Source):
    """Crops' folders below `root`; ETags are MD5 digests, as S3's are."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return self._root.as_uri()

    @property
    def endpoint(self) -> str:
        return "this machine"

    async def list_objects(self, folder: str) -> dict[str, SourceObject]:
        base = self._root / folder
        files = sorted(path for path in base.rglob("*") if path.is_file())
        return {key: self._item(key, path) for path in files for key in [path.relative_to(base).as_posix()]}

    async def list_folders(self, folder: str) -> list[str]:
        base = self._root / folder
        return sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []

    async def read(self, folder: str, item: SourceObject) -> memoryview:
        try:
            data = (self._root / folder / item.key).read_bytes()
        except OSError as error:
            raise SourceCorruptError(f"object {item.key!r} was listed, but: {error.strerror}") from error
        if len(data) != item.size:
            raise SourceCorruptError(f"object {item.key!r} has {len(data)} bytes, its listing says {item.size}")
        if (listed := plain_md5(item.etag)) is not None and md5_of(memoryview(data)) != listed:
            raise SourceCorruptError(f"object {item.key!r} has another MD5 than its listing")
        return memoryview(data)

    @staticmethod
    def _item(key: str, path: Path) -> SourceObject:
        data = path.read_bytes()
        return SourceObject(key=key, size=len(data), etag=hashlib.md5(data, usedforsecurity=False).hexdigest())
