"""The plainest S3 client there is: one connection for each request, no retries, nothing forgiven."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from urllib.parse import quote, urlsplit

_CONTENTS = re.compile(r"<Contents>(.*?)</Contents>", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """A whole response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Listed:
    """An object as a listing has it: size in bytes, ETag with its quotes if there are any."""

    size: int
    etag: str


class Exchange:
    """A request whose response's body has not been read; a context manager that closes the connection."""

    def __init__(self, url: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = HTTPConnection(parts.hostname, parts.port, timeout=20)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            self._connection.request(method, target, headers=headers or {})
            self.response: HTTPResponse = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> HTTPResponse:
        return self.response

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self._connection.close()


def request(url: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    """Send a request and read all of its response, whatever its status.

    Raises
    ------
    OSError, http.client.HTTPException
        As the connection breaks: before the headers, or within the body (``IncompleteRead``).
    """
    with Exchange(url, method=method, headers=headers) as response:
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())


def list_objects(endpoint: str, bucket: str, prefix: str) -> dict[str, Listed]:
    """Every object below `prefix`, by key, in the order of the listing; follows its pages."""
    found: dict[str, Listed] = {}
    url = f"{endpoint}/{bucket}?list-type=2&prefix={quote(prefix, safe='')}"
    token = ""
    while True:
        page = request(url + token).body.decode()
        for entry in _CONTENTS.findall(page):
            found[_text(entry, "Key")] = Listed(int(_text(entry, "Size")), _text(entry, "ETag"))
        token = f"&continuation-token={quote(_text(page, 'NextContinuationToken'), safe='')}"
        if token.endswith("="):
            return found


def _text(page: str, element: str) -> str:
    match = re.search(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return html.unescape(match[1]) if match else ""
