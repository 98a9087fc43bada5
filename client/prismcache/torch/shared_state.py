"""State that the processes of one training share: which crops arrived, and how often each sample was drawn.

The state lies in memory without a name. A process shares it with those that it forks or spawns, and it is freed when
the last of them ends, in any way.
"""

from __future__ import annotations

import ctypes
import json
import struct
import zlib
from dataclasses import dataclass
from multiprocessing.context import get_spawning_popen
from multiprocessing.sharedctypes import RawArray
from typing import Any

from prismcache.schema import Problem

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
