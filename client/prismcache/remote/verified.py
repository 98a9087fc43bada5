"""Which files of this machine were read and found right, remembered so that a warm ensure does not read them again."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from prismcache.disk import write_atomically
from prismcache.layout import FileStamp


class Reading(BaseModel):
    """What the content of `path` was when the system said `stamp` of it."""

    path: str
    stamp: FileStamp
    sha256: str


class VerifiedFiles:
    """One small JSON file for each reading: processes never write over each other's, and none can be half there.

    Never needed for what is right, only to save reading; so a folder that cannot be written is no error.

    Parameters
    ----------
    folder
        Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Reading] = {}

    def recall(self, path: Path, stamp: FileStamp) -> str | None:
        """The SHA-256 that `path` was found to have, if the system still says the same of it."""
        reading = self._known.get(str(path)) or self._read(path)
        if reading is None or reading.path != str(path) or reading.stamp != stamp:
            self._known.pop(str(path), None)
            return None
        self._known[str(path)] = reading
        return reading.sha256

    def remember(self, path: Path, stamp: FileStamp, sha256: str) -> None:
        """Note what `path` was found to hold. `stamp` must have been the same before and after it was read."""
        reading = self._known[str(path)] = Reading(path=str(path), stamp=stamp, sha256=sha256)
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._place(path), reading.model_dump_json().encode())

    def _read(self, path: Path) -> Reading | None:
        try:
            return Reading.model_validate_json(self._place(path).read_bytes())
        except (OSError, ValueError):
            return None

    def _place(self, path: Path) -> Path:
        return self._folder / f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:32]}.json"
