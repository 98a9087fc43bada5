"""Responses that wait must end when the client disconnects, and when the service shuts down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")


async def or_none(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return the result of `work`, or None if the client disconnects or the service shuts down before."""
    working = asyncio.create_task(work)
    ends = [asyncio.create_task(request.app.state.closing.wait()), asyncio.create_task(_gone(request))]
    try:
        await asyncio.wait([working, *ends], return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        await _cancel(working, *ends)


async def until_closing(closing: asyncio.Event, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield what `source` yields, until `closing` is set."""
    ending = asyncio.create_task(closing.wait())
    step: asyncio.Future[T] | None = None
    try:
        while not closing.is_set():
            step = asyncio.ensure_future(anext(source))
            await asyncio.wait([step, ending], return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                return
            try:
                item = step.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        await _cancel(ending, *([step] if step else []))
        await source.aclose()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
