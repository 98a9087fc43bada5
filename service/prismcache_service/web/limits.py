"""Limits on what clients may send: requests a second, failed authentications, bytes and seconds of a body."""

from __future__ import annotations

import asyncio
import http
import math
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prismcache_service.web.problems import HttpError, declares_body, response_to

MAX_BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0
_WINDOW_S = 60.0
_MAX_KEYS = 10_000  # entries of a table, so that many addresses do not use up memory
_MIN_BURST = 10.0

Clock = Callable[[], float]
T = TypeVar("T")


class RateLimiter:
    """A token bucket for each key: `rate` a second in the long run, twice that at once.

    `rate` is the number of requests, or bytes, a second; `clock` returns monotonic seconds.
    """

    def __init__(self, rate: float, clock: Clock = time.monotonic) -> None:
        self._rate, self._clock = rate, clock
        self._burst = max(_MIN_BURST, 2 * rate)
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: str, amount: float = 1.0) -> float:
        """Take `amount` from the bucket, also if less is in it; return 0, or the seconds until there is 1 again."""
        now = self._clock()
        level, since = self._buckets.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._buckets[key] = (level if wait else level - amount, now)
        _shrink(self._buckets)
        return wait


class FailedLogins:
    """Counts failures of each address within a minute.

    `limit` is the number of failures a minute that get the response 401; later ones get 429. `clock` returns monotonic
    seconds.
    """

    def __init__(self, limit: int, clock: Clock = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._windows: dict[str, tuple[int, float]] = {}

    def note(self, address: str) -> float:
        """Count a failure; return 0, or the seconds until the address may fail again."""
        now, key = self._clock(), network(address)
        count, since = self._windows.pop(key, (0, now))
        if now - since >= _WINDOW_S:
            count, since = 0, now
        self._windows[key] = (count + 1, since)
        _shrink(self._windows)
        return 0.0 if count < self._limit else since + _WINDOW_S - now


def network(address: str) -> str:
    """Return an IPv4 address, or the /64 of an IPv6 address: one host can use all addresses of its /64."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or int(parsed) >> 64)
    return str(parsed)


def _shrink(table: dict[str, T]) -> None:
    while len(table) > _MAX_KEYS:
        del table[next(iter(table))]


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that says when to try again."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


class BodyLimit:
    """Middleware: reads the whole body, which is small, before a handler runs.

    Parameters
    ----------
    app
        The next application.
    max_bytes, seconds
        Largest body in bytes, chunked or not, and the time in which it must arrive.
    """

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES, seconds: float = BODY_SECONDS) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and declares_body(scope):
            try:
                body = await self._read(scope, receive)
            except HttpError as error:
                await response_to(scope, error)(scope, receive, send)
                return
            if body is None:
                return
            receive = _replay(body, receive)
        scope.setdefault("state", {})["body_read"] = True
        await self._app(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body, or None if the client has closed the connection."""
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._max_bytes:
                raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._max_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            detail = f"the body did not arrive within {self._seconds:g} s"
            raise HttpError(http.HTTPStatus.REQUEST_TIMEOUT, detail) from None

    def _too_large(self) -> HttpError:
        detail = f"the body is larger than {self._max_bytes} bytes"
        return HttpError(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending = [body]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay
