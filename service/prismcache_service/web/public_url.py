"""The service's URL as its users write it: behind a proxy that is another one than the service's own."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send


def base_url(request: Request) -> str:
    """Return the service's URL, without a slash at its end: ``PRISMCACHE_PUBLIC_URL``, else as the request names it."""
    return request.app.state.public_url or str(request.base_url).rstrip("/")


class SubPath:
    """Middleware: takes the path of the public URL off a request's path, for proxies that pass it on.

    `public_url` is such as ``https://lab.example/prism``.
    """

    def __init__(self, app: ASGIApp, public_url: str) -> None:
        self._app, self._path = app, urlsplit(public_url).path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(f"{self._path}/"):
            scope = {**scope, "path": scope["path"].removeprefix(self._path)}
        await self._app(scope, receive, send)
