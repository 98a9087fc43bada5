"""Connections to one server, kept and used again; through a proxy where one is named."""

from __future__ import annotations

import asyncio
import base64
import ssl
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, unquote, urlsplit

from prismcache.errors import ConfigError
from prismcache_service.pipeline.bucket.http_get import Answer, Connection, HttpError

CONNECT_TIMEOUT_S = 5.0
MIN_BYTES_PER_S = 1024
_PORTS = {"http": 80, "https": 443}
_NEXT_ADDRESS_S = 0.25  # a host's next address is tried after so long (RFC 8305)


class Connections:
    """Asks one server; a context manager that closes what it opened.

    Parameters
    ----------
    server
        ``http://host[:port]`` or ``https://host[:port]``.
    tls
        For https: whose certificates are believed.
    proxy
        ``http://[user:password@]host[:port]``, or None.
    window
        Seconds in which an answer must grow by `MIN_BYTES_PER_S` for each of them; it is given twice as long.

    Raises
    ------
    ConfigError
        If the proxy is of another kind.
    """

    def __init__(self, server: str, tls: ssl.SSLContext | None, *, proxy: str | None, window: float) -> None:
        self._server = urlsplit(server)
        self._tls, self._window = tls, window
        self._proxy = None if proxy is None else _proxy_url(proxy)
        self._idle: list[Connection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            self._idle.pop().transport.abort()

    async def get(self, target: str, headers: str, into: memoryview) -> Answer:
        """GET a target (path and query) of the server; a body of the length of `into` goes there.

        `headers` are lines that end in CRLF.

        Raises
        ------
        OSError, TimeoutError
            If no answer comes, or not all of it.
        """
        if self._proxy is not None and self._tls is None:
            target, headers = self._server.geturl() + target, headers + _credentials(self._proxy)
        request = f"GET {target} HTTP/1.1\r\nHost: {self._server.netloc}\r\n{headers}\r\n".encode()
        while True:
            kept = self._kept()
            connection = kept or await self._connect()
            try:
                answer = await self._ask(connection, request, into)
            except TimeoutError:
                raise  # an OSError too, but a delay: trying again is for the one retry layer above
            except OSError:
                if kept is None or connection.received:
                    raise
                continue  # the other side had given it up
            if connection.reusable:
                self._idle.append(connection)
            return answer

    def _kept(self) -> Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).reusable:
                return connection
        return None

    async def _ask(self, connection: Connection, request: bytes, into: memoryview | None) -> Answer:
        answered = connection.ask(request, into)
        answered.add_done_callback(_retrieve)
        try:
            await self._growing(connection, answered)
            return answered.result()
        finally:
            if not (answered.done() and connection.reusable):
                connection.reusable = False
                connection.transport.abort()
                answered.cancel()

    async def _growing(self, connection: Connection, answered: asyncio.Future[Answer]) -> None:
        """Wait for an answer as long as it grows."""
        before, is_suspect = 0, False
        while not (await asyncio.wait((answered,), timeout=self._window))[0]:
            has_grown = connection.received - before >= MIN_BYTES_PER_S * self._window
            if is_suspect and not has_grown:
                raise TimeoutError(f"less than {MIN_BYTES_PER_S} bytes/s for {self._window:.0f} s")
            is_suspect = not has_grown
            if is_suspect:
                connection.wake_at(1)  # there may be some, fewer than the loop is woken for
            before = connection.received

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        through = self._proxy or self._server
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                Connection,
                through.hostname or "",
                through.port or _PORTS[through.scheme],
                ssl=self._tls if self._proxy is None else None,
                happy_eyeballs_delay=_NEXT_ADDRESS_S,
            )
            if self._proxy is not None and self._tls is not None:
                await self._tunnel(connection, self._proxy, self._tls)
        return connection

    async def _tunnel(self, connection: Connection, proxy: SplitResult, tls: ssl.SSLContext) -> None:
        host = f"{self._server.hostname}:{self._server.port or _PORTS['https']}"
        request = f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{_credentials(proxy)}\r\n".encode()
        answer = await self._ask(connection, request, None)
        if answer.status != 200:
            raise HttpError(f"the proxy {proxy.hostname} answers {answer.status}")
        transport = await asyncio.get_running_loop().start_tls(
            connection.transport, connection, tls, server_hostname=self._server.hostname
        )
        if transport is None:
            raise HttpError(f"the proxy {proxy.hostname} ends the connection")
        connection.transport = transport


def _retrieve(answered: asyncio.Future[Answer]) -> None:
    """Whoever waited may be gone; an error that nobody sees is none."""
    if not answered.cancelled():
        answered.exception()


def _proxy_url(proxy: str) -> SplitResult:
    url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if url.scheme != "http" or not url.hostname:
        raise ConfigError(
            f"a proxy of the kind {url.scheme}://{url.hostname or ''} is not supported",
            remedy="Name an http:// proxy in HTTPS_PROXY and HTTP_PROXY, or the server's host in NO_PROXY.",
        )
    return url


def _credentials(proxy: SplitResult) -> str:
    if proxy.username is None:
        return ""
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
