"""The thread under a PrismClient: interruptions at any moment, a start that fails, a loop that hangs."""

from __future__ import annotations

import threading
import time

import anyio
import anyio.lowlevel
import pytest

import prismcache.client.loop_thread as module
from prismcache import JobCancelledError
from prismcache.client.loop_thread import LoopThread, _Call


async def nothing() -> None:
    """Do nothing."""


@pytest.fixture
def loop():
    thread = LoopThread()
    yield thread
    thread.stop(nothing)


def test_runs_and_returns_and_raises(loop):
    async def double(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return 2 * number

    async def fail() -> None:
        raise TimeoutError("its own, not the wait's")

    assert loop.run(double, 21) == 42
    with pytest.raises(TimeoutError, match="its own"):
        loop.run(fail)


def test_looks_for_ctrl_c_now_and_then(loop, monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.001)
    loop.run(anyio.sleep, 0.02)


def test_an_interrupt_cancels_and_waits_for_the_cleaning_up(loop, monkeypatch):
    cleaned = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            cleaned.append(True)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.run(work)
    assert cleaned == [True]


def test_an_interrupt_while_a_call_is_handed_over_cancels_it_too(loop, monkeypatch):
    hand_over = loop._portal.start_task_soon
    calls = []

    def interrupted(function: object, *args: object) -> object:
        future = hand_over(function, *args)
        calls.append(function)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return future

    monkeypatch.setattr(loop._portal, "start_task_soon", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run(anyio.sleep_forever)
    assert calls[0].ended.is_set()
    monkeypatch.undo()


def test_a_call_cancelled_before_its_start_never_runs():
    ran = []

    async def work() -> None:
        await anyio.lowlevel.checkpoint()
        ran.append(True)

    async def main() -> None:
        call = _Call(work)
        call.cancel()
        assert call.ended.is_set()
        with pytest.raises(RuntimeError, match="cancelled by the waiting thread"):
            await call()

    anyio.run(main)
    assert ran == []


def test_a_loop_that_cannot_start_says_why(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError("no more file descriptors")

    monkeypatch.setattr(anyio, "run", broken)
    with pytest.raises(OSError, match="no more file descriptors"):
        LoopThread()


def test_stopping_gives_up_on_what_hangs(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.02)
    thread = LoopThread()
    released = threading.Event()

    async def hang() -> None:
        released.wait(10)

    started = time.monotonic()
    thread.stop(hang)
    assert time.monotonic() - started < 5
    released.set()
    thread._thread.join(10)
    thread.stop(hang)


def test_a_call_that_waits_while_another_thread_closes_is_told():
    thread = LoopThread()
    running = threading.Event()
    caught: list[BaseException] = []

    async def work() -> None:
        running.set()
        await anyio.sleep_forever()

    def wait() -> None:
        try:
            thread.run(work)
        except JobCancelledError as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    running.wait(10)
    thread.stop(nothing)
    waiter.join(10)
    assert str(caught[0]) == "the client was closed while this call waited"
    with pytest.raises(RuntimeError, match="not running"):
        thread.run(nothing)


def test_an_error_while_closing_is_raised_after_the_thread_ended():
    thread = LoopThread()

    async def fail() -> None:
        raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"):
        thread.stop(fail)
    assert not thread._thread.is_alive()


def test_in_a_forked_process_nothing_is_waited_for(loop, monkeypatch):
    monkeypatch.setattr(loop, "pid", -1)
    loop.dismiss(anyio.sleep_forever)
    loop.stop(anyio.sleep_forever)
    monkeypatch.undo()
