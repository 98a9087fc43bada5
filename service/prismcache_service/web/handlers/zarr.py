"""``/v1/crops/{split}/{crop}/zarr/…``: a cached crop as OME-Zarr, for viewers that read by URL."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response

from prismcache.errors import CropCorruptError, CropNotCachedError, ForbiddenError, ServiceBusyError, StorageError
from prismcache_service.crops import FaceService, OpenFace
from prismcache_service.web.handlers.dependencies import CropPath, Faces, KnownQuery, Reader, SplitPath
from prismcache_service.web.handlers.ranges import decide
from prismcache_service.web.problems import HttpError, documented

router = APIRouter(tags=["crops"], dependencies=[KnownQuery])

_DOCUMENTS = (".zgroup", ".zattrs", ".zarray")
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "A metadata document, or a chunk: a zlib stream of voxels.", "content": _BINARY},
    206: {"description": "The range asked for.", "content": _BINARY},
    304: {"description": "`If-None-Match` names this content."},
    412: {"description": "`If-Match` names other content."},
    416: {"description": "The range lies outside the content, or there is more than one."},
}
_RESPONSES = CONTENT | documented(ForbiddenError, CropNotCachedError, CropCorruptError, StorageError)
Key = Annotated[str, Path(max_length=200, description="A zarr key, such as `.zattrs` or `0/0.0.0.0`.")]


@router.get(
    "/v1/crops/{split}/{crop}/zarr/{key:path}",
    operation_id="read_zarr",
    summary="A cached crop as OME-Zarr (NGFF 0.4, zarr format 2)",
    response_class=Response,
    responses=_RESPONSES,
)
@router.head(
    "/v1/crops/{split}/{crop}/zarr/{key:path}",
    operation_id="head_zarr",
    summary="Size of a metadata document or chunk",
    response_class=Response,
    responses=_RESPONSES,
)
async def read(
    split: SplitPath,
    crop: CropPath,
    key: Key,
    faces: Faces,
    caller: Reader,
    request: Request,
) -> Response:
    """Chunks are sent as they lie in the cached file. A chunk that was never written is a 404: its voxels are 0."""
    return await respond(request, await faces.face(split, crop), key, faces, payer=caller.name)


async def respond(request: Request, face: OpenFace, key: str, faces: FaceService, *, payer: str) -> Response:
    """Return the response to a request for one key of a face.

    Parameters
    ----------
    payer
        Whose byte rate the content counts against: a token or a link; empty where there is no limit.
    """
    if payer and request.app.state.zarr_rates.take(payer, 0.0):
        raise ServiceBusyError("this token or link reads too many bytes a second")
    found = face.content.find(key)
    if found is None:
        raise HttpError(HTTPStatus.NOT_FOUND, "the crop's zarr hierarchy has no such key")
    if isinstance(found, bytes) and key.rpartition("/")[2] in _DOCUMENTS:
        # A document has a digest of its own: windows come into it when the crop's facts are made. It is always asked
        # for, since a crop that was fetched anew from a changed source has the same URLs.
        etag, keep, media_type = hashlib.sha256(found).hexdigest(), "no-cache", "application/json"
    else:
        etag, keep, media_type = face.file.sha256, "max-age=600, immutable", "application/octet-stream"
    etag = f'"{etag}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": f"private, {keep}"}
    if decide(request.headers, is_get=True, size=0, etag=etag).status is HTTPStatus.NOT_MODIFIED:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)  # without a look at the file
    content = await faces.read(face, found)
    if payer:
        request.app.state.zarr_rates.take(payer, float(len(content)))
    part = decide(request.headers, is_get=request.method == "GET", size=len(content), etag=etag)
    if part.reason:
        raise HttpError(part.status, part.reason, headers | {"Content-Range": f"bytes */{len(content)}"})
    if part.status is HTTPStatus.PARTIAL_CONTENT:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{len(content)}"
    return Response(content[part.start : part.stop], part.status, headers, media_type)
