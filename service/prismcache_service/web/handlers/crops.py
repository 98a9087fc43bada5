"""``/v1/crops``, ``/v1/leases`` and ``/v1/verify``: list, pin, lease, verify and evict crops."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Request, Response, status

from prismcache.errors import (
    CropInUseError,
    CropNotCachedError,
    ForbiddenError,
    UnknownCropError,
    UnknownLeaseError,
)
from prismcache.schema import (
    ClearedQuarantine,
    CropInfo,
    CropPage,
    Lease,
    LeaseRequest,
    RemovedFiles,
    VerifyReport,
    VerifyRequest,
)
from prismcache_service.web.handlers.dependencies import (
    Admin,
    CropPath,
    Crops,
    KnownQuery,
    LeasePath,
    ReadersOnly,
    Requester,
    SplitPath,
    readable,
)
from prismcache_service.web.logs import audit
from prismcache_service.web.problems import documented

router = APIRouter(dependencies=[KnownQuery])

Refresh = Annotated[bool, Query(description="Read the bucket again, even if it was read today.")]


@router.get(
    "/v1/crops",
    operation_id="list_crops",
    summary="List all crops",
    responses=documented(ForbiddenError),
    dependencies=[ReadersOnly],
    tags=["crops"],
)
async def catalog(request: Request, crops: Crops, *, refresh: Refresh = False) -> CropPage:
    """All published or cached crops, by split and number, each with its cached files."""
    return CropPage(crops=readable(request, await crops.catalog(None, refresh=refresh)))


@router.get(
    "/v1/crops/{split}",
    operation_id="list_crops_of_split",
    summary="List the crops of a split",
    responses=documented(ForbiddenError),
    dependencies=[ReadersOnly],
    tags=["crops"],
)
async def catalog_of_split(split: SplitPath, crops: Crops, *, refresh: Refresh = False) -> CropPage:
    """As `/v1/crops`, for one split."""
    return CropPage(crops=tuple(await crops.catalog(split, refresh=refresh)))


@router.get(
    "/v1/crops/{split}/{crop}",
    operation_id="get_crop",
    summary="Get a crop",
    responses=documented(ForbiddenError, UnknownCropError),
    dependencies=[ReadersOnly],
    tags=["crops"],
)
async def describe(split: SplitPath, crop: CropPath, crops: Crops) -> CropInfo:
    """Shape, offset and voxel size as published; files, pin, leases and last use as cached."""
    return await crops.describe(split, crop)


@router.delete(
    "/v1/crops/{split}/{crop}",
    operation_id="evict_crop",
    summary="Delete a crop's cached files",
    responses=documented(ForbiddenError, CropInUseError),
    tags=["crops"],
)
async def evict(split: SplitPath, crop: CropPath, crops: Crops, caller: Admin) -> RemovedFiles:
    """The response lists the deleted files, if any. A pinned or leased crop is not deleted."""
    audit("evict", caller.name, crop=f"{split.value}/{crop}")
    return RemovedFiles(files=tuple(await crops.remove(split, [crop])))


@router.put(
    "/v1/crops/{split}/{crop}/pin",
    operation_id="pin_crop",
    summary="Protect a crop from eviction",
    responses=documented(ForbiddenError, UnknownCropError),
    tags=["crops"],
)
async def pin(split: SplitPath, crop: CropPath, crops: Crops, caller: Admin) -> CropInfo:
    """Pinning again changes nothing. A crop may be pinned before it is cached."""
    audit("pin", caller.name, crop=f"{split.value}/{crop}")
    return await crops.pin(split, crop, caller.name)


@router.delete(
    "/v1/crops/{split}/{crop}/pin",
    operation_id="unpin_crop",
    summary="Allow a crop's eviction again",
    responses=documented(ForbiddenError, UnknownCropError),
    tags=["crops"],
)
async def unpin(split: SplitPath, crop: CropPath, crops: Crops, caller: Admin) -> CropInfo:
    """Unpinning again changes nothing."""
    audit("unpin", caller.name, crop=f"{split.value}/{crop}")
    return await crops.unpin(split, crop)


@router.post(
    "/v1/leases",
    operation_id="create_lease",
    status_code=status.HTTP_201_CREATED,
    summary="Protect crops from eviction while you use them",
    responses=documented(ForbiddenError),
    tags=["leases"],
)
async def lease(
    body: Annotated[
        LeaseRequest, Body(openapi_examples={"two crops": {"value": {"split": "instance", "crops": [0, 5]}}})
    ],
    crops: Crops,
    caller: Requester,
    response: Response,
) -> Lease:
    """Create a retention lease. It ends `seconds` after it was last renewed; renew it six times as often."""
    made = await crops.lease(body, caller.name)
    response.headers["Location"] = f"leases/{made.id}"  # relative, so that it is right behind a proxy too
    return made


@router.put(
    "/v1/leases/{lease_id}",
    operation_id="renew_lease",
    summary="Renew a lease",
    responses=documented(ForbiddenError, UnknownLeaseError),
    tags=["leases"],
)
async def renew(lease_id: LeasePath, crops: Crops, caller: Requester) -> Lease:
    """Only the token that created a lease can renew it."""
    return await crops.renew(lease_id, caller.name)


@router.delete(
    "/v1/leases/{lease_id}",
    operation_id="release_lease",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="End a lease",
    responses=documented(ForbiddenError),
    tags=["leases"],
)
async def release(lease_id: LeasePath, crops: Crops, caller: Requester) -> None:
    """Only the token that created a lease can end it; a lease that has ended already is no error."""
    await crops.release(lease_id, caller.name)


@router.delete(
    "/v1/quarantine",
    operation_id="clear_quarantine",
    summary="Empty the quarantine",
    responses=documented(ForbiddenError),
    tags=["operation"],
)
async def clear_quarantine(crops: Crops, caller: Admin) -> ClearedQuarantine:
    """Delete files that were set aside as corrupt or unknown. They are also deleted after a week, or to make room."""
    audit("clear quarantine", caller.name)
    return await crops.clear_quarantine()


@router.post(
    "/v1/verify",
    operation_id="verify_crops",
    summary="Verify cached files",
    responses=documented(ForbiddenError, CropNotCachedError),
    tags=["operation"],
)
async def verify(request: Request, body: VerifyRequest, crops: Crops, caller: Admin) -> VerifyReport:
    """Read the files and compare them with their manifests, which takes as long as reading all their bytes."""
    named = "all" if body.crops is None else list(body.crops)
    audit("verify", caller.name, split=body.split and body.split.value, crops=named, repair=body.repair)
    return VerifyReport(results=readable(request, await crops.verify(body.split, body.crops, repair=body.repair)))
