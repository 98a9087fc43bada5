"""Read which crops a bucket publishes, their sizes and their place in the world. No chunk is fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from prismcache.catalog import published
from prismcache.errors import SourceError
from prismcache.schema import ArrayInfo, CropInfo, Split
from prismcache.splits import SplitEntry
from prismcache_service.pipeline.bucket.source import Source, crop_of_folder
from prismcache_service.pipeline.plan import CropSource, align, align_beside, read_crop

_AT_ONCE = 8


async def read_published(source: Source, entries: Iterable[SplitEntry] | None = None) -> tuple[CropInfo, ...]:
    """Return every crop of some splits of a source, ordered by split and id.

    Raises
    ------
    SourceError
        If the source cannot be listed. A crop that cannot be read raises nothing and has its `problem` set.
    """
    at_once = asyncio.Semaphore(_AT_ONCE)

    async def describe(entry: SplitEntry, crop: int) -> CropInfo:
        async with at_once:
            return await describe_published(source, entry, crop)

    found: list[tuple[SplitEntry, int]] = []
    for entry in sorted(published().values() if entries is None else entries, key=lambda entry: entry.name):
        ids = [crop_of_folder(folder) for folder in await source.list_folders(entry.folder)]
        found.extend((entry, crop) for crop in sorted(i for i in ids if i is not None))
    return tuple(await asyncio.gather(*(describe(*each) for each in found)))


async def describe_published(source: Source, entry: SplitEntry, crop: int) -> CropInfo:
    """Return one published crop: sizes from its listing, shapes and place from its metadata."""
    folder = entry.crop_folder(crop)
    objects = await source.list_objects(folder)
    listed = CropInfo(
        split=Split(entry.name),
        crop=crop,
        source_bytes=sum(item.size for item in objects.values()),
        source_objects=len(objects),
    )
    try:
        return _with_metadata(listed, await read_crop(source, folder, objects, entry))
    except SourceError as error:
        return listed.model_copy(update={"problem": error.to_problem()})


def _with_metadata(listed: CropInfo, crop: CropSource) -> CropInfo:
    place = align(crop.folder, crop.raw, crop.labels)
    arrays = {name: align_beside(crop.folder, crop.raw, array) for name, array in crop.arrays.items()}
    return listed.model_copy(
        update={
            "raw_shape": crop.raw.shape,
            "labels_shape": None if crop.labels is None else crop.labels.shape,
            "offset": place.offset if place.has_voxel_size else None,
            "voxel_size": place.resolution if place.has_voxel_size else None,
            "arrays": tuple(
                ArrayInfo(
                    name=name,
                    shape=(array.shape[0], array.shape[1], array.shape[2]),
                    dtype=array.dtype_in_file.name,
                    offset=arrays[name].offset if place.has_voxel_size else None,
                )
                for name, array in crop.arrays.items()
            ),
        }
    )
