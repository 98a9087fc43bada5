"""The pages of the dashboard and the files that they load.

A page is public, since it holds no data: its scripts ask the API with the token that the reader pastes.
"""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from string import Template
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse, Response
from starlette.datastructures import QueryParams

from prismcache.errors import RequestError
from prismcache.layout import AXIS_NAMES
from prismcache.numbers import SPLIT_NAME

router = APIRouter(include_in_schema=False)

_PAGES = {"": "Crops", "jobs": "Jobs", "storage": "Storage", "view": "Viewer"}
_TYPES = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_FOLDER = files(__package__) / "static"
_TEMPLATE = Template((_FOLDER / "page.html").read_text(encoding="utf-8"))
_STATIC = {item.name: item.read_bytes() for item in _FOLDER.iterdir() if item.name.rpartition(".")[2] in _TYPES}
# In the address of each file that a page loads, so that browsers keep them until they change.
_VERSION = hashlib.sha256(b"".join(_STATIC[name] for name in sorted(_STATIC))).hexdigest()[:16]
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_IMPORT = re.compile(r'from "\./(\w+\.js)"')


def is_public_path(path: str) -> bool:
    """Return whether a request path is a page of the dashboard or a file that pages load."""
    return path.removeprefix("/") in _PAGES or path.startswith("/static/")


def _modules(script: str) -> set[str]:
    """Return the modules that a script imports. A page names them, so that browsers load all of them at once."""
    found = set(_IMPORT.findall(_STATIC[script].decode()))
    return found.union(*map(_modules, found))


def _requests(query: QueryParams) -> list[str]:
    """Return what the viewer's script will ask for first, so that browsers ask for it while they load the script."""
    split, crop, axis, at = (query.get(name, "") for name in ("split", "crop", "axis", "at"))
    if not (SPLIT_NAME.fullmatch(split) and _NUMBER.fullmatch(crop)):
        return []
    zarr = f"v1/crops/{split}/{crop}/zarr"
    found = ["v1/me", f"{zarr}/.zattrs", f"{zarr}/0/.zarray", f"{zarr}/labels/{split}/0/.zarray"]
    if axis in AXIS_NAMES and _NUMBER.fullmatch(at):
        index = ".".join(at if axis == other else "0" for other in AXIS_NAMES)
        channels = [channel for channel in query.get("c", "0,1,2").split(",") if _NUMBER.fullmatch(channel)]
        found += [f"{zarr}/slices/{axis}/raw/{channel}.{index}" for channel in channels]
        found.append(f"{zarr}/slices/{axis}/labels/{index}")
    return found


def _render(name: str, request: Request) -> HTMLResponse:
    links = "".join(
        f'<a href="{page or "./"}"{" aria-current=page" if page == name else ""}>{title}</a>'
        for page, title in _PAGES.items()
        if page != "view"
    )
    page = _PAGES[name].lower()
    folder, tokens = f"static/{_VERSION}", "needed" if request.app.state.tokens.enforced else ""
    modules = [f"{page}.js", *sorted(_modules(f"{page}.js"))]
    preloads = "".join(f'<link rel="modulepreload" href="{folder}/{each}">' for each in modules)
    if name == "view" and not tokens:  # a browser cannot send a token before the script runs
        preloads += "".join(
            f'<link rel="preload" as="fetch" crossorigin href="{each}">' for each in _requests(request.query_params)
        )
    html = _TEMPLATE.substitute(
        title=_PAGES[name], page=page, links=links, static=folder, preloads=preloads, tokens=tokens
    )
    return HTMLResponse(html, headers=_HEADERS | {"Cache-Control": "no-cache"})


@router.get("/")
async def crops(request: Request) -> HTMLResponse:
    """Return the page that lists the crops."""
    return _render("", request)


@router.get("/jobs")
async def jobs(request: Request) -> HTMLResponse:
    """Return the page that lists the jobs."""
    return _render("jobs", request)


@router.get("/storage")
async def storage(request: Request) -> HTMLResponse:
    """Return the page about the cache folder."""
    return _render("storage", request)


@router.get("/view")
async def view(request: Request) -> HTMLResponse:
    """Return the page that shows one crop, which its query names."""
    return _render("view", request)


@router.get("/static/{version}/{name}")
async def static(version: str, name: Annotated[str, Path(max_length=100)]) -> Response:
    """Return a script, a style sheet or an image of the dashboard; for a page of another version, the present one."""
    if name not in _STATIC:
        raise RequestError("the dashboard has no such file")
    keep = "max-age=31536000, immutable" if version == _VERSION else "no-cache"
    return Response(
        _STATIC[name], headers=_HEADERS | {"Cache-Control": keep}, media_type=_TYPES[name.rpartition(".")[2]]
    )
