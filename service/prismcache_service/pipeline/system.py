"""Threads and memory of a worker process, and functions of the C library."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Threads:
    """The executors of a crop.

    Attributes
    ----------
    decode
        Threads that decode, relabel and deflate.
    hdf5
        A single thread: the only one that calls HDF5; fetched labels are spooled there, too.
    """

    decode: Executor
    hdf5: Executor


async def run_in(executor: Executor, work: Callable[..., T], *arguments: Any) -> T:
    """Run `work` in one of the executor's threads; return what it returns, raise what it raises."""
    return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; an estimate where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 120_000_000
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_memory_back() -> None:
    """Return free memory to the system: what a crop left would count against the limit of the next one.

    glibc keeps freed buffers until it is asked (and workers have it keep more of them than usual, see
    `engine.local.WORKER_ENVIRONMENT`); other C libraries return large ones by themselves.
    """
    gc.collect()
    call_if_there("malloc_trim", 0)


def call_if_there(name: str, *arguments: Any) -> None:
    """Call a function of the C library if the library has it."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
