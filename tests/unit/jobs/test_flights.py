"""One task a crop, however many want it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from prismcache.errors import SourceUnreachableError
from prismcache.schema import CropFile, Progress, Split
from prismcache_service.cache import CropName
from prismcache_service.jobs.flights import Flights, Outcome, Passenger
from prismcache_service.jobs.observer import NoObserver
from prismcache_service.jobs.schedule import Wish


@dataclass
class Maker:
    """Stands in for `EnsureService`: makes a crop when it is told to."""

    begun: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    results: dict[int, asyncio.Future[CropFile]] = field(default_factory=dict)
    reports: dict[int, Callable[[Progress], None]] = field(default_factory=dict)

    async def ensure(self, name: CropName, report: Callable[[Progress], None], *, strict: bool = False) -> CropFile:
        self.begun.append(name.crop)
        self.reports[name.crop] = report
        self.results[name.crop] = asyncio.get_running_loop().create_future()
        try:
            return await self.results[name.crop]
        except asyncio.CancelledError:
            self.cancelled.append(name.crop)
            raise


@dataclass
class Traveller:
    """A job that wants a crop, and what it was told."""

    job: str
    crop: int
    owner: str = "ada"
    started: int = 0
    progress: list[Progress] = field(default_factory=list)
    ended: asyncio.Future[Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def passenger(self) -> Passenger:
        async def on_started() -> None:
            self.started += 1

        async def on_ended(outcome: Outcome) -> None:
            self.ended.set_result(outcome)

        wish = Wish(CropName(Split.INSTANCE, self.crop), False, 0, self.owner, 1, self.crop)
        return Passenger(self.job, wish, self.progress.append, on_started, on_ended)

    def key(self) -> tuple[CropName, bool]:
        return CropName(Split.INSTANCE, self.crop), False


def made(crop: int) -> CropFile:
    return CropFile(split=Split.INSTANCE, crop=crop, channels=(0,), path="/x", size=1, sha256="0" * 64)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(story: Callable[[Maker, Flights], object], at_once: int = 2) -> None:
    async def scene() -> None:
        maker = Maker()
        flights = Flights(maker, at_once, NoObserver())  # type: ignore[arg-type]  # the only method that flights call
        await story(maker, flights)  # type: ignore[misc]  # an async function
        await flights.aclose()

    asyncio.run(scene())


def test_two_jobs_share_the_making_its_progress_and_its_end() -> None:
    async def story(maker: Maker, flights: Flights) -> None:
        first, second = Traveller("a", 0), Traveller("b", 0)
        await flights.board(first.passenger())
        await settle()
        maker.reports[0](Progress(objects_done=1, objects_total=2, bytes_done=10, bytes_total=20))
        await flights.board(second.passenger())
        assert second.progress == [Progress(objects_done=1, objects_total=2, bytes_done=10, bytes_total=20)]
        maker.results[0].set_result(made(0))
        assert await first.ended == await second.ended == made(0)
        assert (first.started, second.started) == (1, 1)
        assert maker.begun == [0]

    run(story)


def test_no_more_than_so_many_are_made_at_once() -> None:
    async def story(maker: Maker, flights: Flights) -> None:
        travellers = [Traveller("a", crop) for crop in range(4)]
        for traveller in travellers:
            await flights.board(traveller.passenger())
        await settle()
        assert maker.begun == [0, 1]
        assert flights.count() == (2, 2)
        maker.results[1].set_result(made(1))
        await travellers[1].ended
        await settle()
        assert maker.begun == [0, 1, 2]

    run(story)


def test_a_failure_reaches_everybody_as_its_problem() -> None:
    async def story(maker: Maker, flights: Flights) -> None:
        travellers = [Traveller(job, 0) for job in "abc"]
        for traveller in travellers:
            await flights.board(traveller.passenger())
        await settle()
        maker.results[0].set_exception(SourceUnreachableError("no answer"))
        for traveller in travellers:
            assert await traveller.ended == SourceUnreachableError("no answer").to_problem()
        assert flights.count() == (0, 0)

    run(story)


def test_what_nobody_foresaw_ends_the_crop_too() -> None:
    async def story(maker: Maker, flights: Flights) -> None:
        traveller = Traveller("a", 0)
        await flights.board(traveller.passenger())
        await settle()
        maker.results[0].set_exception(ZeroDivisionError("by zero"))
        outcome = await traveller.ended
        assert not isinstance(outcome, CropFile)
        assert "ZeroDivisionError" in outcome.detail

    run(story)


def test_the_last_to_leave_stops_the_making_and_frees_its_place() -> None:
    async def story(maker: Maker, flights: Flights) -> None:
        first, second, third = Traveller("a", 0), Traveller("b", 0), Traveller("b", 1)
        for traveller in (first, second, third):
            await flights.board(traveller.passenger())
        await settle()
        await flights.leave("a", [first.key()])
        assert maker.cancelled == []
        await flights.leave("b", [second.key()])
        assert maker.cancelled == [0]
        await settle()
        assert maker.begun == [0, 1]
        assert not first.ended.done()

    run(story, at_once=1)


def test_leaving_what_is_not_wanted_changes_nothing() -> None:
    async def story(maker: Maker, flights: Flights) -> None:
        await flights.board(Traveller("a", 0).passenger())
        await settle()
        await flights.leave("b", [Traveller("b", 0).key(), Traveller("b", 7).key()])
        assert maker.cancelled == []
        assert flights.count() == (0, 1)

    run(story)


@pytest.mark.parametrize("at_once", [1, 3])
def test_closing_stops_everything_without_a_word(at_once: int) -> None:
    async def story(maker: Maker, flights: Flights) -> None:
        travellers = [Traveller("a", crop) for crop in range(3)]
        for traveller in travellers:
            await flights.board(traveller.passenger())
        await settle()
        await flights.aclose()
        assert sorted(maker.cancelled) == list(range(at_once))
        assert not any(traveller.ended.done() for traveller in travellers)

    run(story, at_once)
