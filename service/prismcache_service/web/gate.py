"""Middleware that admits or refuses a request: by its headers, token and rate. Handlers check roles."""

from __future__ import annotations

import re
from collections import Counter
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from prismcache.errors import ForbiddenError, PrismError, ServiceBusyError, UnauthorizedError
from prismcache_service.config import ServiceConfig
from prismcache_service.web import dashboard, neuroglancer
from prismcache_service.web.limits import FailedLogins, RateLimiter, network, retry_after
from prismcache_service.web.logs import SHARED
from prismcache_service.web.problems import HttpError, response_to
from prismcache_service.web.tokens import Caller, Role, TokenBook, is_loopback

MAX_HEADER_BYTES = 16 * 1024
MAX_REQUESTS = 1000  # under way at the same time
MAX_REQUESTS_OF_ONE = 400  # of one token; without tokens, of one address
# Paths that need no token: whether the service runs, and how to use it.
PUBLIC = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})

_ZARR = re.compile(r"/v1/crops/[^/]+/[^/]+/zarr/")  # what is read there counts by bytes, not as requests
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Refusal(Exception):  # noqa: N818 - it carries the error
    """An error with the headers of its response."""

    def __init__(self, error: PrismError | HttpError, headers: dict[str, str] | None = None) -> None:
        super().__init__(str(error))
        self.error, self.headers = error, headers or {}


class Gate:
    """Sets ``scope["state"]["caller"]``, or refuses the request."""

    def __init__(self, app: ASGIApp, tokens: TokenBook, config: ServiceConfig) -> None:
        self._app, self._tokens = app, tokens
        self._check_host = not config.insecure
        self._public_host = urlsplit(config.public_url or "").netloc
        self._rates = RateLimiter(config.rate_limit)
        self._failures = FailedLogins(config.failed_auth_limit)
        self._under_way: Counter[str] = Counter()  # by caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            caller = scope.setdefault("state", {})["caller"] = self._admit(scope)
        except Refusal as refusal:
            await response_to(scope, refusal.error, refusal.headers)(scope, receive, send)
            return
        one = caller.name or _address(scope)
        self._under_way[one] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way[one] -= 1
            if not self._under_way[one]:
                del self._under_way[one]

    def _admit(self, scope: Scope) -> Caller:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            detail = f"the headers are larger than {MAX_HEADER_BYTES} bytes"
            too_large = HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
            raise Refusal(too_large, {"Connection": "close"})
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers[name] = b"" if name in headers else value  # a header that is sent twice counts as empty
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy in front may take another of the two to tell where the next request begins.
            both = HttpError(HTTPStatus.BAD_REQUEST, "the headers have both Content-Length and Transfer-Encoding")
            raise Refusal(both, {"Connection": "close"})
        shared = scope["path"].startswith(SHARED)
        if shared and scope["method"] not in {"GET", "HEAD"}:
            raise Refusal(HttpError(HTTPStatus.NOT_FOUND, "there is nothing at this path"))
        if shared and self._tokens.enforced:
            caller = Caller("", None)  # the path is the right to read it
        elif self._tokens.enforced:
            caller = self._authenticate(scope, headers.get(b"authorization"))
        else:
            self._refuse_strangers(scope, headers)
            caller = Caller("", Role.ADMIN)
        if not _is_public(scope["path"]):
            if self._under_way.total() >= MAX_REQUESTS:
                raise Refusal(ServiceBusyError(f"{MAX_REQUESTS} requests are under way"), retry_after(1))
            if self._under_way[caller.name or _address(scope)] >= MAX_REQUESTS_OF_ONE:
                whose = "of this token" if caller.name else "from this address"
                raise Refusal(ServiceBusyError(f"{MAX_REQUESTS_OF_ONE} requests {whose} are under way"), retry_after(1))
        return caller

    def _authenticate(self, scope: Scope, authorization: bytes | None) -> Caller:
        if authorization is None and _is_public(scope["path"]):
            return Caller("", None)
        scheme, _, token = (authorization or b"").decode("latin-1").partition(" ")
        caller = self._tokens.authenticate(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            # Only failures are limited: a valid token from the same address is still accepted.
            if wait := self._failures.note(_address(scope)):
                raise Refusal(ServiceBusyError("too many failed authentications from this address"), retry_after(wait))
            raise Refusal(UnauthorizedError("a token is needed" if authorization is None else "the token is not valid"))
        if not _ZARR.match(scope["path"]) and (wait := self._rates.take(caller.name)):
            raise Refusal(ServiceBusyError("this token sends too many requests a second"), retry_after(wait))
        return caller

    def _refuse_strangers(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse requests that a web page of another site could send through a browser on this machine."""
        try:
            host = urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname or ""
        except ValueError:
            host = ""
        if self._check_host and not is_loopback(host):
            raise Refusal(
                ForbiddenError(
                    "without tokens, requests must be addressed to localhost",
                    remedy="Use http://127.0.0.1, or make tokens with `prismcache token create`.",
                )
            )
        if (site := headers.get(b"sec-fetch-site")) is not None:
            is_foreign = site not in {b"none", b"same-origin"}
        else:  # a browser from before 2023, or no browser
            origin = headers.get(b"origin", b"").decode("latin-1")
            own = {headers.get(b"host", b"").decode("latin-1"), self._public_host}
            is_foreign = bool(origin) and origin.partition("://")[2] not in own
        if is_foreign and scope["method"] not in _SAFE_METHODS:
            raise Refusal(ForbiddenError("without tokens, pages of other sites may change nothing"))


def _address(scope: Scope) -> str:
    """Return the sender's network (see `limits.network`), or "" if unknown."""
    return network(scope["client"][0]) if scope.get("client") else ""


def _is_public(path: str) -> bool:
    return path in PUBLIC or dashboard.is_public_path(path) or neuroglancer.is_public_path(path)
