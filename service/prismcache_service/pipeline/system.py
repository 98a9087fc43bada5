"""What only the system can be asked: memory of this process, functions of the C library."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path
from typing import Any


def resident_bytes() -> int:
    """Memory that this process has resident now; an estimate where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 120_000_000
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_memory_back() -> None:
    """Let the system have what is free here: what a crop left would count against the limit of the next one.

    glibc keeps freed buffers until it is asked (and workers have it keep more of them than usual, see
    `engine.local.WORKER_ENVIRONMENT`); other C libraries give large ones back by themselves.
    """
    gc.collect()
    call_if_there("malloc_trim", 0)


def call_if_there(name: str, *arguments: Any) -> None:
    """Call a function of the C library; nothing happens where it has none of that name."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
