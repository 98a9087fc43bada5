"""When the next crop begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from prismcache.schema import Progress
from prismcache_service.engine.local.engine import Stagger

pytestmark = pytest.mark.anyio


def at(percent: int) -> Progress:
    return Progress(objects_done=0, objects_total=9, bytes_done=percent, bytes_total=100)


class Scene:
    """Crops that were asked for; each one that has begun can be moved on by hand."""

    def __init__(self, crops: int, patience: float = 30.0) -> None:
        self.stagger = Stagger(crops, patience)
        self.begun: list[Callable[[Progress], None]] = []
        self.arrived: asyncio.Queue[None] = asyncio.Queue()
        self.heard: list[Progress] = []
        self.making: list[asyncio.Task[None]] = []

    def ask(self) -> None:
        self.making.append(asyncio.create_task(self._make()))

    async def _make(self) -> None:
        async with self.stagger.begin(self.heard.append) as report:
            self.begun.append(report)
            self.arrived.put_nowait(None)
            await asyncio.Event().wait()

    async def number_begun(self) -> int:
        for _ in range(20):
            await asyncio.sleep(0)
        return len(self.begun)

    async def end(self, number: int) -> None:
        self.making[number].cancel()
        await asyncio.gather(self.making[number], return_exceptions=True)


@pytest.mark.parametrize(("crops", "enough"), [(2, 50), (4, 25), (1, 100)])
async def test_the_next_begins_once_the_one_before_has_its_share(crops: int, enough: int) -> None:
    scene = Scene(crops)
    scene.ask()
    scene.ask()
    assert await scene.number_begun() == 1
    scene.begun[0](at(enough - 1))
    assert await scene.number_begun() == 1
    scene.begun[0](at(enough))
    assert await scene.number_begun() == 2
    assert scene.heard == [at(enough - 1), at(enough)]
    await asyncio.gather(*map(scene.end, range(2)))


async def test_the_next_begins_once_the_one_before_has_ended() -> None:
    scene = Scene(2)
    scene.ask()
    scene.ask()
    assert await scene.number_begun() == 1
    await scene.end(0)
    assert await scene.number_begun() == 2
    await scene.end(1)


async def test_one_without_news_keeps_nobody_waiting() -> None:
    scene = Scene(2, patience=0.05)
    scene.ask()
    scene.ask()
    async with asyncio.timeout(10):
        for _ in range(2):
            await scene.arrived.get()
    assert len(scene.begun) == 2
    await asyncio.gather(*map(scene.end, range(2)))


async def test_one_that_no_longer_waits_lets_the_others_pass() -> None:
    scene = Scene(2)
    for _ in range(3):
        scene.ask()
    assert await scene.number_begun() == 1
    await scene.end(1)
    scene.begun[0](at(50))
    assert await scene.number_begun() == 2
    await asyncio.gather(*map(scene.end, (0, 2)))
