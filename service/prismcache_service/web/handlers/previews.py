"""``/v1/crops/{split}/{crop}/preview.png``: a picture of a cached crop."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from prismcache.errors import CropCorruptError, CropNotCachedError, ForbiddenError, WorkerError
from prismcache_service.web.handlers.dependencies import CropPath, Decimal, KnownQuery, Previews, ReadersOnly, SplitPath
from prismcache_service.web.handlers.ranges import is_known
from prismcache_service.web.problems import documented

MEDIA_TYPE = "image/png"

router = APIRouter(tags=["crops"], dependencies=[KnownQuery, ReadersOnly])

_ETAG = {"ETag": {"description": "Changes with the crop's file and the channel.", "schema": {"type": "string"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture, of at most 512 by 512 pixels.",
        "headers": _ETAG,
        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "`If-None-Match` names this picture."},
    **documented(ForbiddenError, CropNotCachedError, CropCorruptError, WorkerError),
}


@router.get(
    "/v1/crops/{split}/{crop}/preview.png",
    operation_id="preview_crop",
    summary="A picture of a cached crop",
    response_class=Response,
    responses=_RESPONSES,
)
async def preview(
    split: SplitPath,
    crop: CropPath,
    previews: Previews,
    request: Request,
    channel: Annotated[int, Decimal, Query(ge=0, le=9_999, description="The channel that is shown in grey.")] = 0,
) -> Response:
    """The middle slice (X to the right, Y down): a channel in grey, labels in colour. Does not count as use."""
    found = await previews.preview(split, crop, channel, lambda etag: is_known(request.headers, etag))
    headers = {"ETag": found.etag, "Cache-Control": "private, no-cache"}
    if found.png is None:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(found.png, headers=headers, media_type=MEDIA_TYPE)
