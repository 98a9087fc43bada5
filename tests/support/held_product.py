"""Holding a worker that makes a product just before it publishes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Self

from prismcache.layout import manifest_path
from prismcache.schema import Split
from tests.support.processes import eventually


class HeldProduct:
    """Holds whoever makes a product of instance crop 0 just before it publishes: it then reads the crop's manifest.

    Until the end of the ``with`` block the manifest is a named pipe, which makes its reader wait.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._place = root, root / manifest_path(Split.INSTANCE, 0)
        self._content = self._place.read_bytes()
        self._held = -1

    def __enter__(self) -> Self:
        self._place.unlink()
        os.mkfifo(self._place)
        return self

    def __exit__(self, *_: object) -> None:
        new = self._place.with_suffix(".new")
        new.write_bytes(self._content)
        new.replace(self._place)
        if self._held >= 0:
            _feed(self._held, self._content)

    def wait(self) -> None:
        """Wait until a worker is held; those that read before they begin are let through."""
        eventually(self._is_held, "a worker has made the product")

    def _is_held(self) -> bool:
        try:
            pipe = os.open(self._place, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            return False
        if list(self._root.glob("instance/.*.tmp")):
            self._held = pipe
            return True
        new = self._place.with_suffix(".new")  # the next reader gets a pipe of its own
        os.mkfifo(new)
        new.replace(self._place)
        _feed(pipe, self._content)
        return False


def _feed(pipe: int, content: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # its reader was killed
        os.write(pipe, content)
    os.close(pipe)
