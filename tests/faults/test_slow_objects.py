"""Objects and disks that are late: what is needed twice is waited for, never read before it is there."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prismcache import PrismClient
from prismcache.errors import StorageError
from prismcache_service.pipeline.write import spool as spool_module
from prismcache_service.pipeline.write.spool import Spool
from tests.support.cache_root import Lab, object_key, tiny_spec, unfinished
from tests.support.codecs import Compressor
from tests.support.faults import Delay
from tests.support.oracle import assert_crop_file_equals_oracle

SPECS = [tiny_spec(0), tiny_spec(1).with_layout(compressor=Compressor("none"))]


@pytest.mark.parametrize("spec", SPECS, ids=["compressed", "plain"])
def test_an_object_that_is_late_and_needed_twice(lab: Lab, spec: Any) -> None:
    """Channels 0 and 2 are not neighbours, so the chunk that holds both is visited twice."""
    lab.proxy.add(Delay(1.0), key=object_key(spec, "raw/0.1.1.0"))
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", spec.crop, channels=[0, 2], progress=False)
    assert_crop_file_equals_oracle(lab.cached(spec, "00_02"), lab.source(spec), [0, 2])
    assert set(lab.fetched(spec).values()) == {1}


@pytest.mark.parametrize("late", ["labels/0.0.0", "raw/0.0.0.0", "raw/0.1.1.1"])
def test_an_object_that_is_late(lab: Lab, late: str) -> None:
    lab.proxy.add(Delay(0.5), key=object_key(SPECS[0], late))
    with PrismClient(settings=lab.settings()) as client:
        client.ensure("instance", 0, progress=False)
    assert_crop_file_equals_oracle(lab.cached(SPECS[0]), lab.source(SPECS[0]))
    assert unfinished(lab.root) == []


def test_waiting_for_ones_own_bandwidth_limit_is_not_the_servers_delay(lab: Lab) -> None:
    """At the limit the objects take seconds, each of which may take half a second."""
    spec = SPECS[1]
    with PrismClient(settings=lab.settings(s3_bandwidth_limit=100_000, workers=1, s3_object_timeout=0.5)) as client:
        began = time.monotonic()
        client.ensure("instance", spec.crop, progress=False)
        took = time.monotonic() - began
    size = sum(
        (lab.source(spec) / key).stat().st_size for key in lab.fetched(spec) if (lab.source(spec) / key).is_file()
    )
    assert size > 300_000
    assert took > size / 100_000 - 1  # after a second's worth at once
    assert_crop_file_equals_oracle(lab.cached(spec), lab.source(spec))


def test_the_spool_gives_nothing_that_is_not_written_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes its time: a hole in the file would read as zeros, which an uncompressed chunk may hold."""
    asked, may_write = threading.Event(), threading.Event()

    class SlowSystem:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def pwrite(self, fd: int, data: Any, offset: int) -> int:
            if bytes(data[:1]) == b"s":
                asked.set()
                assert may_write.wait(10)
            return os.pwrite(fd, data, offset)

    monkeypatch.setattr(spool_module, "os", SlowSystem())
    with Spool(tmp_path) as spool, ThreadPoolExecutor(1) as thread:
        writing = thread.submit(spool.put, "slow", b"s" * 100)
        assert asked.wait(10)
        spool.put("other", b"o" * 100)  # the file now reaches past the other's place
        with pytest.raises(KeyError):
            spool.get("slow")
        may_write.set()
        writing.result()
        assert bytes(spool.get("slow")) == b"s" * 100
        assert bytes(spool.get("other")) == b"o" * 100


def test_a_spool_that_lost_its_bytes_is_an_error(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.put("a", b"x" * 100)
        os.ftruncate(spool._file.fileno(), 50)
        with pytest.raises(StorageError, match="50 of 100"):
            spool.get("a")
