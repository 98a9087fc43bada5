"""The interface of an engine, which makes crops in worker processes and goes on when one of them dies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from prismcache.schema import CropFile, Problem
from prismcache_service.cache import CropName
from prismcache_service.pipeline.progress import Report

MAX_STRIKES = 3
"""How many workers a crop may kill before that crop fails; other crops go on."""

Outcome: TypeAlias = CropFile | Problem
"""The published file, or the problem that prevented it."""


@dataclass(frozen=True)
class CropTask:
    """An order to make and publish one file; the names of its temporary files hold `token`, the making lock's token."""

    name: CropName
    token: str
    strict: bool = False


class Engine(ABC):
    """Runs as many tasks at the same time as it has workers; further tasks wait."""

    name: ClassVar[str]

    @abstractmethod
    async def run(self, task: CropTask, report: Report) -> Outcome:
        """Make the crop and publish it.

        Cancelling stops the work and deletes the unfinished files.

        Parameters
        ----------
        task
            The crop to make.
        report
            Called with the progress, on the event loop, at most ten times a second.

        Returns
        -------
        Outcome
            The file, or a `Problem`; its code is ``worker_failed`` if the crop killed `MAX_STRIKES` workers.
        """

    @abstractmethod
    async def check(self) -> None:
        """Raise a `PrismError` if no task can be run now."""

    @abstractmethod
    async def aclose(self) -> None:
        """End all workers."""
