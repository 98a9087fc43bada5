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
from prismcache_service.jobs.observer import Observer
from prismcache_service.pipeline.progress import Report

_log = logging.getLogger(__name__)

Key = tuple[CropName, bool]


@dataclass(frozen=True)
class Wish:
    """One job's wish for one crop that is not being made yet.

    `open_crops` is the number of crops that the job still lacks; `order` is larger for later wishes.
    """

    name: CropName
    strict: bool
    priority: int
    owner: str
    open_crops: int
    order: int


@dataclass(frozen=True)
class Passenger:
    """A job that wants a crop, and the functions that are called with the crop's progress and outcome."""

    job_id: str
    wish: Wish
    on_progress: Report
    on_started: Callable[[], Awaitable[None]]
    on_ended: Callable[[Outcome], Awaitable[None]]


@dataclass
class _Flight:
    """One crop and the jobs that want it; `task` is None while the crop waits."""

    passengers: dict[str, Passenger] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    owner: str = ""
    progress: Progress = field(default_factory=Progress)


class Flights:
    """The crops that wait or are being made.

    Parameters
    ----------
    ensure
        Makes the crops.
    at_once
        How many crops are made at the same time.
    observer
        Counts bytes and outcomes.
    """

    def __init__(self, ensure: EnsureService, at_once: int, observer: Observer) -> None:
        self._ensure = ensure
        self._at_once = at_once
        self._observer = observer
        self._flights: dict[Key, _Flight] = {}

    def count(self) -> tuple[int, int]:
        """Return how many crops wait and how many are being made."""
        running = sum(flight.task is not None for flight in self._flights.values())
        return len(self._flights) - running, running

    async def board(self, passenger: Passenger) -> None:
        """Join the task that makes the crop, or queue the crop."""
        wish = passenger.wish
        flight = self._flights.setdefault((wish.name, wish.strict), _Flight())
        flight.passengers[passenger.job_id] = passenger
        if flight.task is None:
            self._start_next()
        else:
            passenger.on_progress(flight.progress)
            await passenger.on_started()

    async def leave(self, job_id: str, keys: Iterable[Key]) -> None:
        """End a job's wish for these crops; cancel tasks that no other job needs, and wait until they have ended."""
        stopped: list[asyncio.Task[None]] = []
        for key in keys:
            flight = self._flights.get(key)
            if flight is None or job_id not in flight.passengers:
                continue
            del flight.passengers[job_id]
            if not flight.passengers:
                del self._flights[key]
                if flight.task is not None:
                    stopped.append(flight.task)
        for task in stopped:
            task.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)
        self._start_next()

    async def aclose(self) -> None:
        """Cancel all tasks; passengers are not called."""
        flights, self._flights = list(self._flights.values()), {}
        tasks = [flight.task for flight in flights if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_next(self) -> None:
        while self.count()[1] < self._at_once:
            wishes = [p.wish for f in self._flights.values() if f.task is None for p in f.passengers.values()]
            made = Counter(flight.owner for flight in self._flights.values() if flight.task is not None)
            wish = choose(wishes, made)
            if wish is None:
                return
            key = wish.name, wish.strict
            self._flights[key].owner = wish.owner
            self._flights[key].task = asyncio.create_task(self._fly(key, self._flights[key]))

    async def _fly(self, key: Key, flight: _Flight) -> None:
        name, _ = key
        with self._observer.bound(crop=f"{name.split}/{name.crop}", job=",".join(flight.passengers)):
            for passenger in list(flight.passengers.values()):
                await passenger.on_started()
            outcome = await self._outcome(key, flight)
            if isinstance(outcome, CropFile):
                _log.info("cached %s, %d bytes", outcome.path, outcome.size)
            else:
                _log.warning("failed: %s: %s", outcome.code, outcome.detail)
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._start_next()
        for passenger in list(flight.passengers.values()):
            await passenger.on_ended(outcome)

    async def _outcome(self, key: Key, flight: _Flight) -> Outcome:
        name, strict = key
        begin, code = monotonic(), None

        def report(progress: Progress) -> None:
            self._observer.bytes_fetched(max(0, progress.bytes_done - flight.progress.bytes_done))
            flight.progress = progress
            for passenger in flight.passengers.values():
                passenger.on_progress(progress)

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


def choose(wishes: Iterable[Wish], being_made: Mapping[str, int]) -> Wish | None:
    """Return the wish to fulfil next, or None if there is none.

    A higher priority goes first; then the owner with the fewest crops being made, so that a request for all crops does
    not block other owners; then the job that lacks the fewest crops, so that small requests pass large ones; then the
    oldest.

    Parameters
    ----------
    wishes
        The wishes for crops that wait.
    being_made
        How many crops are being made for each owner.
    """

    def rank(wish: Wish) -> tuple[int, int, int, int]:
        return -wish.priority, being_made.get(wish.owner, 0), wish.open_crops, wish.order

    return min(wishes, key=rank, default=None)
