"""A worker process's own decisions, without the process."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from prismcache._testing_files import crop_arrays, write_crop
from prismcache.config import Settings
from prismcache.errors import NoSpaceError
from prismcache.layout import FORMAT_VERSION, HDF5_SIGNATURE, FileStamp, Manifest, SourceList
from prismcache.schema import CropFile, Problem, Product, Split
from prismcache.splits import SplitEntry
from prismcache_service.cache import CropCache, CropName
from prismcache_service.engine import CropTask, News
from prismcache_service.engine.local import worker as worker_module
from prismcache_service.engine.local.worker import Outbox, Worker
from prismcache_service.pipeline.bucket.s3 import Sources
from prismcache_service.pipeline.materialize import Materializer, Order

pytestmark = pytest.mark.anyio

NAME = CropName(Split.INSTANCE, 0, product=Product.UNLABELLED)
CONTENT = HDF5_SIGNATURE.ljust(100, b".")


@pytest.mark.parametrize("meanwhile", ["nothing", "replaced", "removed"])
async def test_a_product_is_published_only_if_its_crop_is_still_the_one_that_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    cache, make_product = CropCache(tmp_path), worker_module.make_product
    write_crop(tmp_path, Split.INSTANCE, 0, crop_arrays(Split.INSTANCE, 0, None))

    def make(*arguments: Any, **options: Any) -> tuple[str, int]:
        made = make_product(*arguments, **options)
        if meanwhile == "replaced":
            write_crop(tmp_path, Split.INSTANCE, 0, crop_arrays(Split.INSTANCE, 1, None))
        elif meanwhile == "removed":
            cache.remove(CropName(Split.INSTANCE, 0))
        return made

    monkeypatch.setattr(worker_module, "make_product", make)
    lines = io.BytesIO()
    worker = worker_of(tmp_path, lines, Maker())
    await worker.work(CropTask(NAME, "a1"))
    outcome = News.model_validate_json(lines.getvalue().splitlines()[-1]).outcome
    assert isinstance(outcome, CropFile) is cache.path(NAME).exists() is (meanwhile == "nothing")
    if isinstance(outcome, Problem):
        assert (outcome.code, "changed while unlabelled was made" in outcome.detail) == ("not_cached", True)
    assert list(cache.path(NAME).parent.glob(".*")) == []


class Maker(Materializer):
    """Writes a file, and then fails if it is to."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def tidy(self) -> None:
        """Nothing is left in memory."""

    async def make(self, order: Order, *_: Any, **__: Any) -> tuple[Manifest, SourceList]:
        order.target.write_bytes(CONTENT)
        if self._error is not None:
            raise self._error
        manifest = Manifest(
            format_version=FORMAT_VERSION, split=order.name.split, crop=order.name.crop, channels=(0,), complete=True,
            sha256=hashlib.sha256(CONTENT).hexdigest(), size=len(CONTENT), source="s3://b", endpoint="http://s3",
            stamp=FileStamp(size=len(CONTENT), mtime_ns=0, ctime_ns=0), source_fingerprint="f", missing_chunks=0,
            recipe="test", prismcache_version="1", libraries={}, created_at="",
        )  # fmt: skip
        return manifest, SourceList(source_fingerprint="f", objects=())


class NoSources(Sources):
    """Opens none: `Maker` asks for nothing."""

    async def of(self, entry: SplitEntry) -> Any:
        """Return what stands for any source."""
        return None


def worker_of(root: Path, sent: io.BytesIO, materializer: Materializer) -> Worker:
    settings = Settings.load({}, root=root, memory_limit="64GB")  # this process may hold what other tests needed
    return Worker(settings, Outbox(sent), materializer, NoSources(settings, ThreadPoolExecutor(1)))


async def work(root: Path, error: Exception | None = None) -> CropFile | Problem:
    sent = io.BytesIO()
    worker = worker_of(root, sent, Maker(error))
    worker._cache.prepare(Split.INSTANCE)
    await worker.work(CropTask(CropName(Split.INSTANCE, 0), "a" * 32))
    outcome = News.model_validate_json(sent.getvalue().splitlines()[-1]).outcome
    assert outcome is not None
    return outcome


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EIO, "storage_error"),
        (errno.EDQUOT, "no_space"),
        (errno.ESTALE, "storage_error"),
        (errno.EACCES, "storage_unwritable"),
    ],
)
async def test_what_the_system_refuses_is_a_storage_error_with_path_and_reason(
    tmp_path: Path, number: int, code: str
) -> None:
    outcome = await work(tmp_path, OSError(number, os.strerror(number), "/lab/prism/instance"))
    assert isinstance(outcome, Problem)
    assert (outcome.code, outcome.detail) == (code, f"/lab/prism/instance: {os.strerror(number)}")


@pytest.mark.parametrize("error", [None, NoSpaceError("full")], ids=["published", "failed"])
async def test_a_temporary_file_that_cannot_be_deleted_changes_no_outcome(
    tmp_path: Path, error: Exception | None
) -> None:
    with patch.object(Path, "unlink", side_effect=OSError(errno.EIO, "broken")):
        outcome = await work(tmp_path, error)
    assert isinstance(outcome, CropFile) if error is None else outcome == error.to_problem()
