"""A real HTTP proxy in front of the S3 server that records every request and injects faults by rules.

::

    with S3Server(folder) as server, FaultProxy(server.endpoint) as proxy:
        proxy.add(Status(503), key="labels/", times=3)
        proxy.add(FlipBit(), key="raw/0.0.0.0", probability=0.2, seed=1)
        ...  # point the client at proxy.endpoint
        assert max(proxy.gets().values()) == 1

The first rule that matches a request decides. Where the S3 server differs from AWS, the proxy responds like AWS:
``If-Match`` is honoured (412), a part of an object comes with status 206, and listings carry ETags in quotes.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.fault_actions import (
    Action,
    Before,
    ChangedObject,
    ChangedReply,
    Chunked,
    Delay,
    Drip,
    Empty,
    FlipBit,
    Html,
    PassOn,
    Reply,
    Reset,
    Rewrite,
    Short,
    Stall,
    Status,
    Truncate,
    error_reply,
)

__all__ = [
    "Action",
    "Before",
    "ChangedObject",
    "ChangedReply",
    "Chunked",
    "Delay",
    "Drip",
    "Empty",
    "FaultProxy",
    "FlipBit",
    "Html",
    "PassOn",
    "Reply",
    "Reset",
    "Rewrite",
    "Rule",
    "Seen",
    "Short",
    "Stall",
    "Status",
    "Truncate",
]

START_TIMEOUT = STOP_TIMEOUT = 10.0

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "trailer", "upgrade"}
_LISTED_ETAG = re.compile(rb"<ETag>([^<&\"]*)</ETag>")


@dataclass(frozen=True)
class Seen:
    """A request as it came in.

    Attributes
    ----------
    method, bucket, key
        `key` is the object's, decoded; for a listing, its prefix.
    query, headers
        As sent; header names in lower case.
    listing
        Whether it asks for keys and not for an object.
    at
        Seconds of the monotonic clock.
    """

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    listing: bool
    at: float


KeyMatch = str | re.Pattern[str] | Callable[[str], bool]


@dataclass
class Rule:
    """Which requests meet `action`; see `FaultProxy.add`. `hits` counts those that did."""

    action: Action
    key: KeyMatch = ""
    method: str = "GET"
    listing: bool = False
    skip: int = 0
    times: int | None = None
    probability: float = 1.0
    seed: int = 0
    hits: int = 0
    _tries: Counter[str] = field(default_factory=Counter, repr=False)

    def takes(self, seen: Seen) -> bool:
        """Whether this rule decides about the request; counts it if so."""
        if seen.listing != self.listing or seen.method != self.method or not self._matches(seen.key):
            return False
        self._tries[seen.key] += 1
        if self._tries.total() <= self.skip or (self.times is not None and self.hits >= self.times):
            return False
        # By key and try, so that the order in which requests happen to arrive changes nothing.
        if random.Random(f"{self.seed} {seen.key} {self._tries[seen.key]}").random() >= self.probability:
            return False
        self.hits += 1
        return True

    def _matches(self, key: str) -> bool:
        if isinstance(self.key, str):
            return self.key in key
        return bool(self.key.search(key) if isinstance(self.key, re.Pattern) else self.key(key))


class FaultProxy:
    """Reverse proxy with faults, on a free port of the loopback interface, in a thread with its own event loop.

    Parameters
    ----------
    upstream
        Endpoint of the real server.
    latency
        Seconds that every object (no listing) waits before its response.
    quoted_etags
        Whether listings carry ETags in quotes, as AWS's do.

    Attributes
    ----------
    endpoint
        URL without a slash at its end.
    in_flight, max_in_flight
        Number of requests for objects that are open now, and the largest number so far.
    """

    def __init__(self, upstream: str, *, latency: float = 0.0, quoted_etags: bool = True) -> None:
        self.upstream = upstream
        self.latency = latency
        self.endpoint = ""
        self.max_in_flight = 0
        self._quoted_etags = quoted_etags
        self._rules: tuple[Rule, ...] = ()
        self._seen: list[Seen] = []
        self._changed = threading.Condition()
        self.in_flight = 0
        self._thread: threading.Thread | None = None
        self._session: aiohttp.ClientSession
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event

    def add(
        self,
        action: Action,
        key: KeyMatch = "",
        *,
        method: str = "GET",
        listing: bool = False,
        skip: int = 0,
        times: int | None = None,
        probability: float = 1.0,
        seed: int = 0,
    ) -> Rule:
        """Add a rule behind those that exist; from any thread, at any time.

        Parameters
        ----------
        action
            What happens.
        key
            Part of the object's key, a pattern searched in it, or a predicate; for a listing, of its prefix.
        method
            HTTP method.
        listing
            Whether the rule is for listings instead of objects.
        skip, times
            Leave out the first matching requests; end after so many hits (None: never).
        probability, seed
            Chance of each matching request; the same for the same seed, key and number of try.

        Returns
        -------
        Rule
            For `remove`, and to read its `hits`.
        """
        rule = Rule(action, key, method, listing, skip, times, probability, seed)
        self._rules = (*self._rules, rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """Take a rule away."""
        self._rules = tuple(r for r in self._rules if r is not rule)

    def clear(self) -> None:
        """Take all rules away and forget the requests seen so far."""
        self._rules = ()
        with self._changed:
            self._seen.clear()
            self.max_in_flight = 0

    @property
    def requests(self) -> list[Seen]:
        """All requests so far, listings included, in the order in which they came."""
        with self._changed:
            return list(self._seen)

    def gets(self) -> Counter[str]:
        """How often each object was asked for (GET; no listings), by key."""
        return Counter(seen.key for seen in self.requests if seen.method == "GET" and not seen.listing)

    def wait_until(self, condition: Callable[[FaultProxy], bool], timeout: float = 10.0) -> None:
        """Wait until `condition` of this proxy holds; it is looked at whenever a request comes or ends.

        Raises
        ------
        TimeoutError
            If it does not within `timeout` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError(f"after {timeout} s and {len(self._seen)} requests")

    def start(self) -> Self:
        """Start listening."""
        started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), daemon=True)
        self._thread.start()
        self.endpoint = started.result(START_TIMEOUT)
        return self

    def stop(self) -> None:
        """Break what is open and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join(STOP_TIMEOUT)
            if thread.is_alive():
                raise TimeoutError(f"the proxy of {self.upstream} does not end")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _run(self, started: Future[str]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0)
        # handler_cancellation: a client that gives up must not leave its stalled response behind.
        server = web.Server(self._handle, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            try:
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                host, port = runner.addresses[0][:2]
                started.set_result(f"http://{host}:{port}")
                await self._stopping.wait()
            except BaseException as error:
                if not started.done():
                    started.set_exception(error)
                raise
            finally:
                await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = _seen(request)
        with self._changed:
            self._seen.append(seen)
            self.in_flight += not seen.listing
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            self._changed.notify_all()
        try:
            if self.latency and not seen.listing:
                await asyncio.sleep(self.latency)
            action = next((rule.action for rule in self._rules if rule.takes(seen)), PassOn())
            return await action.respond(_ProxiedExchange(request, self, seen))
        finally:
            with self._changed:
                self.in_flight -= not seen.listing
                self._changed.notify_all()

    async def fetch(self, request: web.BaseRequest, seen: Seen) -> Reply:
        """Return what the server behind the proxy sends for `request`."""
        url = URL(self.upstream + request.raw_path, encoded=True)
        headers, body = _end_to_end(request.headers), await request.read()
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False
            ) as response:
                length = response.content_length if request.method == "HEAD" else None
                status = 206 if "Content-Range" in response.headers else response.status
                reply = Reply(status, _end_to_end(response.headers), await response.read(), length)
        except aiohttp.ClientError:
            return error_reply(502)
        if seen.listing and self._quoted_etags:
            return replace(reply, body=_LISTED_ETAG.sub(rb"<ETag>&quot;\1&quot;</ETag>", reply.body))
        return reply


@dataclass(frozen=True)
class _ProxiedExchange:
    """The `Exchange` of one request to the proxy."""

    request: web.BaseRequest
    proxy: FaultProxy
    seen: Seen

    async def fetch(self) -> Reply:
        return await self.proxy.fetch(self.request, self.seen)

    async def begin(self, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        response.content_length = len(reply.body) if reply.length is None else reply.length
        await response.prepare(self.request)
        return response

    async def send(self, reply: Reply) -> web.StreamResponse:
        wanted = self.seen.headers.get("if-match")
        if wanted is not None and reply.status < 300 and wanted.strip('"') not in {"*", reply.etag}:
            reply = error_reply(412)
        response = await self.begin(reply)
        if self.seen.method != "HEAD":
            await response.write(reply.body)
        await response.write_eof()
        return response


def _seen(request: web.BaseRequest) -> Seen:
    bucket, _, key = request.path.lstrip("/").partition("/")
    listing = not key
    return Seen(
        method=request.method,
        bucket=bucket,
        key=request.query.get("prefix", "") if listing else key,
        query=dict(request.query),
        headers={name.lower(): value for name, value in request.headers.items()},
        listing=listing,
        at=time.monotonic(),
    )


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}
