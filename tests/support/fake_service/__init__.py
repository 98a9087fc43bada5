"""A service with the HTTP API v1 but without a bucket, for tests of whatever talks to a service.

Its files are real and small. Jobs go on when they are looked at, one crop each time, so tests see progress without a
clock. It is served on a free port of this machine.
"""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2
import uvicorn

from prismcache import AsyncPrismClient, PrismClient
from prismcache.schema import Split
from tests.support.fake_service.http import LabApi
from tests.support.fake_service.lab import Lab

PUBLISHED = {(split, crop): ... for split in Split for crop in range(3)}


class FakeService:
    """The service, inside its `with` block.

    Attributes
    ----------
    url, root
        Where it is reached, and its cache folder.
    lab
        What it knows: files, jobs, pins, leases.
    transport
        The service without a network, for an `httpx2` client or for a wrapper that fails.
    """

    def __init__(self, crops: Mapping[tuple[str, int], Any] | None = None, *, token: str | None = None) -> None:
        self._crops = {(Split(split), crop): given for (split, crop), given in (crops or PUBLISHED).items()}
        self._token = token
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="prismcache-")))
        self.root, self._downloads = folder / "root", folder / "downloads"
        self.lab = Lab(self.root, self._crops)
        self.transport = LabApi(self.lab, self._token)
        self.requests = self.transport.requests
        self._stack.enter_context(_Server(self.transport)).listen(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    url: str

    def settings(self, *, mounted: bool = True, **settings: Any) -> dict[str, Any]:
        """Arguments for a client; not `mounted` means that files are downloaded."""
        found: dict[str, Any] = {"url": self.url, "downloads": self._downloads, "token": self._token}
        return found | ({"root": self.root} if mounted else {}) | settings

    def client(self, *, mounted: bool = True, **settings: Any) -> PrismClient:
        return PrismClient(**self.settings(mounted=mounted, **settings))

    def async_client(self, *, mounted: bool = True, **settings: Any) -> AsyncPrismClient:
        return AsyncPrismClient(**self.settings(mounted=mounted, **settings))

    def cache(self, split: str | Split, crop: int) -> Path:
        """Have a crop cached already; return its path."""
        with self.lab.lock:
            return Path(self.lab.make(Split(split), crop).path)

    def hold(self) -> None:
        """Let no job go on until `resume`."""
        self.lab.held = True

    def resume(self) -> None:
        self.lab.held = False

    def forget_jobs(self) -> None:
        """Lose all jobs, as a service does whose database was deleted."""
        with self.lab.lock:
            self.lab.forget_jobs()


class _Server:
    """Serves a transport on a free port, in a thread."""

    def __init__(self, api: LabApi) -> None:
        self._api = api
        self._socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            self._app, log_config=None, lifespan="off", interface="asgi3", timeout_graceful_shutdown=1, ws="none"
        )
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)

    def listen(self, service: FakeService) -> None:
        service.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        url = f"http://service{scope['raw_path'].decode()}?{scope['query_string'].decode()}"
        request = httpx2.Request(scope["method"], url.rstrip("?"), headers=scope["headers"], content=body)
        response = await self._api.handle_async_request(request)
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.headers.raw})
        with suppress(OSError):
            async for data in response.stream:  # type: ignore[union-attr]
                await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
