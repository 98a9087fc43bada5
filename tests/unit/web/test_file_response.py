"""A file is sent from one descriptor, and it is the file that was described, whatever happens beside it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from prismcache import CropCorruptError, CropNotCachedError
from prismcache.schema import CropFile, Split
from prismcache_service.cache import CropName, DiskThreads
from prismcache_service.web.handlers import files
from prismcache_service.web.handlers.files import FileResponse, headers_of, open_crop
from prismcache_service.web.handlers.ranges import Part

OLD, NEW = b"old" * 1000, b"new!" * 1000
THREADS = DiskThreads()


class _Crops:
    """Describes what lies at `path` as a service does; before each look but the first, `meanwhile` happens."""

    threads = THREADS

    def __init__(self, path: Path, meanwhile: Callable[[int], None] = lambda look: None) -> None:
        self._path, self._meanwhile, self._looks = path, meanwhile, 0

    def local_path(self, file: CropFile) -> Path:
        return Path(file.path)

    async def file(self, wanted: CropName) -> CropFile:
        if self._looks:
            self._meanwhile(self._looks)
        self._looks += 1
        if not self._path.exists():
            raise CropNotCachedError("gone")
        return _describe(self._path)


def _describe(path: Path) -> CropFile:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return CropFile(split=Split.INSTANCE, crop=0, channels=(0,), path=str(path), size=len(content), sha256=digest)


def _replace(path: Path, content: bytes) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(content)
    other.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "crop_0.h5"
    found.write_bytes(OLD)
    return found


def _open(crops: Any) -> tuple[CropFile, bytes]:
    file, opened = asyncio.run(open_crop(crops, CropName(Split.INSTANCE, 0)))
    with opened:
        return file, opened.read()


def _sent(response: FileResponse, then: Callable[[int], None] = lambda sent: None) -> tuple[bytes, list[Any]]:
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)
        then(len(messages))

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(response({"type": "http", "method": "GET"}, receive, send))
    return b"".join(message.get("body", b"") for message in messages), messages


def test_a_file_that_is_replaced_while_it_is_looked_up_is_described_as_what_was_opened(path: Path) -> None:
    def replace_once(look: int) -> None:
        if look == 1:
            _replace(path, NEW)

    file, content = _open(_Crops(path, replace_once))

    assert (file.sha256, content) == (hashlib.sha256(NEW).hexdigest(), NEW)


def test_a_file_that_changes_all_the_time_is_given_up(path: Path) -> None:
    with pytest.raises(CropCorruptError, match="again and again"):
        _open(_Crops(path, lambda look: _replace(path, b"%04d" % look)))


def test_a_file_that_vanishes_is_not_cached(path: Path) -> None:
    with pytest.raises(CropNotCachedError):
        _open(_Crops(path, lambda _: path.unlink(missing_ok=True)))


@pytest.mark.parametrize("what", ["link", "size"])
def test_what_is_no_such_file_is_not_opened(path: Path, what: str) -> None:
    described = _describe(path)

    class Crops:
        threads = THREADS

        def local_path(self, file: CropFile) -> Path:
            return Path(file.path)

        async def file(self, *_: Any) -> CropFile:
            return described

    if what == "link":
        path.rename(path.with_name("target"))
        path.symlink_to("target")
    else:
        path.write_bytes(OLD[:-1])

    with pytest.raises(CropCorruptError):
        _open(Crops())


def test_a_file_that_is_replaced_or_deleted_while_it_is_sent_is_sent_to_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHUNK", 100)
    opened = files._open(ExitStack(), _describe(path), path)
    assert opened is not None
    response = FileResponse(opened, Part(HTTPStatus.OK, 0, len(OLD)), len(OLD), headers_of(_describe(path)), THREADS)

    def disturb(sent: int) -> None:
        if sent == 3:
            _replace(path, NEW)
        if sent == 6:
            path.unlink()

    content, messages = _sent(response, disturb)

    assert content == OLD
    assert max(len(message.get("body", b"")) for message in messages) == 100
    assert opened.closed


def test_a_file_that_is_cut_off_while_it_is_sent_breaks_the_response_off(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHUNK", 100)
    opened = files._open(ExitStack(), _describe(path), path)
    assert opened is not None
    response = FileResponse(opened, Part(HTTPStatus.OK, 0, len(OLD)), len(OLD), {}, THREADS)

    with pytest.raises(CropCorruptError, match="ended at byte"):
        _sent(response, lambda sent: path.write_bytes(b"x") if sent == 2 else None)
    assert opened.closed


def test_a_client_that_takes_nothing_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SEND_TIMEOUT_S", 0.01)
    opened = files._open(ExitStack(), _describe(path), path)
    assert opened is not None
    response = FileResponse(opened, Part(HTTPStatus.OK, 0, len(OLD)), len(OLD), {}, THREADS)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def run() -> None:
        await response({"type": "http", "method": "GET"}, None, send)

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert opened.closed
