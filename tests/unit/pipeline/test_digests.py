"""Bodies are compared with their listing several at a time, and each answers for itself."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from prismcache.errors import SourceCorruptError
from prismcache.layout import SourceObject
from prismcache_service.pipeline.bucket import digests
from prismcache_service.pipeline.bucket.digests import DigestChecks
from prismcache_service.pipeline.bucket.md5 import LANES

pytestmark = pytest.mark.anyio

BODIES = [memoryview(f"body {number}".encode() * 100) for number in range(3 * LANES)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


class Gate:
    """Keeps the executor's only thread busy until it is opened."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._open = threading.Event()
        executor.submit(self._open.wait)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """How many were digested at a time."""
    sizes = []
    of_each = digests.md5_of_each

    def counted(buffers: list[memoryview]) -> list[str]:
        sizes.append(len(buffers))
        return of_each(buffers)

    monkeypatch.setattr(digests, "md5_of_each", counted)
    return sizes


def listed(number: int, body: memoryview | None = None) -> SourceObject:
    content = BODIES[number] if body is None else body
    return SourceObject(key=f"raw/{number}", size=len(content), etag=hashlib.md5(content).hexdigest())


async def begun(*checks: asyncio.Task[None]) -> None:
    await asyncio.sleep(0)
    assert not any(check.done() for check in checks)


async def test_what_waits_for_a_thread_is_digested_together(executor, batches) -> None:
    gate, checks = Gate(executor), DigestChecks(executor)
    waiting = [asyncio.create_task(checks.check(listed(number), body)) for number, body in enumerate(BODIES)]
    await begun(*waiting)
    gate.open()
    await asyncio.gather(*waiting)
    assert batches == [LANES] * 3


async def test_only_the_damaged_one_is_refused(executor) -> None:
    gate, checks = Gate(executor), DigestChecks(executor)
    damaged = listed(3, memoryview(b"another body"))
    items = [damaged if number == 3 else listed(number) for number in range(LANES)]
    waiting = [asyncio.create_task(checks.check(item, BODIES[number])) for number, item in enumerate(items)]
    await begun(*waiting)
    gate.open()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in found] == [SourceCorruptError if n == 3 else type(None) for n in range(LANES)]
    assert damaged.etag in str(found[3])
    assert hashlib.md5(BODIES[3]).hexdigest() in str(found[3])
    assert "'raw/3'" in str(found[3])


async def test_one_that_gives_up_is_left_out_and_keeps_nobody(executor, batches) -> None:
    gate, checks = Gate(executor), DigestChecks(executor)
    waiting = [asyncio.create_task(checks.check(listed(number), BODIES[number])) for number in range(4)]
    await begun(*waiting)
    waiting[1].cancel()
    await asyncio.wait(waiting[1:2])
    gate.open()
    await asyncio.gather(*waiting[:1], *waiting[2:])
    assert batches == [3]
    assert waiting[1].cancelled()


async def test_one_that_gives_up_while_it_is_digested_disturbs_nobody(executor, monkeypatch) -> None:
    began, go_on = asyncio.Event(), threading.Event()
    loop, of_each = asyncio.get_running_loop(), digests.md5_of_each

    def slow(buffers: list[memoryview]) -> list[str]:
        loop.call_soon_threadsafe(began.set)
        go_on.wait()
        return of_each(buffers)

    monkeypatch.setattr(digests, "md5_of_each", slow)
    gate, checks = Gate(executor), DigestChecks(executor)
    waiting = [asyncio.create_task(checks.check(listed(number), BODIES[number])) for number in range(2)]
    await begun(*waiting)
    gate.open()
    await began.wait()
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    go_on.set()
    await waiting[1]
    assert waiting[0].cancelled()


async def test_what_goes_wrong_in_the_thread_reaches_all_who_wait(executor, monkeypatch) -> None:
    def fail(_: list[memoryview]) -> list[str]:
        raise MemoryError("no memory for digests")

    monkeypatch.setattr(digests, "md5_of_each", fail)
    gate, checks = Gate(executor), DigestChecks(executor)
    waiting = [asyncio.create_task(checks.check(listed(number), BODIES[number])) for number in range(3)]
    await begun(*waiting)
    gate.open()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in found] == ["no memory for digests"] * 3


async def test_lanes_that_were_wrong_would_refuse_nothing_that_openssl_finds_right(executor, monkeypatch) -> None:
    monkeypatch.setattr(digests, "md5_of_each", lambda buffers: ["0" * 32 for _ in buffers])
    await DigestChecks(executor).check(listed(0), BODIES[0])


@pytest.mark.parametrize("etag", ["", f"{'0' * 32}-2"])
async def test_a_body_without_a_listed_digest_passes(executor, batches, etag: str) -> None:
    await DigestChecks(executor).check(SourceObject(key="raw/0", size=4, etag=etag), memoryview(b"body"))
    assert batches == []
