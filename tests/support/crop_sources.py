"""Listed crops as the planner sees them, of any shape, without a bucket."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from prismcache.layout import SourceObject
from prismcache_service.pipeline.codec.decode import ChunkCodec
from prismcache_service.pipeline.plan.metadata import ArraySource, CropSource
from tests.support.chunking import grid_indices
from tests.support.voxels import Shape3

RESOLUTION = (400.0, 168.0, 168.0)
"""nm (Z, Y, X)."""

Vector = tuple[float, float, float] | None


def array_source(
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    *,
    offset: Vector = (0.0, 0.0, 0.0),
    resolution: Vector = RESOLUTION,
) -> ArraySource:
    """An uncompressed zarr v2 array: ``raw`` uint8, anything else uint64."""
    dtype = np.dtype("u1" if name == "raw" else "<u8")
    codec = ChunkCodec((), (), dtype, tuple(range(len(shape))))
    return ArraySource(name, shape, chunks, dtype, 0, ".", "", offset, resolution, codec)


def listed_objects(array: ArraySource, size: int | None = None) -> dict[str, SourceObject]:
    """A listing of all of the array's chunks, each of `size` bytes (by default: as large as decoded)."""
    keys = [array.key(index) for index in grid_indices(array.shape, array.chunks)]
    return {key: SourceObject(key=key, size=size or array.chunk_bytes, etag="") for key in keys}


def crop_source(
    raw_shape: tuple[int, int, int, int],
    raw_chunks: tuple[int, int, int, int],
    labels_shape: Shape3,
    labels_chunks: Shape3,
    *,
    shift: Shape3 = (0, 0, 0),
    absent: Collection[str] = (),
    object_bytes: int | None = None,
) -> CropSource:
    """A crop whose labels begin at voxel `shift` of raw (Z, Y, X), all chunks listed but those in `absent`."""
    offset = tuple(s * r for s, r in zip(shift, RESOLUTION, strict=True))
    raw = array_source("raw", raw_shape, raw_chunks)
    labels = array_source("labels", labels_shape, labels_chunks, offset=(offset[0], offset[1], offset[2]))
    objects = listed_objects(raw, object_bytes) | listed_objects(labels, object_bytes)
    kept = {key: item for key, item in objects.items() if key not in absent}
    return CropSource("instance/crop_0.zarr", kept, raw, labels)


def published_crop(*, absent: Collection[str] = ()) -> CropSource:
    """Instance crop 0 as published: 768 chunks of raw, 256 of labels."""
    return crop_source(
        (18, 300, 650, 650),
        (3, 38, 163, 163),
        (200, 500, 500),
        (25, 63, 125),
        shift=(50, 75, 75),
        absent=absent,
        object_bytes=3_000_000,
    )
