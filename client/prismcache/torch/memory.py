"""Memory: how much this process may still use, and memory that it shares with processes it forks or spawns."""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prismcache.errors import MemoryLimitError
from prismcache.numbers import format_bytes

_SHARE = 0.8  # of the memory that is available


def check_memory(needed: int, limit: int | None) -> None:
    """Check that decoded crops fit into memory.

    Parameters
    ----------
    needed
        Bytes of the decoded crops.
    limit
        Bytes that they may take; None is 80 % of the memory that the system, or the container, has available.

    Raises
    ------
    MemoryLimitError
        If they do not fit; the message gives both numbers.
    """
    available = available_memory()
    room = limit if limit is not None else None if available is None else int(_SHARE * available)
    if room is not None and needed > room:
        raise MemoryLimitError(
            f'cache="ram" needs {format_bytes(needed)} for the decoded crops; {format_bytes(room)} are allowed',
            remedy='Take fewer crops or channels, cache="mmap", or raise cache_limit.',
        )


def available_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that this process may still use, limited by its container or batch job; None if unknown.

    Parameters
    ----------
    proc, groups
        The folders where the kernel describes the system and the control groups.
    """
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = (proc / "meminfo").read_text().splitlines()
        found.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            number, controllers, place = line.split(":", 2)
            if number == "0":
                found += _left_in(groups, place, ("memory.max", "memory.current", ""))
            elif "memory" in controllers.split(","):
                v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
                found += _left_in(groups / "memory", place, v1)
    return min(found, default=None)


def _left_in(top: Path, place: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Iterate over the bytes that a control group, and each one around it, may still take.

    Cached files count as free, since the kernel drops them.
    """
    limit, used, prefix = names
    folder = top / place.strip("/")
    for group in (folder, *folder.parents):
        with suppress(OSError, ValueError):  # "max" is not a number
            most, now = (int((group / name).read_text()) for name in (limit, used))
            kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            yield most - now + sum(int(kinds.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
        if group == top:
            return


class MemoryFile:
    """Memory that processes share, all 0 at first. Linux only. Can be pickled only to a process that is being spawned.

    The memory has no name, so it is freed when the last of the processes ends, in any way. It does not lie in
    /dev/shm, which may be small (64 MB in a container) and which DataLoader's workers need for their batches.

    Parameters
    ----------
    size
        Size in bytes.

    Attributes
    ----------
    map
        The memory.
    """

    def __init__(self, size: int) -> None:
        descriptor = os.memfd_create("prismcache")
        os.ftruncate(descriptor, size)
        self._map(descriptor, size)

    def _map(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size = descriptor, size
        weakref.finalize(self, os.close, descriptor)
        self.map = mmap.mmap(descriptor, size)

    def __getstate__(self) -> Any:
        from multiprocessing.reduction import DupFd  # Windows has none

        return DupFd(self._descriptor), self._size

    def __setstate__(self, state: Any) -> None:
        self._map(state[0].detach(), state[1])
