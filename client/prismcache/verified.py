"""Notes on files of this machine that were read and found right."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from pydantic import BaseModel

from prismcache.disk import write_atomically
from prismcache.layout import FileStamp


class Reading(BaseModel):
    """The SHA-256 of `path`'s content when the file system reported `stamp` for it."""

    path: str
    stamp: FileStamp
    sha256: str


class VerifiedFiles:
    """Remembers which files of this machine were read and found right, so that a warm ensure does not read them again.

    Each reading is a small JSON file of its own, so processes do not overwrite each other's. The notes only save
    reading; a folder that cannot be written is no error.

    Parameters
    ----------
    folder
        Holds the notes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Reading] = {}

    def recall(self, path: Path, stamp: FileStamp) -> str | None:
        """Return the SHA-256 that `path` was found to have, if the file system still reports the same stamp."""
        reading = self._known.get(str(path)) or self._read(path)
        if reading is None or reading.path != str(path) or reading.stamp != stamp:
            self._known.pop(str(path), None)
            return None
        self._known[str(path)] = reading
        return reading.sha256

    def remember(self, path: Path, stamp: FileStamp, sha256: str) -> None:
        """Note the content of `path`. `stamp` must have been the same before and after the file was read."""
        reading = self._known[str(path)] = Reading(path=str(path), stamp=stamp, sha256=sha256)
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._note(path), reading.model_dump_json().encode())

    def last_used(self, path: Path) -> float:
        """Return when `path` was last recalled by a process that had not used it before, in seconds since the epoch."""
        with contextlib.suppress(OSError):
            return self._note(path).stat().st_mtime
        return 0.0

    def forget(self, path: Path) -> None:
        """Delete the note on `path`."""
        self._known.pop(str(path), None)
        with contextlib.suppress(OSError):
            self._note(path).unlink()

    def _read(self, path: Path) -> Reading | None:
        note = self._note(path)
        try:
            reading = Reading.model_validate_json(note.read_bytes())
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):
            os.utime(note)  # the file is in use: see `last_used`
        return reading

    def _note(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:32]}.json"
