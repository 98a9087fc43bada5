"""Files in the place of a crop that are damaged or unknown: kept for a while, so that a person can look at them."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prismcache.disk import disk_errors, storage_error

_TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class SetAside:
    """A file or folder in the quarantine: its path, the time since when it is there, and its size in bytes."""

    path: Path
    since: datetime
    size: int


class Quarantine:
    """The folder of files that were set aside; each name tells what the file was and since when it is there.

    The folder lies on the cache folder's file system. Methods raise `StorageError` if the system refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, path: Path, label: str, now: datetime | None = None) -> Path | None:
        """Move the file or folder at `path` here; return its new path, or None if nothing was at `path`."""
        refuge = self.folder / f"{label}.{(now or datetime.now(UTC)).strftime(_TIME)}.{uuid.uuid4().hex}"
        try:
            path.rename(refuge)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        return refuge

    def entries(self) -> list[SetAside]:
        """Return all entries, oldest first."""
        found = []
        with disk_errors(self.folder, "PRISMCACHE_ROOT"):
            for path in self.folder.glob("*"):
                with contextlib.suppress(FileNotFoundError):  # deleted while we look
                    found.append(SetAside(path, _since(path), _size(path)))
        return sorted(found, key=lambda entry: (entry.since, entry.path.name))

    def delete(self, entries: Iterable[SetAside]) -> list[SetAside]:
        """Delete entries and return the deleted ones. Entries that the system refuses to delete stay."""
        gone = []
        for entry in entries:
            with contextlib.suppress(OSError):
                _remove(entry.path)
                gone.append(entry)
        return gone

    def expire(self, keep: timedelta, now: datetime | None = None) -> list[SetAside]:
        """Delete the entries that have been here for longer than `keep`."""
        limit = (now or datetime.now(UTC)) - keep
        return self.delete(entry for entry in self.entries() if entry.since < limit)


def _since(path: Path) -> datetime:
    """Return the time in the name, or the time of the last change of a file that a person put here."""
    with contextlib.suppress(ValueError, IndexError):
        return datetime.strptime(path.name.split(".")[-2], _TIME).replace(tzinfo=UTC)
    return datetime.fromtimestamp(path.lstat().st_ctime, UTC)


def _size(path: Path) -> int:
    total = path.lstat().st_size
    for folder, _, names in os.walk(path):  # nothing for a file
        for name in () if path.is_symlink() else names:
            with contextlib.suppress(OSError):
                total += os.lstat(Path(folder, name)).st_size
    return total


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
