"""The threads that the stages work in, and the way from the event loop into them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
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
