"""Answers of HTTP servers, well-formed and not, byte by byte on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import pytest

from prismcache.errors import ConfigError
from prismcache_service.pipeline.bucket.connections import Connections
from prismcache_service.pipeline.bucket.http_get import MAX_HEAD, Answer, HttpError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Server:
    """Answers each request with the next of `answers`, piece by piece; closes the connection after those in `last`."""

    answers: list[Sequence[bytes]]
    last: frozenset[int] = frozenset()
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0
    _serving: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await self._server.wait_closed()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.append(task)
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                number = len(self.requests)
                self.requests.append(request)
                for piece in self.answers[number]:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if number in self.last:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone
        finally:
            writer.close()


async def ask(server: Server, times: int = 1, window: float = 5.0) -> list[tuple[Answer, bytes]]:
    found = []
    with Connections(server.url, None, proxy=None, window=window) as connections:
        for number in range(times):
            into = bytearray(5)
            answer = await connections.get(f"/{number}", "X-Test: 1\r\n", memoryview(into))
            found.append((answer, bytes(into)))
    return found


def get(*answers: bytes | Sequence[bytes], last: Sequence[int] = (), window: float = 5.0) -> list[tuple[Answer, bytes]]:
    """Ask a server for as many answers as it has."""

    async def main() -> list[tuple[Answer, bytes]]:
        pieces = [[answer] if isinstance(answer, bytes) else answer for answer in answers]
        async with Server(pieces, frozenset(last)) as server:
            return await ask(server, len(answers), window)

    return asyncio.run(main())


BODIES = {
    "at once": [OK + b"crops"],
    "after the head": [OK, b"crops"],
    "byte by byte": [bytes([b]) for b in OK + b"crops"],
    "after a 100": [b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"cr", b"ops"],
    "names in any case": [OK.replace(b"Content-Length", b"content-LENGTH") + b"crops"],
    "HTTP/1.0": [OK.replace(b"1.1", b"1.0") + b"crops"],
    "one length, twice": [OK.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n") + b"crops"],
}


@pytest.mark.parametrize("pieces", BODIES.values(), ids=BODIES)
def test_a_body_comes_whole_however_it_is_cut(pieces: Sequence[bytes]) -> None:
    assert get(pieces) == [(Answer(200, 5), b"crops")]


def test_an_empty_body_is_a_body() -> None:
    async def main() -> Answer:
        async with Server([[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]]) as server:
            with Connections(server.url, None, proxy=None, window=5) as connections:
                return await connections.get("/", "", memoryview(bytearray()))

    assert asyncio.run(main()) == Answer(200, 0)


def test_a_connection_is_used_again() -> None:
    async def main() -> Server:
        async with Server([[OK + b"first"], [OK + b"other"]]) as server:
            assert [body for _, body in await ask(server, 2)] == [b"first", b"other"]
        return server

    server = asyncio.run(main())
    assert server.connections == 1
    assert server.requests[1].startswith(b"GET /1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Test: 1\r\n" in server.requests[1]


@pytest.mark.parametrize("first", [OK + b"first", OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"first"])
def test_one_that_the_server_gave_up_costs_no_error(first: bytes) -> None:
    found = get(first, OK + b"other", last=[0])
    assert [body for _, body in found] == [b"first", b"other"]


def test_one_that_was_given_up_while_it_was_idle_is_not_asked_again() -> None:
    async def main() -> Server:
        async with Server([[OK + b"first"], [OK + b"other"]], frozenset([0])) as server:
            with Connections(server.url, None, proxy=None, window=60) as connections:
                into = bytearray(5)
                await connections.get("/0", "", memoryview(into))
                while not connections._idle[0].transport.is_closing():  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0)
                for _ in range(5):  # and it has been told so
                    await asyncio.sleep(0)
                await connections.get("/1", "", memoryview(into))
                assert into == b"other"
        return server

    assert asyncio.run(asyncio.wait_for(main(), 10)).connections == 2


@pytest.mark.parametrize(
    ("length", "body"), [(4, b"crop"), (6, b"crops!"), (10**15, b"crops"), (0, b"")], ids=lambda value: str(value)[:9]
)
def test_another_length_is_told_and_not_read(length: int, body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length
    assert get(answer + body, OK + b"other") == [(Answer(200, length), bytes(5)), (Answer(200, 5), b"other")]


def test_more_than_was_announced_is_not_taken_for_the_next_answer() -> None:
    assert [body for _, body in get(OK + b"crops" + OK + b"wrong", OK + b"other")][1] == b"other"


ERRORS = {
    "with a length": (
        [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 12\r\n\r\n", b"<Code>", b"A</Co"],
        12,
        b"<Code>A</Co",
    ),
    "in chunks": ([CHUNKED, b"7\r\n<Code>A\r\n", b"0\r\n\r\n"], -1, b"7\r\n<Code>A\r\n0\r\n\r\n"),
    "to the end": ([b"HTTP/1.1 500 Oops\r\n\r\n", b"<Code>"], -1, b"<Code>"),
    "without a body": ([b"HTTP/1.1 304 Not Modified\r\n\r\n"], -1, b""),
    "longer than is read": ([CHUNKED, b"x" * (2 * MAX_HEAD)], -1, None),
}


@pytest.mark.parametrize(("pieces", "length", "excerpt"), ERRORS.values(), ids=ERRORS)
def test_an_error_is_told_with_the_beginning_of_its_text(
    pieces: Sequence[bytes], length: int, excerpt: bytes | None
) -> None:
    ((answer, body),) = get(pieces, last=[0])
    assert (answer.status, answer.length, body) == (int(pieces[0][9:12]), length, bytes(5))
    assert answer.excerpt == excerpt or (excerpt is None and len(answer.excerpt) == MAX_HEAD - len(CHUNKED))


def test_a_connection_goes_on_after_an_error_that_was_read_whole() -> None:
    async def main() -> int:
        refused = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 2\r\n\r\nno"
        async with Server([[refused], [OK + b"crops"]]) as server:
            assert [answer.status for answer, _ in await ask(server, 2)] == [503, 200]
            return server.connections

    assert asyncio.run(main()) == 1


NO_ANSWERS = {
    "no HTTP": (b"220 mail.example.org ESMTP\r\n\r\n", "not HTTP/1.1"),
    "HTTP/2": (b"HTTP/2 200\r\n\r\n", "not HTTP/1.1"),
    "no length": (b"HTTP/1.1 200 OK\r\n\r\ncrops", "without a Content-Length"),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "without a Content-Length",
    ),
    "two lengths": (OK.replace(b"\r\n\r\n", b"\r\nContent-Length: 6\r\n\r\n") + b"crops", "sends the Content-Length"),
    "negative": (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "sends the Content-Length"),
    "compressed": (OK.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") + b"crops", "Content-Encoding"),
    "endless head": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD, "bytes of headers"),
    "ends in the head": (b"HTTP/1.1 200 OK\r\nConte", "ends the connection after 22 bytes"),
    "ends in the body": (OK + b"cro", "ends the connection after"),
    "ends at once": (b"", "ends the connection after 0 bytes"),
}


@pytest.mark.parametrize(("answer", "message"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_whole_answer_is_an_error(answer: bytes, message: str) -> None:
    with pytest.raises(HttpError, match=message):
        get(answer, last=[0])


def test_an_answer_that_does_not_grow_is_given_up() -> None:
    never = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"cr")
        await reader.read()  # ends when the client gives up
        never.set()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with Connections(url, None, proxy=None, window=0.05) as connections:
                with pytest.raises(TimeoutError, match="less than 1024 bytes/s"):
                    await connections.get("/", "", memoryview(bytearray(5)))
                await never.wait()

    asyncio.run(main())


def test_a_kept_connection_that_hangs_is_not_tried_again_here() -> None:
    async def main() -> Server:
        async with Server([[OK + b"first"], []]) as server:
            with Connections(server.url, None, proxy=None, window=0.05) as connections:
                into = bytearray(5)
                await connections.get("/0", "", memoryview(into))
                with pytest.raises(TimeoutError, match="less than 1024 bytes/s"):
                    await connections.get("/1", "", memoryview(into))
        return server

    assert asyncio.run(main()).connections == 1


def test_a_proxy_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="socks5://proxy") as caught:
        Connections("https://bucket", None, proxy="socks5://proxy:1080", window=5)
    assert "HTTPS_PROXY" in (caught.value.remedy or "")
