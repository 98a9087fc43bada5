"""Every source does what a source does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from prismcache.config import Settings
from prismcache_service.pipeline.bucket import s3
from prismcache_service.pipeline.bucket.s3 import open_s3
from prismcache_service.pipeline.bucket.source import Source
from tests.conformance.source import SourceConformance
from tests.support.crops import BUCKET, PREFIX
from tests.support.faults import FaultProxy
from tests.support.folder_source import FolderSource
from tests.support.moto_s3 import MotoServer
from tests.support.s3 import S3Server


class TestFolderSource(SourceConformance):
    """The tests' own source."""

    @asynccontextmanager
    async def open(self, bucket_dir: Path) -> AsyncIterator[Source]:
        yield FolderSource(bucket_dir / BUCKET / PREFIX)


class S3Conformance(SourceConformance):
    """Through S3, from `_endpoint`."""

    _endpoint: str

    @asynccontextmanager
    async def open(self, bucket_dir: Path) -> AsyncIterator[Source]:
        found = Settings.load({}, s3_endpoint_url=self._endpoint)
        # Damage that stays is retried for a while; three times show the same.
        with ThreadPoolExecutor(2) as executor, patch.object(s3, "_READ_ATTEMPTS", 3):
            async with open_s3(found, executor) as source:
                yield source


class TestS3Source(S3Conformance):
    """rclone's server, behind a proxy that gives it AWS's manners (quoted ETags, If-Match)."""

    @pytest.fixture(autouse=True)
    def _served(self, own_bucket_dir: Path, serve_faulty_s3: Callable[[Path], FaultProxy]) -> None:
        self._endpoint = serve_faulty_s3(own_bucket_dir).endpoint


class TestPlainRclone(S3Conformance):
    """rclone's server as it is."""

    @pytest.fixture(autouse=True)
    def _served(self, own_bucket_dir: Path, serve_s3: Callable[[Path], S3Server]) -> None:
        self._endpoint = serve_s3(own_bucket_dir).endpoint


class TestMoto(S3Conformance):
    """moto's server, which has nothing in common with rclone's."""

    @pytest.fixture(scope="class")
    @classmethod
    def moto(cls, bucket_dir: Path) -> Iterator[MotoServer]:
        with MotoServer(bucket_dir) as server:
            yield server

    @pytest.fixture(autouse=True)
    def _served(self, moto: MotoServer, bucket_dir: Path, own_bucket_dir: Path) -> Iterator[None]:
        self._moto, self._own, self._endpoint = moto, own_bucket_dir / BUCKET, moto.endpoint
        self._changed: set[str] = set()
        yield
        for key in self._changed:  # filling a server with hundreds of objects takes seconds
            before = bucket_dir / BUCKET / key
            moto.put(BUCKET, key, before.read_bytes() if before.exists() else None)

    def put(self, path: Path, content: bytes | None) -> None:
        super().put(path, content)
        key = path.relative_to(self._own).as_posix()
        self._changed.add(key)
        self._moto.put(BUCKET, key, content)
