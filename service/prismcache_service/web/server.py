"""The process: one uvicorn with one app; it starts, watches its tokens, and ends in time.

Run by ``prismcache serve`` or ``python -m prismcache_service.web.server`` with settings from the environment.
"""

from __future__ import annotations

import asyncio
import asyncio.constants
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections import Counter
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address
from types import FrameType
from typing import Any, ClassVar

import h11
import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from prismcache.errors import ConfigError, PrismError, RequestError
from prismcache_service.config import ServiceConfig
from prismcache_service.web import logs
from prismcache_service.web.app import create_app
from prismcache_service.web.gate import MAX_HEADER_BYTES
from prismcache_service.web.limits import network
from prismcache_service.web.problems import MEDIA_TYPE
from prismcache_service.web.tls import Certificate

HEADER_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 15
MAX_CONNECTIONS = 2000
MAX_CONNECTIONS_OF_ADDRESS = 1000

_REQUESTS_SHARE = 0.4  # of a shutdown's time is for requests under way, the rest for closing what they used
_BACKLOG = 2048
_log = structlog.get_logger(__name__)


def serve(config: ServiceConfig) -> None:
    """Run the service until SIGTERM or SIGINT; SIGHUP reads the tokens again at once.

    Raise `PrismError` with the reason if the service cannot start.
    """
    logs.configure(config.log_format)
    _raise_file_limit()
    # uvicorn leaves asyncio's 60 s, in which a client that is silent has a connection that no limit counts yet.
    asyncio.constants.SSL_HANDSHAKE_TIMEOUT = HEADER_SECONDS  # asyncio reads it anew each time
    app = create_app(config)
    certificate = None if config.tls_cert is None else Certificate(config.tls_cert, config.tls_key or config.tls_cert)
    with contextlib.closing(bind(config.host, config.port)) as listener:
        # Until the loop takes it over, SIGHUP would end the process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        server = Server(app, config, certificate)
        try:
            asyncio.run(_run(app, server, listener, certificate))
        finally:
            server.deadline.cancel()


async def _run(app: FastAPI, server: Server, listener: socket.socket, certificate: Certificate | None) -> None:
    # Entered here and not by uvicorn, so that an error at the start is raised unchanged.
    async with app.router.lifespan_context(app):
        watching = None if certificate is None else asyncio.create_task(certificate.watch())
        await server.serve(sockets=[listener])
        if watching is not None:
            watching.cancel()


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; early clients wait in its queue until the service is ready.

    Raise `ConfigError` if the address cannot be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both)
        # Inherited by every connection. asyncio sets it only on sockets that name their protocol, which this does not;
        # without it each response on a kept connection waits 40 ms for the client's delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            remedy="Choose another PRISMCACHE_HOST or PRISMCACHE_PORT; port 0 takes a free one.",
        ) from None
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if listener.family == socket.AF_INET6 else host}:{port}"


class Server(uvicorn.Server):
    """uvicorn with our limits; open streams and long polls end when the server shuts down.

    Attributes
    ----------
    deadline
        Started with the shutdown; ends the process if the shutdown takes too long. No job is lost by that.
    """

    def __init__(self, app: FastAPI, config: ServiceConfig, certificate: Certificate | None = None) -> None:
        self._app, self._public_url = app, config.public_url
        self.deadline = threading.Timer(config.shutdown_seconds, os._exit, [1])
        self.deadline.daemon = True
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=partial(GuardedProtocol, proxies=config.proxy_networks),  # type: ignore[arg-type]  # called only
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=bool(config.trusted_proxies),  # of others, any client could write any address into them
                forwarded_allow_ips=config.trusted_proxies.split(),
                ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, int(config.shutdown_seconds * _REQUESTS_SHARE)),
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Objects that are loaded by now are never freed. Without `freeze`, each full collection would visit 200,000 of
        # them and stop all responses for 0.1 s.
        gc.collect()
        gc.freeze()
        if threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._app.state.tokens.reload)
        for listener in sockets or []:
            url = url_of(listener, "https" if self.config.is_ssl else "http")
            sys.stderr.write(f"prismcache serves {url}{f' as {self._public_url}' if self._public_url else ''}\n")
            sys.stderr.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        _log.info("stopping")
        self.deadline.start()
        self._app.state.closing.set()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Begin to shut down. Unlike uvicorn's, the signal is not raised again at the end: this is a good exit."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 with a deadline for a request's head, a limit for each address, and refusals as problems.

    Parameters
    ----------
    proxies
        Networks whose connections carry requests of many clients, and are not limited.
    options
        Those of uvicorn's protocol.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _of_address: ClassVar[Counter[str]] = Counter()

    def __init__(self, *, proxies: list[IPv4Network | IPv6Network], **options: Any) -> None:
        super().__init__(**options)
        self._proxies = proxies

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it so
        super().connection_made(transport)
        is_proxy = False
        if self.client is not None:
            address = ip_address(self.client[0])
            address = getattr(address, "ipv4_mapped", None) or address  # of a socket for both families
            self.client = str(address), self.client[1]
            is_proxy = any(address in net for net in self._proxies)
        self._address = network(self.client[0]) if self.client else ""
        self._of_address[self._address] += 1
        if self._of_address[self._address] > MAX_CONNECTIONS_OF_ADDRESS and not is_proxy:
            transport.abort()  # so that one address cannot take all of `MAX_CONNECTIONS`
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()
        self._of_address[self._address] -= 1
        if not self._of_address[self._address]:
            del self._of_address[self._address]
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """Run one timer for the whole head; further bytes do not restart the timer."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watch()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _stop_watch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            problem = RequestError("this is not a valid HTTP request").to_problem()
            body = problem.model_copy(update={"status": 400, "title": "Bad Request"}).model_dump_json().encode()
            headers = [("content-type", MEDIA_TYPE), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _raise_file_limit() -> None:
    """Raise the limit on open files: each connection is one, and the usual limit of 1024 is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 65_536
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, 65_536), hard))


def main() -> None:
    """Serve with settings from the environment; exit with status 1 and the reason on standard error on failure."""
    try:
        serve(ServiceConfig.load())
    except PrismError as error:
        sys.stderr.write(f"error ({error.code}): {error}\n{error.remedy}\n".rstrip() + "\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
