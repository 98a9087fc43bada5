"""Every source does what a source does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
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


class TestFolderSource(SourceConformance):
    """The tests' own source."""

    @asynccontextmanager
    async def open(self, bucket_dir: Path) -> AsyncIterator[Source]:
        yield FolderSource(bucket_dir / BUCKET / PREFIX)


class TestS3Source(SourceConformance):
    """A real S3 server, behind a proxy that gives it AWS's manners (quoted ETags, If-Match)."""

    @pytest.fixture(autouse=True)
    def _served(self, own_bucket_dir: Path, serve_faulty_s3: Callable[[Path], FaultProxy]) -> None:
        self._endpoint = serve_faulty_s3(own_bucket_dir).endpoint

    @asynccontextmanager
    async def open(self, bucket_dir: Path) -> AsyncIterator[Source]:
        found = Settings.load({}, s3_endpoint_url=self._endpoint)
        # Damage that stays is retried for a while; three times show the same.
        with ThreadPoolExecutor(2) as executor, patch.object(s3, "_READ_ATTEMPTS", 3):
            async with open_s3(found, executor) as source:
                yield source
