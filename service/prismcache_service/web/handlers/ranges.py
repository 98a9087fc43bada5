"""Decide which bytes of a file a request gets: conditions and ranges of RFC 9110, sections 13 and 14. Without I/O.

The only validator is a strong ETag, the file's SHA-256. No dates are sent, because a date does not identify content; a
date in ``If-Range`` never matches.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers

_RANGES = re.compile(r"bytes=(.*)", re.ASCII | re.IGNORECASE)
_RANGE = re.compile(r"(\d{0,18})-(\d{0,18})", re.ASCII)
_ETAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')


@dataclass(frozen=True)
class Part:
    """The bytes of the file to send, [`start`, `stop`), and the status; `reason` is set if the request is refused."""

    status: HTTPStatus
    start: int = 0
    stop: int = 0
    reason: str = ""


def decide(headers: Headers, *, is_get: bool, size: int, etag: str) -> Part:
    """Return the part of a file that a request asks for.

    Parameters
    ----------
    headers
        The request's headers.
    is_get
        False for HEAD, which ignores ranges.
    size, etag
        The file's size in bytes, and its ETag with quotes.
    """
    if "if-match" in headers and not _matches(headers.getlist("if-match"), etag, weak=False):
        return Part(HTTPStatus.PRECONDITION_FAILED, reason="If-Match names another file")
    if is_known(headers, etag):
        return Part(HTTPStatus.NOT_MODIFIED)
    wanted = headers.getlist("range")
    whole = Part(HTTPStatus.OK, 0, size)
    if not is_get or not wanted or headers.get("if-range", etag).strip() != etag:
        return whole
    specs = _RANGES.fullmatch(", ".join(wanted).strip())
    return _part(specs[1], size) if specs else whole


def is_known(headers: Headers, etag: str) -> bool:
    """Return True if ``If-None-Match`` of a GET or HEAD contains `etag` (with quotes): the client has that content."""
    return "if-none-match" in headers and _matches(headers.getlist("if-none-match"), etag, weak=True)


def _part(specs: str, size: int) -> Part:
    several = [spec.strip() for spec in specs.split(",") if spec.strip()]
    parsed = [_RANGE.fullmatch(spec) for spec in several]
    if not parsed or not all(
        match and match[0] != "-" and (not (match[1] and match[2]) or int(match[1]) <= int(match[2]))
        for match in parsed
    ):
        return Part(HTTPStatus.OK, 0, size)  # RFC 9110: a malformed range is ignored
    if len(several) > 1:
        return Part(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, reason="ask for one range at a time")
    first, last = several[0].split("-")
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= size:
        return Part(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, reason=f"the file has {size} bytes")
    return Part(HTTPStatus.PARTIAL_CONTENT, start, stop)


def _matches(values: list[str], etag: str, *, weak: bool) -> bool:
    """Return True if an ETag is among those of ``If-Match`` (strong comparison) or ``If-None-Match`` (weak)."""
    text = ", ".join(values)
    if text.strip() == "*":
        return True
    return any(found[2] == etag and (weak or not found[1]) for found in _ETAG.finditer(text))
