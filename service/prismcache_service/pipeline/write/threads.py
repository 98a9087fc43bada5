"""From the event loop into threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


async def run_in(executor: Executor, work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns, or raises, in one of the executor's threads."""
    return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
