"""Every error as an RFC 9457 problem: prismcache's, HTTP's, failed validation, and unexpected errors."""

from __future__ import annotations

import http
import json
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from prismcache.errors import PrismError, RequestError, ServiceBusyError, UnauthorizedError, UnknownSplitError
from prismcache.schema import Problem

MEDIA_TYPE = "application/problem+json"

# Seconds after which a retry may help, by code. An error that waiting does not change has no entry.
RETRY_AFTER = {
    "busy": 5,
    "source_unreachable": 10,
    "source_changed": 60,
    "storage_error": 10,
    "storage_unwritable": 30,
    "no_space": 30,
    "service_unreachable": 5,
    "engine_unavailable": 30,
}

_SAID_OF_A_FIELD = 200  # characters; field names are the client's own text
_log = structlog.get_logger(__name__)


class HttpError(HTTPException):
    """A refusal that concerns HTTP rather than crops, such as 413 or 416; its code is ``invalid_request``."""

    def __init__(self, status: http.HTTPStatus, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)


def problem_of(error: Exception) -> tuple[Problem, dict[str, str]]:
    """Return an error's problem and the headers that belong to it."""
    if isinstance(error, PrismError):
        problem = error.to_problem()
        headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, UnauthorizedError) else {}
        if problem.code in RETRY_AFTER:
            headers["Retry-After"] = str(RETRY_AFTER[problem.code])
        return problem, headers
    if isinstance(error, HTTPException):
        return _of_http(error), dict(error.headers or {})
    if isinstance(error, RequestValidationError):
        return _of_validation(error.errors()).to_problem(), {}
    # Without the exception's text, which may contain anything. The log has the exception under the request's id.
    return PrismError(
        "the service failed with an unexpected error",
        remedy="Give the request's id to the person who runs the service; the log says more.",
    ).to_problem(), {}


def _of_http(error: HTTPException) -> Problem:
    status = http.HTTPStatus(error.status_code)
    said = {
        http.HTTPStatus.NOT_FOUND: "there is nothing at this path",
        http.HTTPStatus.METHOD_NOT_ALLOWED: "this path does not take this method",
        http.HTTPStatus.BAD_REQUEST: "the body cannot be read as JSON",
    }
    detail = error.detail if isinstance(error, HttpError) else said.get(status, status.phrase)
    return (
        RequestError(detail, remedy="/docs lists the API's paths.")
        .to_problem()
        .model_copy(update={"status": int(status), "title": status.phrase})
    )


def _of_validation(errors: Sequence[Any]) -> RequestError:
    """Return an error that names the first invalid field and the reason, never the value."""
    first = errors[0]
    where, *path = [str(part) for part in first["loc"]] or ["request"]
    if first["type"] == "json_invalid":
        return RequestError("the body is not JSON", remedy="Send one JSON object.")
    if where == "body" and not path:
        return RequestError(
            "the body must be one JSON object", remedy="Send JSON with the header `Content-Type: application/json`."
        )
    if path == ["split"] and first["type"] == "enum":
        return UnknownSplitError(f"{where} field 'split': {_plain(first['msg'])}")
    return RequestError(
        f"{where} field {_plain('.'.join(path))!r}: {_plain(first['msg']).removeprefix('Value error, ')}",
        remedy="See /docs.",
    )


def _plain(text: str) -> str:
    """Return text of the client so that repeating it is safe: short, ASCII, without control characters."""
    return text[:_SAID_OF_A_FIELD].encode("ascii", "backslashreplace").decode()


def response_to(scope: Scope, error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response to a request that failed with `error`; count the failure."""
    problem, more = problem_of(error)
    if "app" in scope:
        scope["app"].state.metrics.request_failed(problem.code)
    state = scope.get("state", {})
    more |= headers or {}
    if not state.get("body_read") and declares_body(scope):
        more["Connection"] = "close"  # else the rest of the body would be read as long as it lasts
    instance = {"instance": f"urn:prismcache:request:{state['request_id']}"} if "request_id" in state else {}
    return Response(json.dumps(problem.model_dump() | instance), problem.status, more, MEDIA_TYPE)


def declares_body(scope: Scope) -> bool:
    """Return True if the request's headers announce a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in scope["headers"]
    )


def install(app: FastAPI) -> None:
    """Turn errors that handlers raise into problems. `logs.RequestLog` handles unexpected errors."""

    async def handle(request: Request, error: Exception) -> Response:
        return response_to(request.scope, error)

    for kind in (PrismError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handle)


def documented(*classes: type[PrismError]) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` of a route that may raise `classes`, besides the errors of every route."""
    found: dict[int | str, dict[str, Any]] = {
        "default": {"description": "Any other problem.", "content": {MEDIA_TYPE: _media()}}
    }
    kinds: tuple[type[PrismError], ...] = (RequestError, UnauthorizedError, ServiceBusyError, *classes)
    for cls in kinds:
        entry = found.setdefault(cls.status, {"description": "", "content": {MEDIA_TYPE: _media()}})
        entry["description"] = "; ".join(filter(None, [entry["description"], f"`{cls.code}`: {cls.title}"]))
        problem = cls(cls.title).to_problem()
        entry["content"][MEDIA_TYPE]["examples"][cls.code] = {"value": problem.model_dump()}
        if cls.code in RETRY_AFTER:
            entry["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return found


def _media() -> dict[str, Any]:
    return {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
