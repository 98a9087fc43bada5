"""Each crop is made by one task, however many jobs want the crop; the jobs share its progress and its outcome."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from time import monotonic

from prismcache.errors import PrismError
from prismcache.schema import CropFile, Progress
from prismcache_service.cache import CropName
from prismcache_service.crops import EnsureService
from prismcache_service.engine import Outcome
from prismcache_service.jobs.history import Observer
from prismcache_service.jobs.live import LiveJob

_log = logging.getLogger(__name__)

Key = tuple[CropName, bool]


@dataclass(frozen=True)
class Wish:
    """One job's wish for one crop.

    `open_crops` is the number of crops that the job lacked when the wish was made; `order` is larger for later wishes.
    """

    job: LiveJob
    crop: int
    open_crops: int
    order: int

    @property
    def key(self) -> Key:
        """What is made: the file, and whether absent chunks are refused."""
        return self.job.name(self.crop), self.job.request.strict


@dataclass
class _Flight:
    """One crop and the wishes for it, by job; `task` is None while the crop waits."""

    wishes: dict[str, Wish] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    owner: str = ""
    progress: Progress = field(default_factory=Progress)


class Flights:
    """The crops that wait or are being made.

    `on_started` and `on_ended` are called with each job and crop when the crop's making begins and, with its outcome,
    when it ends.
    """

    def __init__(
        self,
        ensure: EnsureService,
        at_once: int,
        observer: Observer,
        on_started: Callable[[LiveJob, int], Awaitable[None]],
        on_ended: Callable[[LiveJob, int, Outcome], Awaitable[None]],
    ) -> None:
        self._ensure, self._at_once, self._observer = ensure, at_once, observer
        self._on_started, self._on_ended = on_started, on_ended
        self._flights: dict[Key, _Flight] = {}

    def count(self) -> tuple[int, int]:
        """Return how many crops wait and how many are being made."""
        running = sum(flight.task is not None for flight in self._flights.values())
        return len(self._flights) - running, running

    async def board(self, wish: Wish) -> None:
        """Join the task that makes the crop, or queue the crop."""
        flight = self._flights.setdefault(wish.key, _Flight())
        flight.wishes[wish.job.id] = wish
        if flight.task is None:
            self._start_next()
        else:
            wish.job.progress(wish.crop, flight.progress)
            await self._on_started(wish.job, wish.crop)

    async def leave(self, job: LiveJob) -> None:
        """End a job's wishes; cancel tasks that no other job needs, and wait until they have ended."""
        stopped: list[asyncio.Task[None]] = []
        for key, flight in list(self._flights.items()):
            if flight.wishes.pop(job.id, None) is not None and not flight.wishes:
                del self._flights[key]
                if flight.task is not None:
                    stopped.append(flight.task)
        await _cancel(stopped)
        self._start_next()

    async def aclose(self) -> None:
        """Cancel all tasks; `on_ended` is not called."""
        flights, self._flights = list(self._flights.values()), {}
        await _cancel([flight.task for flight in flights if flight.task is not None])

    def _start_next(self) -> None:
        while self.count()[1] < self._at_once:
            wishes = [wish for f in self._flights.values() if f.task is None for wish in f.wishes.values()]
            made = Counter(flight.owner for flight in self._flights.values() if flight.task is not None)
            wish = choose(wishes, made)
            if wish is None:
                return
            flight = self._flights[wish.key]
            flight.owner = wish.job.owner
            flight.task = asyncio.create_task(self._fly(wish.key, flight))

    async def _fly(self, key: Key, flight: _Flight) -> None:
        name, _ = key
        with self._observer.bound(crop=f"{name.split}/{name.crop}", job=",".join(flight.wishes)):
            for wish in list(flight.wishes.values()):
                await self._on_started(wish.job, wish.crop)
            outcome = await self._outcome(key, flight)
            if isinstance(outcome, CropFile):
                _log.info("cached %s, %d bytes", outcome.path, outcome.size)
            else:
                _log.warning("failed: %s: %s", outcome.code, outcome.detail)
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._start_next()
        for wish in list(flight.wishes.values()):
            await self._on_ended(wish.job, wish.crop, outcome)

    async def _outcome(self, key: Key, flight: _Flight) -> Outcome:
        name, strict = key
        begin, code = monotonic(), None

        def report(progress: Progress) -> None:
            self._observer.bytes_fetched(max(0, progress.bytes_done - flight.progress.bytes_done))
            flight.progress = progress
            for wish in flight.wishes.values():
                wish.job.progress(wish.crop, progress)

        try:
            outcome = await self._ensure.ensure(name, report, strict=strict)
            code = None if isinstance(outcome, CropFile) else outcome.code
            return outcome
        except PrismError as error:
            code = error.code
            return error.to_problem()
        except asyncio.CancelledError:
            code = "cancelled"
            raise
        except Exception as error:  # noqa: BLE001 - a job must end after an unexpected error too
            code = PrismError.code
            return PrismError(f"{name.folder}: {type(error).__name__}: {error}").to_problem()
        finally:
            self._observer.task_ended(monotonic() - begin, code)


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


def choose(wishes: Iterable[Wish], being_made: Mapping[str, int]) -> Wish | None:
    """Return the wish to fulfil next, or None without wishes; `being_made` counts the running crops of each owner.

    A higher priority goes first; then the owner with the fewest crops being made, so that a request for all crops does
    not block other owners; then the job that lacks the fewest crops, so that small requests pass large ones; then the
    oldest.
    """

    def rank(wish: Wish) -> tuple[int, int, int, int]:
        return -wish.job.request.priority, being_made.get(wish.job.owner, 0), wish.open_crops, wish.order

    return min(wishes, key=rank, default=None)
