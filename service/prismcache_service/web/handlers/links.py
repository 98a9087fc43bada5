"""``/v1/links`` and ``/v1/shared/…``: links to one crop for viewers, which cannot send tokens."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request, Response, status
from fastapi.responses import RedirectResponse

from prismcache.crop.ngff import ORIGINAL_IDS
from prismcache.errors import CropCorruptError, CropNotCachedError, ForbiddenError, StorageError, UnknownLinkError
from prismcache.links import Link, LinkPage, LinkRequest, MadeLink
from prismcache_service.cache import CropName
from prismcache_service.store import LinkRecord
from prismcache_service.web import neuroglancer
from prismcache_service.web.handlers import zarr
from prismcache_service.web.handlers.dependencies import Crops, Faces, KnownQuery, Links, Requester, SharedLink
from prismcache_service.web.logs import audit
from prismcache_service.web.problems import documented
from prismcache_service.web.public_url import base_url
from prismcache_service.web.tokens import Caller, Role

router = APIRouter(tags=["links"], dependencies=[KnownQuery])

_EXAMPLE = {"a week": {"value": {"split": "instance", "crop": 0, "hours": 168, "note": "for Ada's talk"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = zarr.CONTENT | documented(
    UnknownLinkError, CropNotCachedError, CropCorruptError, StorageError
)


@router.post(
    "/v1/links",
    operation_id="create_link",
    status_code=status.HTTP_201_CREATED,
    summary="Make a link to one crop that needs no token",
    responses=documented(ForbiddenError, CropNotCachedError),
)
async def create(
    body: Annotated[LinkRequest, Body(openapi_examples=_EXAMPLE)],
    links: Links,
    crops: Crops,
    caller: Requester,
    request: Request,
) -> MadeLink:
    """Return the only copy of the link's URLs. A link reads one cached crop; it does not keep the crop cached."""
    await crops.file(CropName(body.split, body.crop))
    made, capability = await links.make(body, caller.name)
    audit("create link", caller.name, crop=f"{made.split.value}/{made.crop}", link=made.id)
    path = f"v1/shared/{capability}"
    url = f"{base_url(request)}/{path}"
    viewer = f"{url}/neuroglancer" if neuroglancer.is_installed() else None
    return MadeLink(**_shown(made), path=path, url=f"{url}/zarr", neuroglancer_url=viewer)


@router.get("/v1/links", operation_id="list_links", summary="Valid links", responses=documented(ForbiddenError))
async def list_links(links: Links, caller: Requester) -> LinkPage:
    """Return the caller's own links, newest first; an admin's list has those of all. Their URLs are not kept."""
    return LinkPage(links=tuple(Link(**_shown(link)) for link in await links.links(_owner(caller))))


@router.delete(
    "/v1/links/{link_id}",
    operation_id="revoke_link",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Revoke a link",
    responses=documented(ForbiddenError, UnknownLinkError),
)
async def revoke(
    link_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9-]{1,64}$", description="The link's id.")],
    links: Links,
    caller: Requester,
) -> None:
    """Refuse the link from now on. An admin may revoke the links of others."""
    link = await links.revoke(link_id, _owner(caller))
    audit("revoke link", caller.name, crop=f"{link.split.value}/{link.crop}", link=link.id)


@router.get(
    "/v1/shared/{capability}/zarr/{key:path}",
    operation_id="read_shared_zarr",
    summary="A linked crop as OME-Zarr (NGFF 0.4, zarr format 2)",
    response_class=Response,
    responses=_RESPONSES,
)
@router.head(
    "/v1/shared/{capability}/zarr/{key:path}",
    operation_id="head_shared_zarr",
    summary="Size of a metadata document or chunk of a linked crop",
    response_class=Response,
    responses=_RESPONSES,
)
async def read(link: SharedLink, key: zarr.Key, faces: Faces, request: Request) -> Response:
    """As `/v1/crops/{split}/{crop}/zarr/{key}`, without a token. A link that has ended or is altered is a 404."""
    return await zarr.respond(request, await faces.face(link.split, link.crop), key, faces, payer=f"link {link.id}")


@router.get(
    "/v1/shared/{capability}/neuroglancer",
    operation_id="open_shared_in_neuroglancer",
    summary="A linked crop in Neuroglancer",
    status_code=status.HTTP_307_TEMPORARY_REDIRECT,
    response_class=RedirectResponse,
    responses=documented(UnknownLinkError, CropNotCachedError, CropCorruptError, StorageError),
)
async def view(link: SharedLink, faces: Faces, request: Request) -> RedirectResponse:
    """Lead a browser to Neuroglancer's page, with the whole state in its address."""
    face = await faces.face(link.split, link.crop)
    attributes, array = [json.loads(face.content[key]) for key in (".zattrs", "0/.zarray")]
    has_labels = f"{ORIGINAL_IDS}/.zgroup" in face.content
    names = attributes["prismcache"]["arrays"]
    arrays = {name: json.loads(face.content[f"{name}/0/.zarray"])["dtype"] for name in names}
    path = f"v1/shared/{request.path_params['capability']}/zarr"
    address = neuroglancer.address(path, attributes, array, arrays, has_labels=has_labels)
    headers = {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}
    return RedirectResponse(f"../../../{address}", headers=headers)


def _owner(caller: Caller) -> str | None:
    """Return whose links the caller may see and revoke: its own (the name), or all (None)."""
    return None if caller.may(Role.ADMIN) else caller.name


def _shown(link: LinkRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(link).items() if name != "sha256"}
