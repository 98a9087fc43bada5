"""structlog for people (console) or machines (JSON), on standard error, and one line for each request.

Code that works on a job or a crop binds its name (`bound`), so that every log line within says which. No headers,
query strings or bodies are logged, so no token gets into a log; values named like a secret are replaced all the same.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import sys
import time
from contextlib import AbstractContextManager
from typing import Any, Literal

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import EventDict, Processor

from prismcache.errors import ServiceUnreachableError
from prismcache_service.web.problems import response_to

_SECRET = re.compile(r"token|secret|password|authorization|cookie|credential", re.IGNORECASE)
_TOKEN = re.compile(r"prism_[A-Za-z0-9_-]{8,}|(?i:bearer)\s+[^\s\"']+|(?<=://)[^/@\s:]+:[^/@\s]+(?=@)")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_MAX_PATH = 200
SHARED = "/v1/shared/"
"""Below it the path is a secret: a capability."""
# What machines ask for every few seconds, and pages hundreds of times: lines only where it fails, or at level DEBUG.
_QUIET = re.compile(r"/healthz|/readyz|/metrics|/static/.*|/v1/crops/[^/]+/[^/]+/zarr/.*", re.DOTALL)

_log = structlog.get_logger(__name__)


def bound(**values: Any) -> AbstractContextManager[None]:
    """Return a context manager that adds e.g. ``job=…`` to each log line within it, also of tasks started there."""
    return structlog.contextvars.bound_contextvars(**values)


def audit(action: str, by: str, **values: Any) -> None:
    """Log that the caller `by` (empty without tokens) changed something; the request's id is added."""
    _log.info("audit", action=action, by=by, **values)


def configure(log_format: Literal["console", "json"], level: int = logging.INFO) -> None:
    """Write all logging of this process, structlog's and the standard library's, to standard error."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,  # a later `configure` must change existing loggers too
    )
    renderer: Processor = structlog.processors.JSONRenderer()
    if log_format == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                blot_secrets,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # `RequestLog` logs requests; uvicorn's start and stop messages add nothing.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    for chatty in ("aiobotocore", "botocore", "aiosqlite", "alembic", "asyncio", "sse_starlette"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))


def blot_secrets(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Replace values that are named like a secret or look like a token by "…" (a structlog processor)."""
    for key, value in event.items():
        if _SECRET.search(key) and isinstance(value, str | bytes):
            event[key] = "…"
        elif isinstance(value, str):
            event[key] = _TOKEN.sub("…", value)
    return event


class RequestLog:
    """Middleware: gives each request an id, logs its end, and turns an unexpected error into a bare 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # A proxy in front may have set an id.
        given = (value for name, value in scope["headers"] if name == b"x-request-id" and _REQUEST_ID.fullmatch(value))
        request_id = next(given, b"").decode() or secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status, began = 0, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        with bound(request=request_id):
            try:
                await self._app(scope, receive, noting)
            except asyncio.CancelledError:  # the server cancels requests when a shutdown takes too long
                if status == 0:
                    await response_to(scope, ServiceUnreachableError("the service is shutting down"))(
                        scope, receive, noting
                    )
            except Exception as error:  # noqa: BLE001 - the last line of defence
                await self._unexpected(scope, receive, noting, error, has_begun=status != 0)
            finally:
                _log_end(scope, status, time.perf_counter() - began)

    async def _unexpected(
        self, scope: Scope, receive: Receive, send: Send, error: Exception, *, has_begun: bool
    ) -> None:
        if has_begun:  # the server closes the connection, so that the client sees that the response is incomplete
            _log.warning("response broken off", path=_path(scope), reason=f"{type(error).__name__}: {error}")
            return
        _log.error("unexpected error", path=_path(scope), exc_info=error)
        await response_to(scope, error)(scope, receive, send)


def _path(scope: Scope) -> str:
    """Return the path as sent, percent-encoded: without control characters and query, and without a capability."""
    if SHARED in scope["path"]:  # decoded, since its letters may be sent percent-encoded
        return f"{SHARED}…"
    return (scope.get("raw_path") or b"").decode("latin-1")[:_MAX_PATH]


def _log_end(scope: Scope, status: int, seconds: float) -> None:
    level = logging.DEBUG if status < 400 and _QUIET.fullmatch(scope["path"]) else logging.INFO
    if level == logging.DEBUG and not logging.getLogger(__name__).isEnabledFor(level):
        return  # at a tenth of the cost of a line that structlog drops
    caller = scope["state"].get("caller")
    _log.log(
        level,
        "request",
        method=scope["method"],
        path=_path(scope),
        status=status,
        ms=round(seconds * 1000, 1),
        client=scope["client"][0] if scope.get("client") else "",
        caller=caller.name if caller is not None else "",
    )
