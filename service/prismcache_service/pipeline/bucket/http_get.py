"""GET of large objects over HTTP/1.1 (RFC 9112), whose bodies the system writes straight into the caller's buffer.

A general client copies a body twice more, in pieces of 64 KiB that each cost the event loop a round trip: twice the CPU
of receiving it. What is not a plain answer with a Content-Length is an error, and the connection is not used again.
"""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass

MAX_HEAD = 1 << 16  # bytes of a status line and headers, and of what is kept of an error's body
_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: |\r\n)")
_HEADER = re.compile(rb"\r\n([^\r\n:]+):[ \t]*([^\r\n]*)")
_LAST_CHUNK = b"0\r\n\r\n"
_NO_BODY = frozenset({204, 304})
# The event loop is woken for so many bytes of a body; where they trickle in, it would be busy with nothing else.
_WAKE_BYTES = 1 << 18
_TAIL_BYTES = 1 << 16  # of a body may lie in TLS already, and must not be waited for at the socket


class HttpError(OSError):
    """The other side does not answer in HTTP/1.1 as this module needs it, or ends the connection too early."""


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes
    ----------
    status
        HTTP status.
    length
        Bytes of the body, as the headers say; -1 if they do not.
    excerpt
        The beginning of an error's body. Any other body is in the buffer, if it has the length of that.
    """

    status: int
    length: int
    excerpt: bytes = b""


@dataclass(frozen=True)
class _ErrorHead:
    """An answer that is no body, and where in the head's buffer its own text begins."""

    status: int
    length: int
    begin: int


class Connection(asyncio.BufferedProtocol):
    """One connection, one request at a time.

    Attributes
    ----------
    received
        Bytes of the answer so far, headers included; of a body, what the loop was woken for.
    reusable
        Whether another request may follow an answer.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._least = 1
        self.received = 0
        self.reusable = True
        self._answered: asyncio.Future[Answer] | None = None
        self._head = bytearray(MAX_HEAD)
        self._body: memoryview | None = None
        self._target = memoryview(self._head)  # what is being filled: the head, then the body
        self._filled = 0
        self._error: _ErrorHead | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # TCP and TLS transports are both of it

    def ask(self, request: bytes, into: memoryview | None) -> asyncio.Future[Answer]:
        """Send a request. A body of ``len(into)`` bytes goes to `into`; None is for CONNECT, which has none."""
        self._answered = asyncio.get_running_loop().create_future()
        self._body, self._error = into, None
        self._target, self._filled, self.received = memoryview(self._head), 0, 0
        self.transport.write(request)
        return self._answered

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - all that is wanted is offered
        return self._target[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        self._filled += nbytes
        if self._answered is None or self._answered.done():
            self.fail(HttpError("sends what nobody asked for"))
        elif self._target is self._body:
            self._end_if_full()
        else:
            try:
                self._read_head()
            except HttpError as error:
                self.fail(error)

    def wake_at(self, least: int) -> None:
        """Have the system wake the loop once `least` bytes are here, and at the end of the connection in any case."""
        if least != self._least and hasattr(socket, "SO_RCVLOWAT"):
            self._least = least
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)

    def eof_received(self) -> bool:
        if self._error is not None:
            self._answer_error(self._error)
        self.fail(HttpError(f"ends the connection after {self.received} bytes of an answer"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(exc or HttpError("ends the connection"))

    def fail(self, error: Exception) -> None:
        """Give the connection up, and the request that is under way with it."""
        self.reusable = False
        self.transport.abort()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)

    def _answer(self, answer: Answer) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(answer)
        self._target, self._filled = memoryview(self._head), 0  # nothing more belongs in the caller's buffer

    def _end_if_full(self) -> None:
        rest = len(self._target) - self._filled
        self.wake_at(max(1, min(_WAKE_BYTES, rest - _TAIL_BYTES)))
        if rest == 0:
            self._answer(Answer(200, self._filled))

    def _read_head(self) -> None:
        if self._error is not None:
            self._end_if_whole(self._error)
            return
        end = self._head.find(b"\r\n\r\n", 0, self._filled)
        if end < 0:
            if self._filled == MAX_HEAD:
                raise HttpError(f"sends more than {MAX_HEAD} bytes of headers")
            return
        status, length = self._parse(bytes(self._head[: end + 2]))
        begin = end + 4
        if 100 <= status < 200:
            rest = bytes(self._head[begin : self._filled])
            self._head[: len(rest)], self._filled = rest, len(rest)
            self._read_head()
        elif self._body is None and status == 200:
            self._answer(Answer(status, 0))
        elif status == 200:
            self._begin_body(length, begin)
        else:
            self._error = _ErrorHead(status, length, begin)
            self._end_if_whole(self._error)

    def _begin_body(self, length: int, begin: int) -> None:
        body, came = self._body, self._filled - begin
        if body is None or length != len(body) or came > length:
            self.reusable = False  # another length than the listing's: not worth reading
            self._answer(Answer(200, max(length, came)))
            return
        body[:came] = self._head[begin : self._filled]
        self._target, self._filled = body, came
        self._end_if_full()

    def _end_if_whole(self, error: _ErrorHead) -> None:
        came = self._filled - error.begin
        if error.length >= 0:
            is_whole = came >= error.length
        else:
            is_whole = self._head.endswith(_LAST_CHUNK, error.begin, self._filled)
        if is_whole or error.status in _NO_BODY or self._filled == MAX_HEAD:
            self.reusable &= came == error.length
            self._answer_error(error)

    def _answer_error(self, error: _ErrorHead) -> None:
        self._answer(Answer(error.status, error.length, bytes(self._head[error.begin : self._filled])))

    def _parse(self, head: bytes) -> tuple[int, int]:
        """Status, and Content-Length or -1."""
        first = _STATUS.match(head)
        if first is None:
            raise HttpError(f"answers {head[:40]!r}, which is not HTTP/1.1")
        fields: dict[bytes, set[bytes]] = {}
        for name, value in _HEADER.findall(head):
            fields.setdefault(name.lower(), set()).add(value.strip().lower())
        if self._body is not None and (first[1] == b"0" or b"close" in fields.get(b"connection", ())):
            self.reusable = False  # a proxy that says so of a tunnel speaks of itself
        status, lengths = int(first[2]), fields.get(b"content-length", set())
        if len(lengths) > 1 or not all(length.isdigit() for length in lengths):
            raise HttpError(f"sends the Content-Length {b', '.join(lengths)[:60]!r}")
        length = int(lengths.pop()) if lengths and b"transfer-encoding" not in fields else -1
        if status == 200 and self._body is not None:
            if length < 0:
                raise HttpError("sends a body without a Content-Length")
            if fields.get(b"content-encoding", set()) - {b"identity"}:
                raise HttpError("sends a body with a Content-Encoding that was not asked for")
        return status, length
