"""Memory: how much this process may still use, and what the processes of one training share.

Processes share decoded voxels, which crops arrived, and how often each sample was drawn. Shared memory has no name: a
process shares it with those that it forks or spawns, and it is freed when the last of them ends, in any way.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import weakref
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

from prismcache.errors import MemoryLimitError
from prismcache.numbers import format_bytes
from prismcache.schema import Problem

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


_SLOT_BYTES = 16_384
_HEADER = struct.Struct("<II")  # length in bytes and CRC-32 of the text that follows


@dataclass(frozen=True)
class Arrival:
    """The end of a crop's fetching: `path`, or the `problem` that prevented it."""

    path: str = ""
    problem: Problem | None = None


class Board:
    """One place for each awaited crop, written once by the main process and read by all.

    A reader ignores a place whose checksum is wrong, so no lock is needed. Can be pickled only to a process that is
    being spawned.

    Parameters
    ----------
    slots
        Number of places.
    """

    def __init__(self, slots: int) -> None:
        self._memory = RawArray(ctypes.c_uint8, slots * _SLOT_BYTES)

    def post(self, slot: int, arrival: Arrival) -> None:
        """Write how a crop's fetching ended, for all processes."""
        problem = None if arrival.problem is None else arrival.problem.model_dump(mode="json")
        text = json.dumps({"path": arrival.path, "problem": problem}).encode()
        if len(text) > _SLOT_BYTES - _HEADER.size and arrival.problem is not None:
            brief = arrival.problem.model_copy(update={"detail": arrival.problem.detail[:2000]})
            text = json.dumps({"path": "", "problem": brief.model_dump(mode="json")}).encode()
        view, first = memoryview(self._memory).cast("B"), slot * _SLOT_BYTES
        view[first + _HEADER.size : first + _HEADER.size + len(text)] = text
        view[first : first + _HEADER.size] = _HEADER.pack(len(text), zlib.crc32(text))

    def look(self, slot: int) -> Arrival | None:
        """Return what was posted; None if nothing was posted yet."""
        view, first = memoryview(self._memory).cast("B"), slot * _SLOT_BYTES
        length, checksum = _HEADER.unpack_from(view, first)
        if not 0 < length <= _SLOT_BYTES - _HEADER.size:
            return None
        text = bytes(view[first + _HEADER.size : first + _HEADER.size + length])
        if zlib.crc32(text) != checksum:
            return None
        found = json.loads(text)
        return Arrival(found["path"], found["problem"] and Problem.model_validate(found["problem"]))


class Visits:
    """How often each sample of a dataset was drawn.

    A copy that is pickled to a process being spawned shares the counts; any other copy counts for itself.

    Parameters
    ----------
    counts
        The count of each sample.
    """

    def __init__(self, counts: list[int]) -> None:
        self._counts = RawArray(ctypes.c_uint32, counts)

    def __getstate__(self) -> Any:
        return self._counts if is_spawning() else list(self._counts)

    def __setstate__(self, state: Any) -> None:
        self._counts = RawArray(ctypes.c_uint32, state) if isinstance(state, list) else state

    def peek(self, sample: int) -> int:
        """Return how often a sample was drawn."""
        return int(self._counts[sample])

    def next(self, sample: int) -> int:
        """Return how often a sample was drawn before, and count this time."""
        number = self.peek(sample)
        self._counts[sample] = (number + 1) % 2**32
        return number

    def set_all(self, number: int) -> None:
        """Set the count of all samples."""
        self._counts[:] = [number] * len(self._counts)


def is_spawning() -> bool:
    """Return whether multiprocessing is pickling for a process that it starts, with which memory can be shared."""
    return get_spawning_popen() is not None
