"""Where crops are made: the interface of an engine, and its messages. Other rooms import from here.

An engine makes crops in worker processes (`local`: of this machine; `dask`: of a cluster), and goes on when one of them
dies. The factory alone imports an engine itself, when the settings name it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from pydantic import BaseModel

from prismcache.schema import CropFile, Problem, Progress
from prismcache.splits import SplitEntry
from prismcache_service.cache import CropName
from prismcache_service.pipeline import Report

MAX_STRIKES = 3
"""How many workers a crop may kill before that crop fails; other crops go on."""

Outcome: TypeAlias = CropFile | Problem
"""The published file, or the problem that prevented it."""


class News(BaseModel):
    """Worker to engine, at least once a second: the progress, the outcome, or neither, which shows that it lives."""

    progress: Progress | None = None
    outcome: CropFile | Problem | None = None


@dataclass(frozen=True)
class CropTask:
    """Engine to worker: make this file; the names of its temporary files hold `token`, the making lock's token.

    `entry` says what the split is; None is the published one, of which every worker knows.
    """

    name: CropName
    token: str
    strict: bool = False
    entry: SplitEntry | None = None


class Engine(ABC):
    """Runs as many tasks at the same time as it has workers; further tasks wait."""

    name: ClassVar[str]

    @abstractmethod
    async def run(self, task: CropTask, report: Report) -> Outcome:
        """Make the crop and publish it.

        Cancelling stops the work and deletes the unfinished files.

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
