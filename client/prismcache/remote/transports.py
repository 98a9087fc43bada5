"""Services of this process, by URL: how a client finds `prismcache.testing.InMemoryService` without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

_known: dict[str, InProcess] = {}


class InProcess:
    """The two transports of one service in this process: for `httpx2.AsyncClient` and for `httpx2.Client`."""

    def __init__(self, for_async: httpx2.AsyncBaseTransport, for_sync: httpx2.BaseTransport) -> None:
        self.for_async = for_async
        self.for_sync = for_sync


def register(url: str, service: InProcess) -> None:
    """Have clients of `url` use `service`, in this process."""
    _known[url] = service


def unregister(url: str) -> None:
    """Forget `url`."""
    _known.pop(url, None)


def service_at(url: str) -> InProcess | None:
    """What is registered for `url`."""
    return _known.get(url)
