"""Crops exactly as E11 Bio publishes them (layout, chunking, codec, attributes), from a seed, of any size.

The facts are those of the public listing: zarr format 2, separator ``.``, Blosc lz4 level 5 with shuffle, chunk shapes
from zarr v2's automatic chunking, ``raw`` larger than ``labels`` on every side.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.storage import LocalStore

from tests.support.chunking import chunk_key
from tests.support.codecs import ArrayLayout, Compressor
from tests.support.voxels import LabelVoxels, RawVoxels, Shape3, tile_for

BUCKET = "e11bio-prism"
PREFIX = "ls/models/training_data"
RESOLUTION: Shape3 = (400, 168, 168)
"""Voxel of the expanded tissue, nm (Z, Y, X)."""

CROP_COUNT = {"instance": 14, "semantic": 17}
CHANNEL_COUNTS = (18, 12, 10, 11)

Numbers3 = tuple[float, float, float]


@dataclass(frozen=True)
class CropSpec:
    """What one crop in the bucket is; equal specs give equal bytes.

    Attributes
    ----------
    split, crop
        Its name.
    channels
        Number of channels of ``raw``.
    raw_shape, labels_shape
        (Z, Y, X) in voxels.
    raw_offset, labels_offset
        World position of the first voxel, nm (Z, Y, X). Without `labels_offset` the labels lie in the middle of raw.
    resolution
        Voxel size, nm (Z, Y, X).
    raw, labels
        How the arrays are stored.
    consolidated
        Whether the crop has consolidated metadata beside each array's own.
    largest_id
        Bound of the instance ids; None for ids of every size.
    stained
        Whether raw shows where the labels are, bright segments on a dim ground; else it knows nothing of them.
    seed
        Another seed gives other voxels and ids.
    """

    split: Literal["instance", "semantic"] = "instance"
    crop: int = 0
    channels: int = 18
    raw_shape: Shape3 = (32, 100, 96)
    labels_shape: Shape3 = (20, 60, 64)
    raw_offset: Numbers3 = (8000, 33600, 16800)
    labels_offset: Numbers3 | None = None
    resolution: Numbers3 = RESOLUTION
    raw: ArrayLayout = ArrayLayout(dtype="|u1", chunks=(3, 9, 28, 36), attributes=("offset", "resolution"))
    labels: ArrayLayout = ArrayLayout(dtype="<u8", chunks=(7, 25, 30))
    consolidated: bool = False
    largest_id: int | None = None
    stained: bool = False
    seed: int = 0

    @property
    def prefix(self) -> str:
        """Prefix of the crop's objects in the bucket, without a slash at its end."""
        return f"{PREFIX}/{self.split}/crop_{self.crop}.zarr"

    @property
    def raw_array_shape(self) -> tuple[int, int, int, int]:
        """(C, Z, Y, X) in voxels."""
        return (self.channels, *self.raw_shape)

    @property
    def shift(self) -> Shape3:
        """First voxel of the labels in raw, (Z, Y, X)."""
        offset = self.labels_world_offset
        z, y, x = (round((b - a) / r) for a, b, r in zip(self.raw_offset, offset, self.resolution, strict=True))
        return z, y, x

    @property
    def labels_world_offset(self) -> Numbers3:
        """World position of the first labelled voxel, nm (Z, Y, X)."""
        if self.labels_offset is not None:
            return self.labels_offset
        margin = [(a - b) // 2 for a, b in zip(self.raw_shape, self.labels_shape, strict=True)]
        z, y, x = (o + m * r for o, m, r in zip(self.raw_offset, margin, self.resolution, strict=True))
        return z, y, x

    @property
    def tissue(self) -> int:
        """Number of the imaged tissue: semantic crop 0 shows that of instance crop 2."""
        if self.split == "instance":
            return self.crop
        return 2 if self.crop == 0 else 100 + self.crop

    @cached_property
    def keys(self) -> list[str]:
        """Keys of all chunk objects below the crop's folder, metadata not included."""
        raw = [f"raw/{key}" for key in self.raw.object_keys(self.raw_array_shape)]
        return raw + [f"labels/{key}" for key in self.labels.object_keys(self.labels_shape)]

    def with_layout(self, **changes: Any) -> CropSpec:
        """The same crop, with these fields of both arrays' `ArrayLayout` changed."""
        return dataclasses.replace(
            self, raw=dataclasses.replace(self.raw, **changes), labels=dataclasses.replace(self.labels, **changes)
        )


def published_channels(crop: int) -> int:
    """Number of channels of a crop: 18, 12, 10 or 11. Beyond crop 13 nobody has said; taken as 12."""
    if crop < 5:
        return 18
    return {12: 10, 13: 11}.get(crop, 12)


def small_spec(split: Literal["instance", "semantic"] = "instance", crop: int = 0, **changes: Any) -> CropSpec:
    """A crop of a few MB with as many channels as the published one, and several chunks on each axis.

    `changes` are further fields of `CropSpec`. Shapes and chunk shapes differ from crop to crop, as they do in the
    bucket.
    """
    grow = crop % 3
    spec = CropSpec(
        split,
        crop,
        channels=published_channels(crop),
        raw_shape=(30 + 2 * grow, 96 + grow, 92 + 3 * grow),
        labels_shape=(18 + 2 * grow, 58 + 2 * grow, 64 + grow),
    )
    return dataclasses.replace(spec, **changes)


def channel_count_specs() -> list[CropSpec]:
    """Small instance crops, one for each published number of channels: 18, 12, 10 and 11."""
    return [small_spec(crop=crop) for crop in (0, 5, 12, 13)]


def full_size_spec(crop: int = 0, **changes: Any) -> CropSpec:
    """A crop of the size of instance crop 0: 768 and 256 chunk objects, about 2 GB.

    Its ids are ones that the reference program survives: it allocates a table up to the largest.
    """
    spec = CropSpec(
        crop=crop,
        largest_id=1_000_000,
        raw_shape=(300, 650, 650),
        labels_shape=(200, 500, 500),
        raw=ArrayLayout(dtype="|u1", attributes=("offset", "resolution")),
        labels=ArrayLayout(dtype="<u8"),
    )
    return dataclasses.replace(spec, **changes)


def layout_variants() -> dict[str, CropSpec]:
    """Small crops that differ in how they are stored, by a short name; none has absent chunks."""
    spec = small_spec(channels=4)
    compressors: dict[str, Compressor] = {
        f"blosc-{cname}-{shuffle}": Compressor("blosc", 3, cname, shuffle)
        for cname in ("lz4", "zstd")
        for shuffle in ("noshuffle", "shuffle", "bitshuffle")
    }
    compressors |= {name: Compressor(name, 1) for name in ("zlib", "zstd", "gzip", "lz4", "bz2", "none")}
    variants = {f"v2-{name}": spec.with_layout(compressor=compressor) for name, compressor in compressors.items()}
    variants |= {
        "v2-slash": spec.with_layout(separator="/"),
        "v2-fortran": spec.with_layout(order="F"),
        "v2-delta": spec.with_layout(delta=True),
        "v2-consolidated": dataclasses.replace(spec, consolidated=True),
        "v2-automatic-chunks": spec.with_layout(chunks=None),
        "v2-no-fill-value": spec.with_layout(fill_value=None),
    }
    for dtype in (">u8", "<u4", ">u4", "<u2", "|u1", "<i8", "<i4"):
        variants[f"v2-labels-{dtype}"] = dataclasses.replace(spec, labels=dataclasses.replace(spec.labels, dtype=dtype))
    return variants | _v3_variants(spec)


def _v3_variants(spec: CropSpec) -> dict[str, CropSpec]:
    v3 = spec.with_layout(zarr_format=3, separator="/", compressor=Compressor("zstd", 1))
    sharded = dataclasses.replace(
        v3,
        raw=dataclasses.replace(v3.raw, chunks=(1, 8, 32, 32), shards=(2, 16, 64, 64)),
        labels=dataclasses.replace(v3.labels, chunks=(6, 20, 24), shards=(12, 40, 48)),
    )
    return {
        "v3-zstd": v3,
        "v3-dot": v3.with_layout(separator="."),
        "v3-blosc": v3.with_layout(compressor=Compressor()),
        "v3-gzip": v3.with_layout(compressor=Compressor("gzip", 1)),
        "v3-none": v3.with_layout(compressor=Compressor("none")),
        "v3-crc32c": v3.with_layout(checksum=True),
        "v3-fortran": v3.with_layout(order="F"),
        "v3-labels->u8": dataclasses.replace(v3, labels=dataclasses.replace(v3.labels, dtype=">u8")),
        "v3-consolidated": dataclasses.replace(v3, consolidated=True),
        "v3-sharded": sharded,
    }


def crop_folder(bucket_dir: Path, spec: CropSpec) -> Path:
    """The crop's zarr folder below `bucket_dir`, the folder that an S3 server serves as its buckets."""
    return bucket_dir / BUCKET / spec.prefix


def write_crop(bucket_dir: Path, spec: CropSpec) -> Path:
    """Write `spec`'s crop below `bucket_dir`, replacing what is there; memory stays at one row of chunks.

    Returns
    -------
    Path
        The crop's zarr folder.
    """
    folder = crop_folder(bucket_dir, spec)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    zarr.open_group(LocalStore(folder), mode="w", zarr_format=spec.raw.zarr_format)
    (folder / ".zattrs").unlink(missing_ok=True)  # zarr 3 writes an empty one; the published crops have none
    seed = (spec.tissue, spec.seed)
    semantic = spec.split == "semantic"
    raw = RawVoxels(seed, tile_for(spec.raw_shape))
    labels = LabelVoxels(seed, tile_for(spec.labels_shape), np.dtype(spec.labels.dtype), semantic, spec.largest_id)
    array = _create(folder, "raw", spec.raw_array_shape, spec.raw, _attributes(spec, spec.raw_offset))
    _write_raw(array, spec, raw, labels if spec.stained else None)
    array = _create(folder, "labels", spec.labels_shape, spec.labels, _attributes(spec, spec.labels_world_offset))
    for start, stop in _rows(spec.labels_shape[0], spec.labels.object_shape(spec.labels_shape)[0]):
        array[start:stop] = labels.block((start, 0, 0), (stop, *spec.labels_shape[1:]))
    if spec.consolidated:
        with warnings.catch_warnings():  # zarr warns that its v3 specification lacks consolidated metadata
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(LocalStore(folder), zarr_format=spec.raw.zarr_format)
    for name, layout in (("raw", spec.raw), ("labels", spec.labels)):
        for index in layout.absent:
            (folder / name / chunk_key(index, layout.zarr_format, layout.separator)).unlink()
    return folder


def set_attributes(folder: Path, array: Literal["raw", "labels"], attributes: Mapping[str, object]) -> None:
    """Give an array of the zarr v2 crop in `folder` these `attributes` alone, whatever they are (NaN included)."""
    (folder / array / ".zattrs").write_text(json.dumps(dict(attributes), indent=4))


def _attributes(spec: CropSpec, offset: Numbers3) -> dict[str, list[float]]:
    return {"offset": list(offset), "resolution": list(spec.resolution)}


def _create(
    folder: Path, name: str, shape: tuple[int, ...], layout: ArrayLayout, attributes: Mapping[str, list[float]]
) -> zarr.Array[Any]:
    kept: dict[str, Any] = {key: attributes[key] for key in layout.attributes}
    array = zarr.create_array(LocalStore(folder / name), **layout.creation(shape), attributes=kept)
    if not kept and layout.zarr_format == 2:
        (folder / name / ".zattrs").unlink(missing_ok=True)
    return array


def _write_raw(array: zarr.Array[Any], spec: CropSpec, voxels: RawVoxels, stain: LabelVoxels | None) -> None:
    channels, rows, _, _ = spec.raw.object_shape(spec.raw_array_shape)
    for first, last in _rows(spec.channels, channels):
        for start, stop in _rows(spec.raw_shape[0], rows):
            low, high = (start, 0, 0), (stop, *spec.raw_shape[1:])
            block = voxels.block(range(first, last), low, high)
            if stain is not None:
                # A period further on, where only the ids differ: periods before the first cannot be asked for.
                ahead = [period - by for period, by in zip(stain.tile, spec.shift, strict=True)]
                moved = [[at + by for at, by in zip(corner, ahead, strict=True)] for corner in (low, high)]
                block = np.where(stain.block(*moved) == 0, block // 4, block // 2 + 16)
            array[first:last, start:stop] = block


def _rows(extent: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, extent, size):
        yield start, min(start + size, extent)
