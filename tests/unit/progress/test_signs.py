"""Calls without a display of their own say that they are still at work."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prismcache import PrismClient, Split
from prismcache._testing_files import crop_arrays, write_crop
from prismcache.adapters import zarr as zarr_adapter
from prismcache.progress.reporter import signs_of_life
from tests.support.fake_backend import FakeBackend


class Heard(logging.Handler):
    """Waits for signs of life, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._new = threading.Semaphore(0)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._new.release()

    def wait(self) -> bool:
        return self._new.acquire(timeout=20)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    """What is logged; a person's patience is 10 ms here."""
    monkeypatch.setattr("prismcache.progress.reporter.SILENCE_SECONDS", 0.01)
    handler = Heard()
    logging.getLogger("prismcache").addHandler(handler)
    yield handler
    logging.getLogger("prismcache").removeHandler(handler)


def test_the_line_comes_again_until_the_work_ends(heard: Heard) -> None:
    with signs_of_life("reading"):
        assert heard.wait()
        assert heard.wait()
    assert re.fullmatch(r"reading: \d+ s so far", heard.lines[1])


@pytest.mark.parametrize(
    ("method", "arguments", "line"),
    [
        ("catalog", (), "reading the catalog: no response yet from http://127.0.0.1:9, trying for 120 s"),
        ("describe", ("instance", 0), "reading the metadata of instance/0: no response yet from http://127.0.0.1:9"),
        ("verify", (), "reading the cached files"),
        ("remove", ("instance", 0), "deleting cached files"),
    ],
)
def test_a_slow_call_is_not_silent(heard: Heard, method: str, arguments: tuple[Any, ...], line: str) -> None:
    backend = FakeBackend()

    async def slow(*_: object, **__: object) -> Any:
        assert heard.wait()
        return []

    setattr(backend, method, slow)
    with PrismClient(backend=backend, s3_endpoint_url="http://127.0.0.1:9") as client:
        getattr(client, method)(*arguments)
    assert heard.lines[0].startswith(line)


def test_an_export_is_not_silent(heard: Heard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = zarr_adapter._group
    monkeypatch.setattr(zarr_adapter, "_group", lambda folder: heard.wait() and real(folder))
    file = write_crop(tmp_path, Split.INSTANCE, 3, crop_arrays(Split.INSTANCE, 3, None))
    zarr_adapter.to_zarr(file.path, tmp_path / "crop_3.zarr")
    assert heard.lines[0].startswith(f"writing {tmp_path / 'crop_3.zarr'}: ")
