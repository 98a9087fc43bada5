"""Who may fetch, and when."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache_service.pipeline.bucket.in_flight import InFlight


@given(
    requests=st.integers(1, 4),
    limit=st.integers(1, 20),
    sizes=st.lists(st.integers(0, 30), max_size=12),
    random=st.randoms(use_true_random=False),
)
def test_never_more_than_allowed_and_in_the_order_of_asking(
    requests: int, limit: int, sizes: list[int], random
) -> None:
    begun: list[int] = []

    async def main() -> None:
        in_flight, running = InFlight(requests, limit), {}

        async def fetch(number: int) -> None:
            async with in_flight.fetching(sizes[number]):
                begun.append(number)
                running[number] = asyncio.Event()
                assert len(running) <= requests
                assert sum(sizes[each] for each in running) <= limit or len(running) == 1
                await running[number].wait()
                del running[number]

        tasks = [asyncio.create_task(fetch(number)) for number in range(len(sizes))]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            waiting = [ended for ended in running.values() if not ended.is_set()]
            if waiting and random.random() < 0.5:
                random.choice(waiting).set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert begun == list(range(len(sizes)))


@pytest.mark.parametrize("waits_first", [True, False])
def test_one_that_gives_up_leaves_its_place(waits_first: bool) -> None:
    async def main() -> None:
        in_flight, ended = InFlight(1), asyncio.Event()

        async def fetch() -> str:
            async with in_flight.fetching(1):
                await ended.wait()
            return "fetched"

        tasks = [asyncio.create_task(fetch()) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[1 if waits_first else 0].cancel()
        ended.set()
        said = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(each) for each in said].count("fetched") == 2

    asyncio.run(main())
