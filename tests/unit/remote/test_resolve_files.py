"""A resolver with real folders: mounts that show the file, another file, half of it, or a link that leaves them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from prismcache import disk as _disk
from prismcache.backend import ReceivedBytes
from prismcache.layout import HDF5_SIGNATURE, FileStamp
from prismcache.remote import resolve
from prismcache.remote.resolve import Resolver, VerifiedFiles
from prismcache.schema import CropFile, Split

CONTENT = HDF5_SIGNATURE + b"voxels" * 1000
NAME = Path("instance", "crop_5.h5")
FILE = CropFile(
    split=Split.INSTANCE,
    crop=5,
    channels=(0,),
    path="/srv/prism/instance/crop_5.h5",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
needs_links = pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")


class Machine:
    """A mount, downloads, and a service that sends the right file."""

    def __init__(self, folder: Path) -> None:
        self.mount, self.downloads, self.notes = folder / "mount", folder / "downloads", folder / "notes"
        self.fetched: list[Path] = []
        (self.mount / "instance").mkdir(parents=True)

    def show(self, content: bytes = CONTENT) -> Path:
        """Have the mount show a file."""
        (self.mount / NAME).write_bytes(content)
        return self.mount / NAME

    async def _fetch(self, file: CropFile, target: Path, report: ReceivedBytes) -> None:
        await asyncio.to_thread(self._write, target)

    def _write(self, target: Path) -> None:
        self.fetched.append(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(CONTENT)

    def path(self, *, mounted: bool = True, grace: tuple[float, ...] = ()) -> Path:
        """What a fresh process finds."""
        mount = self.mount if mounted else None
        resolver = Resolver(mount, self.downloads, VerifiedFiles(self.notes), self._fetch, grace=grace)
        return asyncio.run(resolver.path(FILE, print))

    def known(self, *files: CropFile, mounted: bool = True) -> list[tuple[CropFile, Path]]:
        """What a fresh process knows without reading."""
        mount = self.mount if mounted else None
        return asyncio.run(Resolver(mount, self.downloads, VerifiedFiles(self.notes), self._fetch).known(files))

    @property
    def downloaded(self) -> Path:
        return self.downloads / NAME


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Which files were read in full."""
    read: list[Path] = []

    def sha256_of(path: Path, stop=lambda: False) -> str:
        read.append(path)
        return _disk.sha256_of(path, stop)

    monkeypatch.setattr(resolve, "sha256_of", sha256_of)
    return read


def test_the_mount_shows_it(machine):
    machine.show()
    assert machine.path() == machine.mount / NAME
    assert machine.fetched == []


def test_it_is_read_once_on_a_machine(machine, readings):
    shown = machine.show()
    assert [machine.path() for _ in range(3)] == [shown] * 3
    assert readings == [shown]
    os.utime(shown, ns=(1, 1))
    machine.path()
    assert readings == [shown, shown]


@pytest.mark.parametrize("mounted", [True, False])
def test_a_file_that_was_read_is_known_until_it_changes(machine, readings, mounted):
    shown = machine.show() if mounted else machine.downloaded
    strange = FILE.model_copy(update={"path": "/srv/prism/instance/crop_6.h5"})
    assert machine.known(FILE, mounted=mounted) == []
    machine.path(mounted=mounted)
    machine.path(mounted=mounted)  # a download is read when it is looked at for the first time
    count = len(readings)

    assert machine.known(strange, FILE, mounted=mounted) == [(FILE, shown)]
    shown.write_bytes(CONTENT)
    assert machine.known(FILE, mounted=mounted) == []
    assert len(readings) == count


def test_notes_that_cannot_be_written_or_read_cost_only_time(machine, readings):
    shown = machine.show()
    machine.notes.write_text("in the way")
    assert [machine.path(), machine.path()] == [shown, shown]
    machine.notes.unlink()
    machine.path()
    for note in machine.notes.iterdir():
        note.write_text("{")
    assert machine.path() == shown
    assert len(readings) == 4


@pytest.mark.parametrize(
    "content",
    [b"", CONTENT[:-1], CONTENT + b"x", b"X" * len(CONTENT), CONTENT[:-1] + b"X"],
    ids=["empty", "truncated", "longer", "foreign", "stale"],
)
def test_another_file_on_the_mount_is_not_used(machine, content, caplog):
    shown = machine.show(content)
    assert machine.path() == machine.downloaded
    assert shown.read_bytes() == content
    assert f"{shown} is not the service's file" in caplog.text
    assert machine.path() == machine.downloaded
    assert len(machine.fetched) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_an_error_that_passes_is_no_reason_to_download(machine, number):
    machine.show()
    real, errors = Path.open, [OSError(number, os.strerror(number))] * 2

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == machine.mount / NAME and errors:
            raise errors.pop()
        return real(path, *arguments, **options)

    with patch.object(Path, "open", refuse):
        assert machine.path() == machine.mount / NAME
    assert (machine.fetched, errors) == ([], [])


def test_no_mount_means_download(machine):
    machine.show()
    assert machine.path(mounted=False) == machine.downloaded


def test_a_mount_that_shows_nothing_means_download(machine):
    assert machine.path() == machine.downloaded


def test_a_folder_in_its_place_is_not_used(machine):
    (machine.mount / NAME).mkdir()
    assert machine.path() == machine.downloaded


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_its_place_does_not_hang(machine):
    os.mkfifo(machine.mount / NAME)
    assert machine.path() == machine.downloaded


@needs_links
def test_a_link_that_leaves_the_mount_is_refused(machine, tmp_path):
    outside = tmp_path / "crop_5.h5"
    outside.write_bytes(CONTENT)
    (machine.mount / NAME).symlink_to(outside)
    assert machine.path() == machine.downloaded


@needs_links
def test_a_linked_folder_that_leaves_the_mount_is_refused(machine, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / NAME.name).write_bytes(CONTENT)
    (machine.mount / "instance").rmdir()
    (machine.mount / "instance").symlink_to(tmp_path / "outside")
    assert machine.path() == machine.downloaded


@needs_links
def test_links_in_a_circle_are_no_error(machine):
    (machine.mount / NAME).symlink_to(machine.mount / NAME)
    assert machine.path() == machine.downloaded


@needs_links
def test_a_mount_point_may_be_a_link_itself(machine, tmp_path):
    machine.show()
    (tmp_path / "link").symlink_to(machine.mount)
    machine.mount = tmp_path / "link"
    assert machine.path() == tmp_path / "link" / NAME


def test_a_file_that_the_mount_shows_late_is_waited_for(machine, monkeypatch):
    looks = iter(range(10))
    see = resolve.look

    def look(folder, path):
        if folder == machine.mount and next(looks) == 1:
            machine.show()
        return see(folder, path)

    monkeypatch.setattr(resolve, "look", look)
    assert machine.path(grace=(0.01, 0.01)) == machine.mount / NAME


def test_a_damaged_download_is_fetched_again(machine):
    machine.path(mounted=False)
    machine.downloaded.write_bytes(CONTENT[:-1] + b"X")
    assert machine.path(mounted=False) == machine.downloaded
    assert len(machine.fetched) == 2
    assert machine.downloaded.read_bytes() == CONTENT


def test_a_file_that_changes_while_it_is_read_is_not_used(machine, monkeypatch):
    shown = machine.show()

    def sha256_of(path: Path, stop: object) -> str:
        found = _disk.sha256_of(path)
        path.write_bytes(CONTENT[:-1] + b"X")
        os.utime(path, ns=(7, 7))
        return found

    monkeypatch.setattr(resolve, "sha256_of", sha256_of)
    assert machine.path() == machine.downloaded
    assert VerifiedFiles(machine.notes).recall(shown, FileStamp(size=1, mtime_ns=0, ctime_ns=0)) is None


def test_reading_stops_on_request(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * (3 << 20))
    with pytest.raises(_disk.StoppedError):
        _disk.sha256_of(tmp_path / "file", lambda: True)


def test_a_cancelled_call_stops_its_reading(machine, monkeypatch):
    machine.show()
    stopped: list[bool] = []

    def sha256_of(path, stop) -> str:
        started.set()
        while not stop():
            pass
        stopped.append(True)
        raise _disk.StoppedError

    async def main() -> None:
        resolver = Resolver(machine.mount, machine.downloads, VerifiedFiles(machine.notes), machine._fetch, grace=())
        call = asyncio.create_task(resolver.path(FILE, print))
        await asyncio.to_thread(started.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    import threading

    started = threading.Event()
    monkeypatch.setattr(resolve, "sha256_of", sha256_of)
    asyncio.run(main())  # which waits for its threads
    assert stopped == [True]
