"""What processes that ended in the middle of something have left in the cache folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

from prismcache_service.cache.files import TEMPORARY
from prismcache_service.cache.making_lock import Leases

Adopt = Callable[[Path], bool]
"""Completes the publication that a temporary file belongs to, if it lacked only the last step; False if it did not."""


def sweep(folders: Collection[Path], leases: Leases, adopt: Adopt) -> list[Path]:
    """Delete the temporary files of ended processes, but adopt what can be; answers what was deleted."""
    # Looked for first, and leases second: whoever makes a temporary file has had a lease before.
    left = [path for folder in folders for path in folder.glob(f".*{TEMPORARY}")]
    live = leases.sweep()
    return _clear([path for path in left if not live & set(path.name.split("."))], adopt)


def discard(folders: Collection[Path], token: str, adopt: Adopt) -> list[Path]:
    """The same for the temporary files of one lease's holder, who is known to have ended."""
    return _clear([path for folder in folders for path in folder.glob(f".*.{token}*{TEMPORARY}")], adopt)


def _clear(paths: Collection[Path], adopt: Adopt) -> list[Path]:
    cleared = []
    for path in paths:
        if not adopt(path):
            with contextlib.suppress(OSError):
                path.unlink()
                cleared.append(path)
    return cleared
