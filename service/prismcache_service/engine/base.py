"""The interface of an engine: something that makes crops somewhere, and survives the death of its workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from prismcache.schema import CropFile, Problem
from prismcache_service.cache import CropName
from prismcache_service.pipeline.progress import Report

MAX_STRIKES = 3
"""How many workers a crop may kill before it fails, alone."""

Outcome: TypeAlias = CropFile | Problem
"""The published file, or why there is none."""


@dataclass(frozen=True)
class CropTask:
    """Make and publish one file. `token` is that of the caller's making lock; it marks every unfinished file."""

    name: CropName
    token: str
    strict: bool = False


class Engine(ABC):
    """Runs tasks, as many at the same time as it has workers; further tasks wait."""

    name: ClassVar[str]

    @abstractmethod
    async def run(self, task: CropTask, report: Report) -> Outcome:
        """Make the crop and publish it.

        Cancelling stops the work and removes what is unfinished.

        Parameters
        ----------
        task
            What to make.
        report
            Called with the progress on the event loop, at most ten times a second.

        Returns
        -------
        Outcome
            The file, or a `Problem`; ``worker_failed`` if the crop killed `MAX_STRIKES` workers.
        """

    @abstractmethod
    async def check(self) -> None:
        """Raise `PrismError` if no task can be run now."""

    @abstractmethod
    async def aclose(self) -> None:
        """End all workers."""
