"""One process of this machine at a time does a piece of work; only to save work, never needed for what is right."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

RENEW = 5.0
STALE = 45.0
"""Seconds without a renewal, by the watcher's own steady clock, after which a claim counts as abandoned."""


class Claim:
    """A file made with ``O_EXCL`` that its holder writes anew every few seconds.

    Parameters
    ----------
    path
        Of the file.
    clock
        Seconds of a steady clock.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._token = f"{os.getpid()} {uuid.uuid4().hex}"
        self._written_at = 0.0
        self._renewals = 0
        self._seen: tuple[str, float] | None = None

    def acquire(self) -> bool:
        """One try. A holder that was seen not to renew for `STALE` seconds loses the claim.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        if self._create():
            return True
        if not self._is_abandoned():
            return False
        with suppress(FileNotFoundError):
            self._path.unlink()
        self._seen = None
        return self._create()

    def renew(self) -> None:
        """Show that the holder is at work; cheap enough for every chunk."""
        if self._clock() - self._written_at >= RENEW and self._content().startswith(self._token):
            self._renewals += 1
            with suppress(OSError):
                self._path.write_text(f"{self._token} {self._renewals}")
            self._written_at = self._clock()

    def release(self) -> None:
        """Let go of it, if it was not lost meanwhile."""
        with suppress(OSError):
            if self._content().startswith(self._token):
                self._path.unlink()

    def _create(self) -> bool:
        try:
            with self._path.open("x") as file:
                file.write(self._token)
        except (FileExistsError, PermissionError):  # PermissionError: Windows, while the file is being deleted
            if not self._path.parent.is_dir() or not os.access(self._path.parent, os.W_OK):
                raise
            return False
        self._written_at = self._clock()
        return True

    def _is_abandoned(self) -> bool:
        now, content = self._clock(), self._content()
        if self._seen is None or self._seen[0] != content:
            self._seen = (content, now)
        return now - self._seen[1] > STALE

    def _content(self) -> str:
        try:
            return self._path.read_text()
        except OSError:
            return ""
