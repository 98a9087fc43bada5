"""What a faulty network or server does to one request; each class is one fault.

::

    Action                 responds to an exchange
    ├── PassOn             as the server responded
    ├── Status             an S3 error document with this status
    ├── Reset              the connection breaks, before the headers or within the body
    ├── Truncate           the connection closes in good order, but too early
    ├── Stall              headers and a part of the body, then nothing until released
    ├── Drip               a byte at a time
    ├── Chunked            without a Content-Length
    ├── Delay, Before      wait, or call a function, and then another action
    └── ChangedReply       a complete response, but another one
        ├── Short, Empty, Html, FlipBit, ChangedObject
        └── Rewrite        by any function
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from aiohttp import web

_ERROR_CODE = {403: "AccessDenied", 404: "NoSuchKey", 412: "PreconditionFailed", 500: "InternalError", 503: "SlowDown"}


@dataclass(frozen=True)
class Reply:
    """A response in full: status, end-to-end headers (names in lower case, no Content-Length) and body.

    `length` is the Content-Length where that is not the body's own length, as in the response to HEAD.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    length: int | None = None

    @property
    def etag(self) -> str:
        """ETag without quotes; empty if there is none."""
        return self.headers.get("etag", "").strip('"')


class Exchange(Protocol):
    """One request that waits for its response."""

    @property
    def request(self) -> web.BaseRequest: ...

    async def fetch(self) -> Reply:
        """Return the response of the server behind the proxy."""

    async def begin(self, reply: Reply) -> web.StreamResponse:
        """Send the headers of `reply`, with its whole body's Content-Length."""

    async def send(self, reply: Reply) -> web.StreamResponse:
        """Send `reply`, or 412 if the request's If-Match is not its ETag."""


class Action(ABC):
    """What happens to a request that a rule matches."""

    @abstractmethod
    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        """Answer the request, well or badly."""


@dataclass(frozen=True)
class PassOn(Action):
    """The server's own response."""

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        return await exchange.send(await exchange.fetch())


@dataclass(frozen=True)
class Status(Action):
    """An S3 error document with this HTTP status, e.g. 403, 404, 500 or 503."""

    status: int

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        return await exchange.send(error_reply(self.status))


@dataclass(frozen=True)
class Reset(Action):
    """The connection breaks (TCP RST).

    Attributes
    ----------
    after
        Share of the body that is sent first; None breaks it before any header.
    """

    after: float | None = None

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        response = web.StreamResponse()
        if self.after is not None:
            response = await _send_part(exchange, await exchange.fetch(), self.after)
        transport = _transport(exchange)
        connection = transport.get_extra_info("socket")
        # Lingering for no time makes the kernel send RST where it would otherwise close in good order.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        return response


@dataclass(frozen=True)
class Truncate(Action):
    """The full Content-Length, this share of the body, and the connection closes in good order."""

    after: float = 0.5

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        response = await _send_part(exchange, await exchange.fetch(), self.after)
        _transport(exchange).close()
        return response


@dataclass(frozen=True)
class Stall(Action):
    """Headers and this share of the body, then nothing until `release` is called; then the rest."""

    after: float = 0.0
    _released: Future[None] = field(default_factory=Future, compare=False, repr=False)

    def release(self) -> None:
        """Let all stalled responses go on, now and from now on; from any thread."""
        if not self._released.done():
            self._released.set_result(None)

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        reply = await exchange.fetch()
        response = await _send_part(exchange, reply, self.after)
        # Shielded: a client that leaves cancels its own wait, not everybody's.
        await asyncio.shield(asyncio.wrap_future(self._released))
        await response.write(reply.body[_share(reply, self.after) :])
        return response


@dataclass(frozen=True)
class Drip(Action):
    """The right body, a byte at a time, `interval` seconds apart."""

    interval: float = 0.001

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        reply = await exchange.fetch()
        response = await exchange.begin(reply)
        for byte in reply.body:
            await response.write(bytes([byte]))
            await asyncio.sleep(self.interval)
        return response


@dataclass(frozen=True)
class Chunked(Action):
    """The right body in chunks, without Content-Length."""

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        reply = await exchange.fetch()
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        response.enable_chunked_encoding()
        await response.prepare(exchange.request)
        await response.write(reply.body)
        await response.write_eof()
        return response


@dataclass(frozen=True)
class Delay(Action):
    """Wait `seconds`, then do `then`."""

    seconds: float
    then: Action = PassOn()

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        await asyncio.sleep(self.seconds)
        return await self.then.respond(exchange)


@dataclass(frozen=True)
class Before(Action):
    """Call `function` (e.g. to change or delete the object in the bucket's folder), then do `then`."""

    function: Callable[[], object]
    then: Action = PassOn()

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        await asyncio.to_thread(self.function)
        return await self.then.respond(exchange)


class ChangedReply(Action):
    """A complete and well-formed response that is not the server's."""

    async def respond(self, exchange: Exchange) -> web.StreamResponse:
        return await exchange.send(self.change(await exchange.fetch()))

    @abstractmethod
    def change(self, reply: Reply) -> Reply:
        """The response to give for the server's `reply`."""


@dataclass(frozen=True)
class Rewrite(ChangedReply):
    """Whatever `function` makes of the server's response."""

    function: Callable[[Reply], Reply]

    def change(self, reply: Reply) -> Reply:
        return self.function(reply)


@dataclass(frozen=True)
class Short(ChangedReply):
    """This share of the body, with a Content-Length that agrees with it."""

    keep: float = 0.5

    def change(self, reply: Reply) -> Reply:
        return dataclasses.replace(reply, body=reply.body[: _share(reply, self.keep)])


@dataclass(frozen=True)
class Empty(ChangedReply):
    """200 without a body."""

    def change(self, reply: Reply) -> Reply:
        return dataclasses.replace(reply, status=200, body=b"")


@dataclass(frozen=True)
class Html(ChangedReply):
    """200 with a web page, as from a captive portal or a proxy in between."""

    page: bytes = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"

    def change(self, reply: Reply) -> Reply:
        return Reply(200, {"content-type": "text/html; charset=utf-8"}, self.page)


@dataclass(frozen=True)
class FlipBit(ChangedReply):
    """The body with one bit of the byte at share `at` of it changed; length and ETag stay."""

    at: float = 0.5
    bit: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.at < 1:
            raise ValueError(f"at={self.at} is no place in the body")

    def change(self, reply: Reply) -> Reply:
        body = bytearray(reply.body)
        if body:
            body[_share(reply, self.at)] ^= 1 << self.bit
        return dataclasses.replace(reply, body=bytes(body))


@dataclass(frozen=True)
class ChangedObject(ChangedReply):
    """Another object under the same key: `body` (by default the old one's bytes reversed) with its own ETag.

    A request with the old ETag in If-Match gets 412. Listings still show the old one; to change the object for good,
    use `Before` with a function that writes into the bucket's folder.
    """

    body: bytes | None = None

    def change(self, reply: Reply) -> Reply:
        body = reply.body[::-1] if self.body is None else self.body
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        return Reply(200, {**reply.headers, "etag": f'"{etag}"'}, body)


def error_reply(status: int) -> Reply:
    """An S3 error document."""
    code = _ERROR_CODE.get(status, HTTPStatus(status).phrase.replace(" ", ""))
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>injected</Message></Error>'
    return Reply(status, {"content-type": "application/xml"}, body.encode())


def _share(reply: Reply, share: float) -> int:
    """Bytes that are `share` of the body, at least one less than all unless `share` is 1."""
    return len(reply.body) if share >= 1 else min(int(len(reply.body) * share), max(0, len(reply.body) - 1))


async def _send_part(exchange: Exchange, reply: Reply, share: float) -> web.StreamResponse:
    response = await exchange.begin(reply)
    if part := reply.body[: _share(reply, share)]:
        await response.write(part)
    return response


def _transport(exchange: Exchange) -> asyncio.Transport:
    transport = exchange.request.transport
    assert isinstance(transport, asyncio.Transport), "the client has gone"
    return transport
