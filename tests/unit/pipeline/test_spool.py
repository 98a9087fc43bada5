"""Fetched objects that are needed again."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prismcache.errors import NoSpaceError, StorageUnwritableError
from prismcache.schema import Split
from prismcache_service.cache import CropCache, CropName
from prismcache_service.pipeline.write.spool import Spool
from tests.support.cache_root import unfinished
from tests.support.crop_files import failing_operation


def test_what_was_put_comes_back_in_any_order_as_often_as_wanted(tmp_path: Path) -> None:
    objects = {f"raw/{i}": os.urandom(1 + 977 * i) for i in range(20)}
    with Spool(tmp_path / ".crop_0.h5.token.tmp") as spool:
        for key, data in objects.items():
            spool.put(key, memoryview(data))
        for key in [*reversed(objects), *objects]:
            assert bytes(spool.get(key)) == objects[key]


def test_threads_do_not_mix_up_their_objects(tmp_path: Path) -> None:
    def use(number: int) -> bool:
        data = bytes([number]) * (10_000 + number)
        spool.put(str(number), data)
        return bytes(spool.get(str(number))) == data

    with Spool(tmp_path / ".crop_0.h5.token.tmp") as spool, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(200)))
        assert all(bytes(spool.get(str(n))) == bytes([n]) * (10_000 + n) for n in range(200))


def test_it_has_no_name_in_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    with Spool(tmp_path / ".crop_0.h5.token.tmp") as spool:
        spool.put("a", b"x" * 1000)
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_where_the_file_system_needs_a_name_the_sweep_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CropCache(tmp_path)
    cache.prepare(Split.INSTANCE)
    target = cache.temporary(CropName(Split.INSTANCE, 0), "ended")
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "_O_TMPFILE_WORKS", False)
        patch.setattr(os, "unlink", lambda _: None)  # as if the process had been killed before
        Spool(target).close()
    assert [name.startswith("instance/.crop_0.h5.ended.") for name in unfinished(tmp_path)] == [True]
    cache.sweep()
    assert unfinished(tmp_path) == []


def test_an_empty_object_is_an_object(tmp_path: Path) -> None:
    with Spool(tmp_path / ".crop_0.h5.token.tmp") as spool:
        spool.put("a", b"")
        assert bytes(spool.get("a")) == b""


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(StorageUnwritableError, match="no-such-folder"):
        Spool(tmp_path / "no-such-folder" / ".crop_0.h5.token.tmp")


def test_a_full_disk_is_no_space(tmp_path: Path) -> None:
    with (
        Spool(tmp_path / ".crop_0.h5.token.tmp") as spool,
        failing_operation(1),
        pytest.raises(NoSpaceError, match=str(tmp_path)),
    ):
        spool.put("a", b"x" * 1000)
