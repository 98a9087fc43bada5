"""Files that were found wrong in a crop's place, or lay there unknown: kept for a while for somebody to look at."""

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
    """Something in the quarantine: where, since when, and what it takes in bytes."""

    path: Path
    since: datetime
    size: int


class Quarantine:
    """A folder for what was set aside; each name says what it was and since when it is there.

    Parameters
    ----------
    folder
        Where, on the cache folder's file system.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, path: Path, label: str, now: datetime | None = None) -> Path | None:
        """Move whatever lies at `path` here; return where it is now, or None if nothing was there.

        Raises
        ------
        StorageError
            If the system refuses.
        """
        refuge = self.folder / f"{label}.{(now or datetime.now(UTC)).strftime(_TIME)}.{uuid.uuid4().hex}"
        try:
            path.rename(refuge)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        return refuge

    def entries(self) -> list[SetAside]:
        """Return all that is here, oldest first.

        Raises
        ------
        StorageError
            If the system refuses.
        """
        found = []
        with disk_errors(self.folder, "PRISMCACHE_ROOT"):
            for path in self.folder.glob("*"):
                with contextlib.suppress(FileNotFoundError):  # deleted while we look
                    found.append(SetAside(path, _since(path), _size(path)))
        return sorted(found, key=lambda entry: (entry.since, entry.path.name))

    def delete(self, entries: Iterable[SetAside]) -> list[SetAside]:
        """Delete these for good and return those that are gone. What the system refuses to delete stays."""
        gone = []
        for entry in entries:
            with contextlib.suppress(OSError):
                _remove(entry.path)
                gone.append(entry)
        return gone

    def expire(self, keep: timedelta, now: datetime | None = None) -> list[SetAside]:
        """Delete what has been here for longer than `keep`."""
        limit = (now or datetime.now(UTC)) - keep
        return self.delete(entry for entry in self.entries() if entry.since < limit)


def _since(path: Path) -> datetime:
    """Return the time in the name, or of the last change for what somebody put here by hand."""
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
