"""Compare requests with the catalog, so that no job waits for a crop that is not published."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

from prismcache.errors import PrismError, RequestError, UnknownCropError
from prismcache.schema import NO_CONTEXT, CropInfo, CropProgress, JobRequest, Split, State
from prismcache_service.crops import CatalogService

_REFRESH_S = 60.0  # the bucket is asked for an unknown crop at most this often
_REFRESH_TIMEOUT_S = 5.0


class PublishedCrops:
    """Compares requests with the catalog.

    Parameters
    ----------
    catalog
        Knows the published crops.
    """

    def __init__(self, catalog: CatalogService) -> None:
        self._catalog = catalog
        self._refreshed_at = float("-inf")  # monotonic, in s

    def checked(self, request: JobRequest) -> JobRequest:
        """Return a request that the catalog allows, without context where files have all of raw: without labels.

        Raises
        ------
        UnknownSplitError, RequestError
            If the catalog has no such split, or the split no such product.
        """
        entry = self._catalog.splits.entry(request.split)
        if refusal := entry.refusal(request.product):
            raise RequestError(refusal)
        return request if entry.labels else request.model_copy(update={"context": NO_CONTEXT})

    async def crops_of(self, request: JobRequest) -> list[int]:
        """Return the crops that a request names, each once; all published crops of the split if it names none.

        Raises
        ------
        UnknownCropError
            If the request names none and none is published.
        SourceError
            If the request names none and the bucket cannot be read.
        """
        if request.crops is not None:
            return list(dict.fromkeys(request.crops))
        crops = [info.crop for info in await self._catalog.crops() if info.split == request.split]
        if not crops:
            raise UnknownCropError(f"no crop of split {request.split.value!r} is published")
        return crops

    async def fail_unpublished(self, split: Split, found: Sequence[CropProgress]) -> list[CropProgress]:
        """Return `found` with every crop marked as failed, if the catalog is known and has none of them."""
        missing = {crop.crop for crop in found if not crop.state.is_final}
        catalog = await self._catalog.recall() if missing else ()
        if catalog and missing - _of_split(catalog, split) and monotonic() - self._refreshed_at > _REFRESH_S:
            self._refreshed_at = monotonic()
            try:
                async with asyncio.timeout(_REFRESH_TIMEOUT_S):
                    catalog = await self._catalog.crops(refresh=True)
            except (PrismError, TimeoutError):
                catalog = ()  # the crop may have been published since; the job will find out
        published = _of_split(catalog, split)
        if not catalog or any(crop.state.is_final or crop.crop in published for crop in found):
            return list(found)
        there = f"there are crops {', '.join(map(str, sorted(published)))}" if published else "it has no crop"
        remedy = "`prismcache ls --refresh` or GET /v1/crops?refresh=true lists what is published."
        errors = [
            UnknownCropError(f"crop {crop.crop} of split {split.value!r} is not published: {there}", remedy=remedy)
            for crop in found
        ]
        return [
            crop.model_copy(update={"state": State.FAILED, "problem": error.to_problem()})
            for crop, error in zip(found, errors, strict=True)
        ]


def _of_split(catalog: Sequence[CropInfo], split: Split) -> set[int]:
    return {info.crop for info in catalog if info.split == split}
