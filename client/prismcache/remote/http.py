"""HTTP to the service: the one module that turns the HTTP library's exceptions and the service's problems into ours.

Redirects are not followed. The token is sent in its own header and appears nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import urllib.request
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from pydantic import BaseModel, ValidationError

from prismcache.config import Settings
from prismcache.errors import (
    ConfigError,
    ForbiddenError,
    ServiceBusyError,
    ServiceError,
    ServiceUnreachableError,
    UnauthorizedError,
    error_from_problem,
)
from prismcache.remote.retry import AttemptFailedError, Patience, parse_retry_after, retrying
from prismcache.schema import Problem

M = TypeVar("M", bound=BaseModel)
Params = Mapping[str, str | int | float]

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 20.0
SIGN_OF_LIFE = 3.0
"""Seconds without any response after which the user is told that the client still tries."""

_BY_STATUS: dict[int, type[ServiceError]] = {401: UnauthorizedError, 403: ForbiddenError, 429: ServiceBusyError}
_UNREACHED = frozenset({502, 503, 504})
_PASSING = _UNREACHED | {429}
"""Statuses that may pass when a proxy in front of the service sends them: the service restarts, or is busy."""

_log = logging.getLogger("prismcache")
_warned: set[str] = set()


class Connection:
    """Requests to one service, with retries; made on the event loop that uses it.

    Parameters
    ----------
    settings
        URL and token.
    transport
        Send requests through this transport instead of the network. It is not closed here.
    patience
        How long to go on trying a service that does not respond.

    Raises
    ------
    ConfigError
        If no URL is set, or the URL or a proxy of the environment cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.url = service_url(settings)
        self.patience = patience or Patience()
        self._has_responded = self._is_silence_said = False
        verify = self.url.startswith("https://")  # making a TLS context takes 70 ms
        with _client_errors(self.url):
            if transport is not None:
                transport = _Borrowed(transport)
            elif is_near(
                self.url
            ):  # a transport of its own, since a client without one takes the proxies of the environment
                transport = httpx2.AsyncHTTPTransport(verify=verify)
            self._client = httpx2.AsyncClient(
                base_url=self.url,
                headers=request_headers(settings),
                transport=transport,
                verify=verify,
                timeout=httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None),
            )

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        params: Params | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float = READ_TIMEOUT,
        patience: Patience | None = None,
        repeatable: bool = True,
    ) -> httpx2.Response:
        """Send a request until there is a response with a status of success; its body has been read.

        Parameters
        ----------
        method, path, body, params, headers
            The request; `body` is sent as JSON without fields that have their default.
        read_timeout
            Seconds that the service may take for each response.
        patience
            Instead of the connection's own.
        repeatable
            Whether the request may be sent again when it may have reached the service.

        Raises
        ------
        PrismError
            The service's problem, or `ServiceUnreachableError`.
        """
        content = None if body is None else body.model_dump_json(exclude_defaults=True)
        headers = {**(headers or {}), **({} if body is None else {"Content-Type": "application/json"})}

        async def attempt() -> httpx2.Response:
            try:
                async with self._open(
                    method, path, read_timeout, content=content, params=params, headers=headers
                ) as response:
                    await response.aread()
                    return response
            except AttemptFailedError as failed:
                failed.may_pass = failed.may_pass and (repeatable or not failed.was_sent)
                if self._has_responded and isinstance(failed.error, ServiceUnreachableError):
                    self._has_responded = False  # it has gone away
                    signs.append(loop.call_later(SIGN_OF_LIFE, self._give_sign_of_life))
                raise

        loop = asyncio.get_running_loop()
        signs = [loop.call_later(SIGN_OF_LIFE, self._give_sign_of_life)]
        try:
            with raised_as_ours():
                return await retrying(patience or self.patience)(attempt)
        finally:
            for sign in signs:
                sign.cancel()

    @asynccontextmanager
    async def stream(
        self, path: str, *, params: Params | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[httpx2.Response]:
        """Open the response to one GET, its body unread; one attempt.

        Raises
        ------
        AttemptFailedError
            If the attempt fails, also while the body is being read.
        """
        async with self._open("GET", path, READ_TIMEOUT, params=params, headers=headers) as response:
            yield response

    async def aclose(self) -> None:
        """Close what was opened here."""
        await self._client.aclose()

    @asynccontextmanager
    async def _open(self, method: str, path: str, read: float, **options: Any) -> AsyncGenerator[httpx2.Response]:
        timeout = httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, pool=None, read=read)
        sign = asyncio.get_running_loop().call_later(SIGN_OF_LIFE, self._give_sign_of_life)
        try:
            with _attempt_errors(self.url):
                async with self._client.stream(method, path, timeout=timeout, **options) as response:
                    sign.cancel()
                    self._has_responded, self._is_silence_said = True, False
                    if not response.is_success:
                        await response.aread()
                        raise failure_of(response, self.url)
                    yield response
        finally:
            sign.cancel()

    def _give_sign_of_life(self) -> None:
        if not self._has_responded and not self._is_silence_said:
            self._is_silence_said = True
            _log.warning("%s: no response yet, trying for %g s", _described(self.url), self.patience.silence)


def read_as(model: type[M], response: httpx2.Response) -> M:
    """Return the body of a response as `model`; unknown fields are ignored.

    Raises
    ------
    ServiceError
        If the body is something else.
    """
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise ServiceError(
            f"{response.request.url.copy_with(query=None)} sent a response that is not a {model.__name__} "
            f"({error.error_count()} faults)",
            remedy="Check that PRISMCACHE_URL is a prismcache service; if it is, update prismcache.",
        ) from None


@contextmanager
def raised_as_ours() -> Iterator[None]:
    """Raise the `PrismError` of a failed attempt in place of the failed attempt."""
    try:
        yield
    except AttemptFailedError as failed:
        raise failed.error from failed.__cause__


def failure_of(response: httpx2.Response, url: str) -> AttemptFailedError:
    """Return the failure that a response without success stands for; its body must have been read.

    Notes
    -----
    A 503 of our own service may be about the bucket or the disk. The service has tried long enough by then, so it does
    not count as an error that may pass.
    """
    retry_after = parse_retry_after(response.headers.get("retry-after"))
    try:
        ours = error_from_problem(Problem.model_validate_json(response.content))
    except ValidationError:
        may_pass = response.status_code in _PASSING
        return AttemptFailedError(_foreign_error(response, url), may_pass=may_pass, retry_after=retry_after)
    may_pass = isinstance(ours, ServiceBusyError | ServiceUnreachableError)
    return AttemptFailedError(ours, may_pass=may_pass, retry_after=retry_after)


def _foreign_error(response: httpx2.Response, url: str) -> ServiceError:
    """Return the error for a response that no prismcache service wrote."""
    if response.has_redirect_location:
        target = response.headers["location"].partition("?")[0]
        return ServiceError(
            f"the service at {url} redirects to {target}, which is not followed",
            remedy="Set PRISMCACHE_URL to the service's own address.",
        )
    said = f"the service at {url} responds with {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in _UNREACHED:
        return ServiceUnreachableError(said)
    return _BY_STATUS.get(response.status_code, ServiceError)(said)


@contextmanager
def _attempt_errors(url: str) -> Iterator[None]:
    """Translate what the HTTP library raises during an attempt."""
    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise ConfigError(f"the service's URL {url} is unusable: {error}", remedy="Change PRISMCACHE_URL.") from None
    except httpx2.TransportError as error:
        reason, was_sent = str(error) or type(error).__name__, not isinstance(error, _UNSENT)
        said = f"{_described(url)} does not respond: {reason}"
        if (remedy := _remedy_of_lasting(error)) is not None:
            raise AttemptFailedError(ServiceUnreachableError(said, remedy=remedy), may_pass=False) from error
        if url.startswith("http://") and isinstance(error, httpx2.RemoteProtocolError):  # a TLS port does so
            remedy = "Check PRISMCACHE_URL: if the service speaks https, the URL has to begin with https://."
        unreachable = ServiceUnreachableError(said, remedy=remedy)
        raise AttemptFailedError(unreachable, may_pass=True, was_sent=was_sent) from error
    except (httpx2.HTTPError, httpx2.StreamError) as error:
        broken = ServiceError(f"{_described(url)} sends no usable response: {error}")
        raise AttemptFailedError(broken, may_pass=False) from error


_NO_ADDRESS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


def _remedy_of_lasting(error: BaseException) -> str | None:
    """Return what to do about a connection that no further attempt can make; None if a further attempt may succeed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "For a certificate of your lab's own, set SSL_CERT_FILE to the certificate of its authority."
        if isinstance(cause, ssl.SSLError) and cause.reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST"}:
            return "Check PRISMCACHE_URL: this port does not speak TLS, so the URL may have to begin with http://."
        if isinstance(cause, socket.gaierror) and cause.errno in _NO_ADDRESS:
            return "Check the host in PRISMCACHE_URL: this machine finds no address for it."
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def _client_errors(url: str) -> Iterator[None]:
    """Translate what the HTTP library raises when a client is made: an unusable URL or proxy."""
    try:
        httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"the service's URL {url} is unusable: {error}", remedy="Change PRISMCACHE_URL.") from None
    try:
        yield
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise ConfigError(
            f"a proxy that the environment sets cannot be used: {error}",
            remedy="Set ALL_PROXY, HTTPS_PROXY and HTTP_PROXY to proxies that begin with http://, or unset them.",
        ) from None


def request_headers(settings: Settings) -> dict[str, str]:
    """Return the headers of every request; log a warning for a token that would travel unencrypted."""
    # With the remark, the service lists crops of all splits; older clients, without it, know two and fail at others.
    headers = {"User-Agent": "prismcache (any split)", "Accept-Encoding": "identity"}
    if settings.token is None:
        return headers
    url = service_url(settings)
    if url.startswith("http://") and not is_loopback(url) and url not in _warned:
        _warned.add(url)
        _log.warning("the token for %s travels unencrypted: use https, or a network that you trust", url)
    return headers | {"Authorization": f"Bearer {settings.token.get_secret_value()}"}


def sync_client(settings: Settings, read_timeout: float) -> httpx2.Client:
    """Return a blocking HTTP client for the service, with the same headers and proxies as `Connection`."""
    url = service_url(settings)
    verify = url.startswith("https://")
    with _client_errors(url):
        transport = httpx2.HTTPTransport(verify=verify) if is_near(url) else None
        headers = request_headers(settings)
        return httpx2.Client(base_url=url, headers=headers, transport=transport, verify=verify, timeout=read_timeout)


def service_url(settings: Settings) -> str:
    """Return the service's URL.

    Raises
    ------
    ConfigError
        If none is set.
    """
    if settings.url is None:
        raise ConfigError("no service is set", remedy="Set PRISMCACHE_URL to your lab's prismcache service.")
    return settings.url


def is_loopback(url: str) -> bool:
    """Return whether the URL's host is this machine.

    Examples
    --------
    >>> is_loopback("http://[::1]:8765"), is_loopback("http://127.0.0.1"), is_loopback("http://prism.lab")
    (True, True, False)
    """
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_near(url: str) -> bool:
    """Return whether the URL's host is this machine or a private address, which no proxy is asked for.

    Examples
    --------
    >>> is_near("http://10.0.0.7:8765"), is_near("http://localhost"), is_near("https://prism.example.org")
    (True, True, False)
    """
    try:
        return ip_address(urlsplit(url).hostname or "").is_private
    except ValueError:
        return is_loopback(url)


def _described(url: str) -> str:
    """Return the service's URL with the proxy that is on the way, if the environment sets one."""
    proxies, parts = urllib.request.getproxies(), urlsplit(url)
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or is_near(url) or urllib.request.proxy_bypass(parts.netloc):
        return f"the service at {url}"
    return f"the service at {url} (through the proxy {proxy.rpartition('@')[2].removeprefix('http://')})"


class _Borrowed(httpx2.AsyncBaseTransport):
    """A transport of the caller, which closing the client leaves open."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await self._transport.handle_async_request(request)
