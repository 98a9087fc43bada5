"""Small things that the processes of one training share: which crops arrived, and how often each sample was drawn.

They lie in memory without a name, which a process shares with those that it forks or spawns and which is gone with the
last of them, however that ends.
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
_HEADER = struct.Struct("<II")  # length and CRC-32 of what follows


@dataclass(frozen=True)
class Arrival:
    """How a crop's fetching ended: with a path, or with a problem."""

    path: str = ""
    problem: Problem | None = None


class Board:
    """One place for each crop that is awaited, written once by the main process and read by all.

    What is read counts only if its checksum is right, so no lock is needed. Pickles only to a process being spawned.

    Parameters
    ----------
    slots
        Number of places.
    """

    def __init__(self, slots: int) -> None:
        self._memory = RawArray(ctypes.c_uint8, slots * _SLOT_BYTES)

    def post(self, slot: int, arrival: Arrival) -> None:
        """Tell everybody."""
        problem = None if arrival.problem is None else arrival.problem.model_dump(mode="json")
        text = json.dumps({"path": arrival.path, "problem": problem}).encode()
        if len(text) > _SLOT_BYTES - _HEADER.size and arrival.problem is not None:
            brief = arrival.problem.model_copy(update={"detail": arrival.problem.detail[:2000]})
            text = json.dumps({"path": "", "problem": brief.model_dump(mode="json")}).encode()
        view, first = memoryview(self._memory).cast("B"), slot * _SLOT_BYTES
        view[first + _HEADER.size : first + _HEADER.size + len(text)] = text
        view[first : first + _HEADER.size] = _HEADER.pack(len(text), zlib.crc32(text))

    def look(self, slot: int) -> Arrival | None:
        """What was posted; None if nothing yet."""
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
    """How often each sample of a dataset was drawn. A copy that is pickled to elsewhere counts for itself.

    Parameters
    ----------
    counts
        One for each sample.
    """

    def __init__(self, counts: list[int]) -> None:
        self._counts = RawArray(ctypes.c_uint32, counts)

    def __getstate__(self) -> Any:
        return self._counts if is_spawning() else list(self._counts)

    def __setstate__(self, state: Any) -> None:
        self._counts = RawArray(ctypes.c_uint32, state) if isinstance(state, list) else state

    def peek(self, sample: int) -> int:
        """How often it was drawn."""
        return int(self._counts[sample])

    def next(self, sample: int) -> int:
        """How often it was drawn before now."""
        number = self.peek(sample)
        self._counts[sample] = (number + 1) % 2**32
        return number

    def set_all(self, number: int) -> None:
        """Say of all samples that they were drawn so often."""
        self._counts[:] = [number] * len(self._counts)


def is_spawning() -> bool:
    """Whether what is pickled just now goes to a process that multiprocessing starts, so that memory can be shared."""
    return get_spawning_popen() is not None
