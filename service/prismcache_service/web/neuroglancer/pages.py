"""The pages and scripts of Neuroglancer's client, and the address that opens one crop in it.

The client of the Python package wants to lie below ``/v/TOKEN/`` and to have a Python server beside it, and makes code
from text. `shim.js`, which is sent before each of its scripts, takes the place of that server and of that code, so that
the page needs no ``unsafe-eval``.
"""

from __future__ import annotations

import json
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter
from fastapi import Path as UrlPath
from fastapi.responses import RedirectResponse, Response

from prismcache_service.web.neuroglancer.state import SERVICE, viewer_state
from prismcache_service.web.problems import HttpError

router = APIRouter(include_in_schema=False)

_FOLDER = "/neuroglancer/"
_PAGE = f"{_FOLDER}v/1/"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "wasm": "application/wasm",
}
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address has a capability in it
    "Cache-Control": "no-cache",
}
_SHIM = (files(__package__) / "shim.js").read_bytes()


def is_installed() -> bool:
    """Return whether the extra ``viewer`` is installed."""
    return bool(_client())


def is_public_path(path: str) -> bool:
    """Return whether a request path is a page or a script of Neuroglancer, which hold no data."""
    return path.startswith(_FOLDER)


def address(
    path: str, attributes: dict[str, Any], array: dict[str, Any], arrays: dict[str, str], *, has_labels: bool
) -> str:
    """Return the address of the page that shows a crop, relative to the service's own address.

    `path` is that of the crop's zarr hierarchy, relative to the service's own address and without a slash at its end;
    `attributes` and `array` are its documents ``.zattrs`` and ``0/.zarray``,
    and `arrays` the zarr dtypes of the further arrays, by name.
    """
    state = viewer_state(f"{SERVICE}{path}", attributes, array, arrays, has_labels=has_labels)
    return f"{_PAGE[1:]}#!{quote(json.dumps(state, separators=(',', ':')), safe='')}"


@cache
def _client() -> dict[str, Path]:
    """Return the files of the client by name. The package is not imported: its own imports take seconds."""
    found = find_spec("neuroglancer")
    folder = Path(found.origin).parent / "static" / "client" if found is not None and found.origin else None
    return {} if folder is None else {path.name: path for path in folder.iterdir() if path.suffix[1:] in _TYPES}


@router.get(_FOLDER)
async def enter() -> RedirectResponse:
    """Lead to the page; browsers keep what follows ``#``."""
    return RedirectResponse("v/1/", headers=_SECURITY)


@router.get(_PAGE + "{name:path}")
def read(name: Annotated[str, UrlPath(max_length=200)]) -> Response:
    """Return the page or a file that it loads."""
    path = _client().get(name or "index.html")
    if path is None:
        reason = "has no such file" if is_installed() else "is not installed: it needs the extra `viewer`"
        raise HttpError(HTTPStatus.NOT_FOUND, f"the service's Neuroglancer {reason}")
    content = path.read_bytes()
    kind = path.suffix[1:]
    return Response(_SHIM + content if kind == "js" else content, headers=_SECURITY, media_type=_TYPES[kind])
