"""What is counted is stored once, whatever fails in between, and however many services share a store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from prismcache.errors import StorageError
from prismcache.schema import Usage
from prismcache_service.jobs import History, Observer
from prismcache_service.store import Figures, MemoryJobStore

pytestmark = pytest.mark.anyio

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Store(MemoryJobStore):
    """Stores the row and then fails, as a database does whose connection breaks at the commit."""

    fails = False

    async def put_figures(self, row_id, figures, forget_before):
        await super().put_figures(row_id, figures, forget_before)
        if self.fails:
            raise StorageError("the connection broke")


class Scene:
    """Services on one store, with a clock that the test sets."""

    def __init__(self) -> None:
        self.store, self.now = Store(), NOON

    def service(self) -> tuple[Observer, History]:
        observer = Observer()

        async def usage() -> Usage:
            return Usage(
                files=1, used_bytes=1000 + observer.fetched_bytes, reserved_bytes=0, max_bytes=None, min_free_bytes=0,
                free_bytes=0, total_bytes=0,
            )  # fmt: skip

        return observer, History(self.store, observer, usage, lambda: self.now)

    async def figures(self) -> list[Figures]:
        return await self.store.figures(NOON - MINUTE, 300)


async def test_counts_go_to_the_interval_in_which_they_were_made():
    scene = Scene()
    observer, history = scene.service()
    observer.crops_found(hits=3, misses=1)
    observer.bytes_fetched(10)
    await history.record()
    observer.bytes_fetched(5)
    scene.now += MINUTE
    await history.record()
    scene.now += 5 * MINUTE
    observer.crops_found(hits=1, misses=0)
    seconds, figures = await history.figures(1)
    assert seconds == 300
    assert figures == [Figures(NOON, 15, 3, 1, 1015), Figures(NOON + 5 * MINUTE, 0, 1, 0, 1015)]
    seconds, figures = await history.figures(90)
    assert seconds == 90 * 300
    assert [(row.fetched_bytes, row.hits, row.misses) for row in figures] == [(15, 4, 1)]


async def test_services_on_one_store_and_a_restarted_one_add_up():
    scene = Scene()
    for count in (1, 20, 300):
        observer, history = scene.service()
        observer.bytes_fetched(count)
        await history.record()
        await history.record()
    assert await scene.figures() == [Figures(NOON, 321, 0, 0, 1300)]


async def test_a_write_whose_outcome_is_unknown_counts_once():
    scene = Scene()
    observer, history = scene.service()
    observer.bytes_fetched(7)
    scene.store.fails = True
    with pytest.raises(StorageError):
        await history.record()
    scene.store.fails, scene.now = False, NOON + 6 * MINUTE
    observer.bytes_fetched(1)
    await history.record()
    observer.bytes_fetched(2)
    await history.record()
    assert [row.fetched_bytes for row in await scene.figures()] == [8, 2]


async def test_a_clock_that_is_set_back_loses_nothing():
    scene = Scene()
    observer, history = scene.service()
    for now in (NOON, NOON + 60 * MINUTE, NOON):
        scene.now = now
        observer.bytes_fetched(1)
        await history.record()
    assert [row.fetched_bytes for row in await scene.figures()] == [2, 1]
