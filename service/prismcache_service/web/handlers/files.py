"""``/v1/crops/{split}/{crop}/file``: download a cached file, whole or in parts, where the folder is not mounted."""

from __future__ import annotations

import base64
import contextlib
import http
import io
import os
import stat
from pathlib import Path, PurePath
from typing import Any

import anyio
from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from prismcache.errors import CropCorruptError, CropNotCachedError, ForbiddenError, StorageError
from prismcache.schema import CropFile, Product
from prismcache_service.cache import CropName, DiskThreads
from prismcache_service.crops import CropService
from prismcache_service.web.handlers.dependencies import Crops, KnownQuery, ReadersOnly, WantedFile
from prismcache_service.web.handlers.ranges import Part, decide
from prismcache_service.web.problems import HttpError, documented

MEDIA_TYPE = "application/octet-stream"  # which generated clients can download
_CHUNK = 512 * 1024  # bytes in memory for each download
_SEND_TIMEOUT_S = 60.0  # a download ends when the client reads nothing for so long
_TRIES = 5

router = APIRouter(tags=["crops"], dependencies=[KnownQuery, ReadersOnly])


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_HEADERS = {
    "ETag": _header("The file's SHA-256, in quotes: a strong validator."),
    "Repr-Digest": _header("The whole file's SHA-256 as RFC 9530 writes it: `sha-256=:…:`."),
    "X-Prismcache-SHA256": _header("The same in hexadecimal."),
    "Content-Disposition": _header("The file's name."),
}
_BINARY = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "headers": _HEADERS, "content": _BINARY},
    206: {"description": "The range asked for.", "headers": _HEADERS, "content": _BINARY},
    304: {"description": "`If-None-Match` names this file."},
    412: {"description": "`If-Match` names another file."},
    416: {"description": "The range lies outside the file, or there is more than one."},
    **documented(ForbiddenError, CropNotCachedError, StorageError),
}


@router.get(
    "/v1/crops/{split}/{crop}/file",
    operation_id="download_crop",
    summary="Download a cached crop",
    response_class=Response,
    responses=_RESPONSES,
)
@router.head(
    "/v1/crops/{split}/{crop}/file",
    operation_id="head_crop_file",
    summary="Size and digest of a cached crop",
    response_class=Response,
    responses=_RESPONSES,
)
async def download(
    wanted: WantedFile,
    crops: Crops,
    request: Request,
) -> Response:
    """The file with the channels and context asked for, or with more. Resume with `Range` and `If-Range`."""
    file, opened = await open_crop(crops, wanted)
    headers = headers_of(file)
    part = decide(request.headers, is_get=request.method == "GET", size=file.size, etag=headers["ETag"])
    if part.reason:
        opened.close()
        is_range = part.status is http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        said = {"Content-Range": f"bytes */{file.size}"} if is_range else {"ETag": headers["ETag"]}
        raise HttpError(part.status, part.reason, said)
    return FileResponse(opened, part, file.size, headers, crops.threads)


async def open_crop(crops: CropService, wanted: CropName) -> tuple[CropFile, io.FileIO]:
    """Return a cached file's description and the same file, open.

    The file may be replaced after its manifest is read and before the file is opened. If manifest and file agree, and
    are the same before and after the opening, then the file that was opened is the described one.

    Raises
    ------
    CropNotCachedError
        If the crop is not cached.
    CropCorruptError
        If the file does not match its manifest, or is replaced again and again.
    StorageError
        If the cache folder gives no response.
    """
    before = await crops.file(wanted)
    for _ in range(_TRIES):
        with contextlib.ExitStack() as stack:
            opened = await crops.threads.run(_open, stack, before, crops.local_path(before), undo=stack.close)
            after = await crops.file(wanted)
            if opened is not None and (after.path, after.sha256) == (before.path, before.sha256):
                stack.pop_all()
                return after, opened
        before = after
    raise CropCorruptError(f"{before.path} is replaced again and again")


def _open(stack: contextlib.ExitStack, file: CropFile, path: Path) -> io.FileIO | None:
    """Open the file, which `stack` closes; return None if it does not exist any more, as after an eviction."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CropCorruptError(f"{file.path} cannot be opened: {error.strerror}") from None
    opened = stack.enter_context(io.FileIO(fd))
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
        raise CropCorruptError(f"{file.path} is not a file of {file.size} bytes")
    return opened


def headers_of(file: CropFile) -> dict[str, str]:
    """Return the headers that identify a file's content."""
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return {
        "ETag": f'"{file.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "X-Prismcache-SHA256": file.sha256,
        "Content-Disposition": f'attachment; filename="{PurePath(file.path).name}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        **({"Content-Type": "application/json"} if file.product is Product.FACTS else {}),
    }


class FileResponse(Response):
    """Sends a part of an open file in pieces; always closes the file.

    Parameters
    ----------
    opened
        The file.
    part
        The response's status, and which bytes to send.
    size
        Size of the whole file in bytes.
    headers
        From `headers_of`.
    threads
        Read the pieces.
    """

    def __init__(self, opened: io.FileIO, part: Part, size: int, headers: dict[str, str], threads: DiskThreads) -> None:
        self._opened, self._part, self._threads = opened, part, threads
        self.status_code = part.status
        self.background = None
        self.body = b""
        more = {}
        if part.status is not http.HTTPStatus.NOT_MODIFIED:
            more = {
                "Content-Type": headers.get("Content-Type", MEDIA_TYPE),
                "Content-Length": str(part.stop - part.start),
            }
        if part.status is http.HTTPStatus.PARTIAL_CONTENT:
            more["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
        self.raw_headers = [(k.lower().encode(), v.encode("latin-1")) for k, v in (headers | more).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        with self._opened:
            await send({"type": "http.response.start", "status": int(self.status_code), "headers": self.raw_headers})
            if scope["method"] == "GET":
                await self._send_pieces(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_pieces(self, send: Send) -> None:
        at = self._part.start
        while at < self._part.stop:
            size = min(_CHUNK, self._part.stop - at)
            piece = await self._threads.run(os.pread, self._opened.fileno(), size, at)
            if not piece:
                raise CropCorruptError(f"the file ended at byte {at}")
            with anyio.fail_after(_SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            at += len(piece)
