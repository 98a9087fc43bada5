"""Read which crops a bucket publishes, their sizes and their place in the world. No chunk is fetched."""

from __future__ import annotations

import asyncio

from prismcache.errors import SourceError
from prismcache.schema import CropInfo, Split
from prismcache_service.cache import CropName
from prismcache_service.pipeline.bucket.source import Source, crop_of_folder
from prismcache_service.pipeline.plan import CropSource, align, read_crop

_AT_ONCE = 8


async def read_published(source: Source) -> tuple[CropInfo, ...]:
    """Return every crop that a source publishes, ordered by split and id.

    Raises
    ------
    SourceError
        If the source cannot be listed. A crop that cannot be read raises nothing and has its `problem` set.
    """
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def describe(split: Split, crop: int) -> CropInfo:
        async with at_once:
            return await describe_published(source, split, crop)

    found: list[tuple[Split, int]] = []
    for split in Split:
        ids = [crop_of_folder(folder) for folder in await source.list_folders(split.value)]
        found.extend((split, crop) for crop in sorted(i for i in ids if i is not None))
    return tuple(await asyncio.gather(*(describe(*each) for each in found)))


async def describe_published(source: Source, split: Split, crop: int) -> CropInfo:
    """Return one published crop: sizes from its listing, shapes and place from its metadata."""
    folder = CropName(split, crop).folder
    objects = await source.list_objects(folder)
    listed = CropInfo(
        split=split,
        crop=crop,
        source_bytes=sum(item.size for item in objects.values()),
        source_objects=len(objects),
    )
    try:
        return _with_metadata(listed, await read_crop(source, folder, objects))
    except SourceError as error:
        return listed.model_copy(update={"problem": error.to_problem()})


def _with_metadata(listed: CropInfo, crop: CropSource) -> CropInfo:
    place = align(crop.folder, crop.raw, crop.labels)
    return listed.model_copy(
        update={
            "raw_shape": crop.raw.shape,
            "labels_shape": crop.labels.shape,
            "offset": place.offset if place.has_voxel_size else None,
            "voxel_size": place.resolution if place.has_voxel_size else None,
        }
    )
