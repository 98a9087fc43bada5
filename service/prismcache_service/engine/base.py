"""The interface of an engine: something that makes one crop at a time, somewhere, and survives what it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from prismcache.schema import CropFile
from prismcache_service.cache.cache import CropName
from prismcache_service.pipeline.progress import Report

MAX_STRIKES = 3
"""How many workers a crop may kill before it fails, alone."""


@dataclass(frozen=True)
class CropTask:
    """Make and publish one file. `token` is that of the caller's lease; it marks everything unfinished."""

    name: CropName
    token: str
    strict: bool = False


class Engine(ABC):
    """Runs tasks, as many at once as it has workers; further ones wait their turn."""

    name: ClassVar[str]

    @abstractmethod
    async def run(self, task: CropTask, report: Report) -> CropFile:
        """Make the crop and publish it; `report` hears of progress on the event loop, at most ten times a second.

        Cancelling stops the work and removes what is unfinished.

        Raises
        ------
        PrismError
            Why the crop cannot be made; `WorkerError` if it killed `MAX_STRIKES` workers.
        """

    @abstractmethod
    async def check(self) -> None:
        """See that tasks can be run; raises `PrismError` if not."""

    @abstractmethod
    async def aclose(self) -> None:
        """End all workers."""
