"""HTTP to the service: the one border where the HTTP library's exceptions and the service's problems become ours.

Redirects are not followed. The token goes into a header of its own and nowhere else.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx2
from pydantic import BaseModel, ValidationError

from prismcache.config import Settings
from prismcache.errors import (
    ConfigError,
    ForbiddenError,
    PrismError,
    ServiceBusyError,
    ServiceError,
    ServiceUnreachableError,
    UnauthorizedError,
    error_from_problem,
)
from prismcache.remote.retry import Attempts, Patience, Refusal, next_delay, parse_retry_after, refusal_of
from prismcache.remote.transports import service_at
from prismcache.schema import Problem

M = TypeVar("M", bound=BaseModel)
Params = Mapping[str, str | int | float]

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 20.0
_BY_STATUS: dict[int, type[ServiceError]] = {401: UnauthorizedError, 403: ForbiddenError, 429: ServiceBusyError}
_UNREACHED = frozenset({502, 503, 504})

_log = logging.getLogger("prismcache")
_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer with a status of success."""

    status: int
    headers: httpx2.Headers
    content: bytes
    url: str

    def read(self, model: type[M]) -> M:
        """The body as `model`; unknown fields are ignored.

        Raises
        ------
        ServiceError
            If it is something else.
        """
        try:
            return model.model_validate_json(self.content)
        except ValidationError as error:
            raise ServiceError(
                f"{self.url} gave an answer that is no {model.__name__} ({error.error_count()} faults)",
                remedy="Check that PRISMCACHE_URL is a prismcache service; if it is, update prismcache.",
            ) from None


class Connection:
    """Requests to one service, with retries; made on the event loop that uses it.

    Parameters
    ----------
    settings
        URL and token.
    transport
        Send through this instead of the network. It remains yours: it is not closed here.
    patience
        How long to go on asking a service that does not answer.
    clock, draw
        Steady seconds, and random numbers of [0, 1).
    """

    def __init__(
        self,
        settings: Settings,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.url = service_url(settings)
        self._patience = patience or Patience()
        self._clock = clock
        self._draw = draw
        if transport is None and (service := service_at(self.url)) is not None:
            transport = service.for_async
        with foreign_errors(self.url):
            self._client = httpx2.AsyncClient(
                base_url=self.url,
                headers=request_headers(settings),
                transport=None if transport is None else _Borrowed(transport),
                verify=self.url.startswith("https://"),  # making a TLS context takes 70 ms
                timeout=httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None),
            )

    async def ask(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float = READ_TIMEOUT,
        patience: Patience | None = None,
    ) -> Answer:
        """Send a request until it is answered.

        Parameters
        ----------
        method, path, body, params, headers
            The request; `body` is sent as JSON without what is unset.
        read_timeout
            Seconds that the service may take to answer.
        patience
            Instead of the connection's own.

        Raises
        ------
        PrismError
            What the service says is wrong, or `ServiceUnreachableError`.
        """
        content = None if body is None else body.model_dump_json(exclude_defaults=True)
        headers = {**(headers or {}), **({} if body is None else {"Content-Type": "application/json"})}
        attempts = Attempts()
        while True:
            try:
                async with self._open(
                    method, path, read_timeout, content=content, params=params, headers=headers
                ) as it:
                    return Answer(it.status_code, it.headers, await it.aread(), f"{self.url}{path}")
            except _RefusedError as refused:
                attempts = await self.pause(attempts, refused.refusal, patience)

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Params | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[httpx2.Response]:
        """The answer to one GET, its body unread; one attempt.

        Raises
        ------
        PrismError
            As `ask`; also for what breaks while the body is being read.
        """
        try:
            async with self._open("GET", path, READ_TIMEOUT, params=params, headers=headers) as response:
                yield response
        except _RefusedError as refused:
            raise StreamRefusedError(refused.refusal) from refused.refusal.error

    async def pause(self, attempts: Attempts, refusal: Refusal, patience: Patience | None = None) -> Attempts:
        """Wait before the next attempt; raises the refusal's error once patience has ended."""
        now = self._clock()
        attempts = attempts.after(refusal, now)
        delay = next_delay(attempts, refusal, patience or self._patience, now, self._draw)
        if delay is None:
            raise refusal.error
        _log.debug("%s: asking again in %.1f s", refusal.error, delay)
        await anyio.sleep(delay)
        return attempts

    async def aclose(self) -> None:
        """Close what was opened here."""
        await self._client.aclose()

    @asynccontextmanager
    async def _open(self, method: str, path: str, read: float, **options: Any) -> AsyncGenerator[httpx2.Response]:
        timeout = httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None, read=read)
        with foreign_errors(self.url):
            async with self._client.stream(method, path, timeout=timeout, **options) as response:
                if not response.is_success:
                    await response.aread()
                    raise _RefusedError(read_refusal(response, self.url))
                yield response


class _RefusedError(Exception):
    """One attempt that failed, on its way to who decides about the next."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal.error))
        self.refusal = refusal


class StreamRefusedError(_RefusedError):
    """The same, for callers of `Connection.stream`, which have a loop of their own."""


@contextmanager
def foreign_errors(url: str) -> Iterator[None]:
    """Translate the HTTP library's exceptions."""
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise ConfigError(f"the service's URL {url} is unusable: {error}", remedy="Change PRISMCACHE_URL.") from None
    except httpx2.TransportError as error:
        reason = str(error) or type(error).__name__
        unreachable = ServiceUnreachableError(f"the service at {url} gives no answer: {reason}")
        raise _RefusedError(Refusal(unreachable, passing=True)) from error
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        broken = ServiceError(f"the service at {url} gives no usable answer: {error}")
        raise _RefusedError(Refusal(broken, passing=False)) from error


def read_refusal(response: httpx2.Response, url: str) -> Refusal:
    """What an answer without success means; its body must have been read."""
    retry_after = parse_retry_after(response.headers.get("retry-after"))
    try:
        error: PrismError = error_from_problem(Problem.model_validate_json(response.content))
        is_ours = True
    except ValidationError:
        error, is_ours = _unexplained(response, url), False
    return refusal_of(response.status_code, error, is_ours=is_ours, retry_after=retry_after)


def _unexplained(response: httpx2.Response, url: str) -> ServiceError:
    """The error for an answer that no prismcache service wrote."""
    if response.has_redirect_location:
        target = response.headers["location"].partition("?")[0]
        return ServiceError(
            f"the service at {url} redirects to {target}, which is not followed",
            remedy="Set PRISMCACHE_URL to where the service really is.",
        )
    said = f"the service at {url} answers {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in _UNREACHED:
        return ServiceUnreachableError(said)
    kind = _BY_STATUS.get(response.status_code, ServiceError)
    return (
        kind(said) if kind.default_remedy else kind(said, remedy="Check that PRISMCACHE_URL is a prismcache service.")
    )


def request_headers(settings: Settings) -> dict[str, str]:
    """The headers of every request; warns of a token that travels in the clear."""
    headers = {"User-Agent": "prismcache", "Accept-Encoding": "identity"}
    if settings.token is None:
        return headers
    url = service_url(settings)
    if url.startswith("http://") and not is_loopback(url) and url not in _warned:
        _warned.add(url)
        _log.warning("the token for %s travels unencrypted: use https, or a network that you trust", url)
    return headers | {"Authorization": f"Bearer {settings.token.get_secret_value()}"}


def service_url(settings: Settings) -> str:
    """The service's URL.

    Raises
    ------
    ConfigError
        If none is set.
    """
    if settings.url is None:
        raise ConfigError("no service is set", remedy="Set PRISMCACHE_URL to your lab's prismcache service.")
    return settings.url


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine.

    Examples
    --------
    >>> is_loopback("http://[::1]:8765"), is_loopback("http://127.0.0.1"), is_loopback("http://prism.lab")
    (True, True, False)
    """
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", ".invalid"))


class _Borrowed(httpx2.AsyncBaseTransport):
    """Somebody else's transport, which closing the client leaves open."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._transport.handle_async_request(request)
