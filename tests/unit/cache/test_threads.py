"""The cache folder's own threads: a disk that hangs holds up nothing but what waits for it."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Iterator

import pytest

from prismcache.errors import StorageError, StorageUnwritableError
from prismcache_service.cache import DiskThreads, SingleFlight


@pytest.fixture
def threads() -> Iterator[DiskThreads]:
    threads = DiskThreads()
    yield threads
    threads.close()


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """A disk that gives no response until the event is set."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.anyio
async def test_an_operation_that_hangs_is_a_storage_error_at_its_deadline(threads: DiskThreads, hanging) -> None:
    with pytest.raises(StorageError, match=r"no response within 0\.01 s"):
        await threads.run(hanging.wait, seconds=0.01)


@pytest.mark.anyio
async def test_readings_that_fill_their_threads_hold_up_neither_operations_nor_renewals(
    threads: DiskThreads, hanging
) -> None:
    reading = [asyncio.create_task(threads.read(hanging.wait)) for _ in range(20)]
    assert await threads.run(lambda: "listed") == "listed"
    assert await threads.renew(lambda: "renewed") == "renewed"
    assert await asyncio.to_thread(lambda: "elsewhere") == "elsewhere"
    hanging.set()
    assert await asyncio.gather(*reading) == [True] * 20


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["deadline", "cancel", "close"])
async def test_what_nobody_waits_for_any_more_is_undone_once_it_ends(
    threads: DiskThreads, hanging, ending: str
) -> None:
    undone, begun = threading.Event(), threading.Event()

    def operation() -> None:
        begun.set()
        hanging.wait()

    working = asyncio.create_task(threads.run(operation, seconds=0.5 if ending == "deadline" else 60, undo=undone.set))
    assert await asyncio.to_thread(begun.wait, 10)
    if ending != "deadline":
        working.cancel()
    with pytest.raises((StorageError, asyncio.CancelledError)):
        await working
    if ending == "close":
        threads.close()
    assert not undone.is_set()
    hanging.set()
    assert await asyncio.to_thread(undone.wait, 10)


@pytest.mark.anyio
async def test_every_error_of_the_system_is_typed_and_names_the_path(threads: DiskThreads) -> None:
    def fail(number: int) -> None:
        raise OSError(number, "x", "/lab/prism/instance")

    with pytest.raises(StorageUnwritableError, match="/lab/prism/instance: Read-only file system"):
        await threads.run(fail, errno.EROFS)
    with pytest.raises(StorageError, match="/lab/prism/instance: Input/output error"):
        await threads.run(fail, errno.EIO)


@pytest.mark.anyio
async def test_the_same_task_runs_once_and_outlives_a_cancelled_caller() -> None:
    flights, gate, starts = SingleFlight(), asyncio.Event(), 0

    async def work() -> int:
        nonlocal starts
        starts += 1
        await gate.wait()
        return starts

    first, second = (asyncio.create_task(flights.run("key", work)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second == 1
    assert await flights.run("key", work) == 2
