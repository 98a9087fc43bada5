"""Downloads are resumed, checked and shared between processes; a wrong file is never published."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from prismcache.backend import ReceivedBytes
from prismcache.config import Settings
from prismcache.disk import VerifiedFiles, disk_errors, sha256_of, stamp_of, write_atomically
from prismcache.errors import (
    CropCorruptError,
    NoSpaceError,
    PrismError,
    ServiceError,
    ServiceUnreachableError,
    SourceChangedError,
    StorageError,
    StorageUnwritableError,
)
from prismcache.layout import FileName, crop_file_name
from prismcache.remote import download as _download
from prismcache.remote.download import UNUSED, Downloader, Part, prune
from prismcache.remote.http import Connection
from prismcache.remote.retry import Patience
from prismcache.schema import CropFile, Split
from tests.support.fake_service import FakeService

QUICK = Patience(silence=0.3, whole=0.3, base=0.001, cap=0.01)
Change = Callable[[httpx2.Request, httpx2.Response], httpx2.Response]


def ignore(received: int) -> None:
    """Take no report."""


class Changed(httpx2.AsyncBaseTransport):
    """A service whose responses are changed on the way, in turn; after the last change they are right."""

    def __init__(self, service: FakeService, *changes: Change) -> None:
        self._service = service
        self._changes = list(changes)
        self.ranges: list[str | None] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        sent = await self._service.transport.handle_async_request(request)
        response = httpx2.Response(sent.status_code, headers=sent.headers, stream=httpx2.ByteStream(await sent.aread()))
        self.ranges.append(request.headers.get("range"))
        return self._changes.pop(0)(request, response) if self._changes else response


class Cut(httpx2.AsyncByteStream):
    """The first bytes of a body, and then a broken connection."""

    def __init__(self, content: bytes, *, polite: bool = False) -> None:
        self._content = content
        self._polite = polite

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content
        if not self._polite:
            raise httpx2.ReadError("connection reset")


def cut_after(count: int, *, polite: bool = False) -> Change:
    def change(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        headers = [(name, value) for name, value in response.headers.items() if name != "content-length"]
        return httpx2.Response(
            response.status_code, headers=headers, stream=Cut(response.read()[:count], polite=polite)
        )

    return change


def flip(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    content = bytearray(response.read())
    content[-1] ^= 1
    return httpx2.Response(response.status_code, headers=response.headers, stream=httpx2.ByteStream(bytes(content)))


def too_much(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    headers = [(name, value) for name, value in response.headers.items() if name != "content-length"]
    return httpx2.Response(200, headers=headers, stream=httpx2.ByteStream(response.read() + b"more"))


def whole(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    """As a server that knows no ranges."""
    headers = {
        name: value for name, value in response.headers.items() if name not in {"content-range", "content-length"}
    }
    content = whole.path.read_bytes()
    return httpx2.Response(200, headers=headers, stream=httpx2.ByteStream(content))


def refuse(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    raise httpx2.ConnectError("refused")


def other_file(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    response.headers.update({"ETag": '"another"', "X-Prismcache-SHA256": "another"})
    return response


class Scene(NamedTuple):
    service: FakeService
    file: CropFile
    target: Path

    def fetch(self, *changes: Change, report: ReceivedBytes = ignore) -> Changed:
        """Download the file through these changes."""
        transport = Changed(self.service, *changes)

        async def main() -> None:
            connection = Connection(Settings.load({}, url=self.service.url), transport=transport, patience=QUICK)
            downloader = Downloader(connection, VerifiedFiles(self.target.parent / ".notes"), self.target.parent.parent)
            await downloader.fetch(self.file, self.target, self.is_there, report)
            await connection.aclose()

        asyncio.run(main())
        return transport

    async def is_there(self) -> bool:
        return await asyncio.to_thread(self._is_there)

    def _is_there(self) -> bool:
        return self.target.exists() and sha256_of(self.target) == self.file.sha256

    def left(self) -> list[str]:
        """Names of what lies around beside the file."""
        return sorted(
            path.name
            for path in self.target.parent.iterdir()
            if path.name not in {self.target.name, f".{self.target.name}.lock", ".notes"}
        )


@pytest.fixture
def scene(tmp_path):
    with FakeService() as service:
        path = service.cache("instance", 1)
        file = service.lab.find_file(Split.INSTANCE, FileName(1))
        whole.path = path
        yield Scene(service, file, tmp_path / "downloads" / crop_file_name(1))


def test_a_download(scene):
    scene.fetch()
    assert scene._is_there()
    assert scene.left() == []


def test_a_break_is_resumed_where_it_was(scene):
    transport = scene.fetch(cut_after(1000), refuse, cut_after(500, polite=True))
    assert transport.ranges == [None, "bytes=1000-", "bytes=1000-", "bytes=1500-"]
    assert scene._is_there()
    assert scene.left() == []


def test_received_bytes_are_reported_with_those_of_an_earlier_call(scene, monkeypatch):
    monkeypatch.setattr(_download, "CHUNK", 1000)
    told: list[int] = []
    with pytest.raises(ServiceUnreachableError):
        scene.fetch(cut_after(2500), *[refuse] * 10_000)
    scene.fetch(cut_after(3000), report=told.append)
    assert told == sorted(told)
    assert sorted(set(told)) == [2500, 5500, scene.file.size]


def test_a_download_that_begins_again_reports_0_bytes(scene):
    told: list[int] = []
    scene.fetch(flip, report=told.append)
    assert told.count(0) == 2


def test_a_service_that_stays_away_leaves_a_part_for_later(scene):
    with pytest.raises(ServiceUnreachableError):
        scene.fetch(cut_after(1000), *[refuse] * 10_000)
    assert not scene.target.exists()
    assert len(scene.left()) == 1
    assert scene.fetch().ranges == ["bytes=1000-"]
    assert scene._is_there()
    assert scene.left() == []


def test_a_part_with_wrong_bytes_costs_a_second_download(scene):
    scene.target.parent.mkdir()
    (scene.target.parent / f".crop_1.h5.{scene.file.sha256[:16]}.dead.part").write_bytes(b"x" * 1000)
    assert scene.fetch().ranges == ["bytes=1000-", None]
    assert scene._is_there()
    assert scene.left() == []


def test_a_part_that_is_complete_is_only_checked(scene):
    scene.target.parent.mkdir()
    part = scene.target.parent / f".crop_1.h5.{scene.file.sha256[:16]}.dead.part"
    shutil.copy(scene.file.path, part)
    assert scene.fetch().ranges == []
    assert scene._is_there()


def test_a_server_without_ranges_serves_too(scene):
    assert scene.fetch(cut_after(1000), whole).ranges == [None, "bytes=1000-"]
    assert scene._is_there()


def test_damage_once_is_mended(scene):
    scene.fetch(flip)
    assert scene._is_there()


def test_damage_that_stays_is_refused(scene):
    with pytest.raises(CropCorruptError, match="another SHA-256"):
        scene.fetch(*[flip] * 10)
    assert not scene.target.exists()


def test_more_than_the_file_is_cut_off(scene):
    scene.fetch(too_much)
    assert scene._is_there()


def test_a_file_that_changed_on_the_service_is_an_error(scene):
    with pytest.raises(SourceChangedError, match="another file on the service now"):
        scene.fetch(other_file)
    assert scene.left() == []


@pytest.mark.parametrize("etag", [None, '"of-a-proxy"'])
def test_a_proxy_may_remove_or_replace_the_etag(scene, etag):
    def changed(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        headers = {name: value for name, value in response.headers.items() if name != "etag"}
        more = {"etag": etag} if etag else {}
        return httpx2.Response(200, headers=headers | more, stream=httpx2.ByteStream(response.read()))

    scene.fetch(changed)
    assert scene._is_there()


def test_a_web_page_in_place_of_the_file_is_named(scene):
    page = httpx2.Response(200, html="<p>Sign in</p>")
    with pytest.raises(ServiceError, match=r"sent something else than a crop \(text/html"):
        scene.fetch(lambda request, response: page)
    assert scene.left() == []


def test_no_room_is_known_before_the_first_byte(scene, monkeypatch):
    usage = shutil.disk_usage(scene.file.path)
    monkeypatch.setattr(_download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(NoSpaceError, match=r"instance/1 needs 38.* kB, 1\.0 kB are free") as caught:
        scene.fetch()
    assert "PRISMCACHE_DOWNLOADS" in caught.value.remedy
    assert scene.service.requests == []


def test_a_disk_that_fills_up_is_named_and_left_clean(scene, monkeypatch):
    def append(part: Part, data: bytes) -> None:
        part.size += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Part, "append", append)
    with pytest.raises(NoSpaceError):
        scene.fetch()
    assert scene.left() == []


def test_a_file_in_place_of_the_folder_is_a_storage_error(scene):
    scene.target.parent.write_text("a file")
    with pytest.raises(StorageError):
        scene.fetch()


def test_two_that_want_the_same_download_it_once(scene, monkeypatch):
    monkeypatch.setattr(_download, "POLL", 0.01)
    transport = Changed(scene.service)

    async def main() -> None:
        connection = Connection(Settings.load({}, url=scene.service.url), transport=transport, patience=QUICK)
        downloader = Downloader(connection, VerifiedFiles(scene.target.parent / ".notes"), scene.target.parent.parent)
        await asyncio.gather(*(downloader.fetch(scene.file, scene.target, scene.is_there, ignore) for _ in range(5)))
        await connection.aclose()

    asyncio.run(main())
    assert transport.ranges == [None]
    assert scene._is_there()
    assert scene.left() == []


def test_a_download_whose_part_was_taken_over_starts_again(scene, monkeypatch):
    publish = Part.publish

    def lose(part: Part) -> None:
        monkeypatch.setattr(Part, "publish", publish)
        part.path.unlink()
        return publish(part)

    monkeypatch.setattr(Part, "publish", lose)
    assert len(scene.fetch().ranges) == 2
    assert scene._is_there()


def test_a_cancelled_download_leaves_its_part(scene):
    class Stalled(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"x" * (1 << 20)
            began.set()
            await asyncio.sleep(60)

    def stall(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        return httpx2.Response(200, headers={"ETag": response.headers["etag"]}, stream=Stalled())

    async def main() -> None:
        transport = Changed(scene.service, stall)
        connection = Connection(Settings.load({}, url=scene.service.url), transport=transport, patience=QUICK)
        big = scene.file.model_copy(update={"size": 2 << 20})
        call = asyncio.create_task(
            Downloader(connection, VerifiedFiles(scene.target.parent), scene.target.parent).fetch(
                big, scene.target, gone, ignore
            )
        )
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await connection.aclose()

    async def gone() -> bool:
        return False

    began = asyncio.Event()
    asyncio.run(main())
    [part] = scene.left()
    assert part.endswith(".part")


# ---- locks, pruning

HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1], blocking=False)
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_living_process_is_waited_for_and_a_killed_one_is_not(scene, monkeypatch, caplog):
    monkeypatch.setattr(_download, "POLL", 0.01)
    monkeypatch.setattr(_download, "WAITING_IS_SAID", 0.0)
    scene.target.parent.mkdir()
    command = [sys.executable, "-c", HOLDER, str(scene.target.with_name(f".{scene.target.name}.lock"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()

        class KillsWhenSaid(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "waiting for another process" in record.getMessage():
                    holder.kill()

        handler = KillsWhenSaid()
        logging.getLogger("prismcache").addHandler(handler)
        try:
            assert scene.fetch().ranges == [None]
        finally:
            logging.getLogger("prismcache").removeHandler(handler)
    assert caplog.text.count("waiting for another process, which downloads instance/1") == 1
    assert scene._is_there()


def test_parts_of_an_older_version_are_deleted(scene):
    scene.target.parent.mkdir()
    (scene.target.parent / f".crop_1.h5.{'0' * 16}.dead.part").write_bytes(b"x" * 1000)
    assert scene.fetch().ranges == [None]
    assert scene.left() == []


def test_a_download_without_use_for_a_month_is_deleted(tmp_path):
    now = 2e9
    verified = VerifiedFiles(tmp_path / ".notes")
    folder = tmp_path / "lab" / "instance"
    folder.mkdir(parents=True)
    used = {"crop_0.h5": 1.1, "crop_1.h5": 0.9, ".crop_2.h5.aa.bb.part": 1.1, "crop_3.h5": 1.1}
    for name, months in used.items():
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (now - months * UNUSED,) * 2)
    noted = folder / "crop_3.h5"
    verified.remember(noted, stamp_of(noted.stat()), "0" * 64)  # noted now, so used now
    [note] = (tmp_path / ".notes").iterdir()
    os.utime(note, (now, now))
    prune(tmp_path / "lab", verified, now)
    assert sorted(path.name for path in folder.iterdir()) == ["crop_1.h5", "crop_3.h5"]


def test_a_recalled_file_counts_as_used(tmp_path):
    path = tmp_path / "crop_0.h5"
    path.write_bytes(b"x")
    VerifiedFiles(tmp_path / "notes").remember(path, stamp_of(path.stat()), "0" * 64)
    [note] = (tmp_path / "notes").iterdir()
    os.utime(note, (1.0, 1.0))
    later = VerifiedFiles(tmp_path / "notes")
    assert later.last_used(path) == 1.0
    assert later.recall(path, stamp_of(path.stat())) == "0" * 64
    assert later.last_used(path) > 1.0


# ---- the disk


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EACCES, StorageUnwritableError),
        (errno.EROFS, StorageUnwritableError),
        (errno.EIO, StorageError),
    ],
)
def test_an_error_of_the_system_is_a_typed_error(number, kind):
    with pytest.raises(PrismError) as caught, disk_errors("/lab/prism"):
        raise OSError(number, "x")
    assert type(caught.value) is kind
    assert str(caught.value).startswith("/lab/prism: ")


def test_atomic_writing_leaves_nothing_behind(tmp_path):
    (tmp_path / "place").mkdir()
    with pytest.raises(OSError, match="place"):
        write_atomically(tmp_path / "place", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
