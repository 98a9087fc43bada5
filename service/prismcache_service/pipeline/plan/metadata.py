"""A crop's zarr metadata (v2 and v3), read through zarr, as plain frozen values.

Sources: the zarr v2 and v3 core specifications; for the place in the world, see `conventions`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from prismcache.catalog import published
from prismcache.errors import InvalidSourceError
from prismcache.layout import SourceObject
from prismcache.splits import SplitEntry
from prismcache_service.pipeline.bucket.source import Source
from prismcache_service.pipeline.codec import ChunkCodec, codec_of
from prismcache_service.pipeline.plan.conventions import read_place

Shape = tuple[int, ...]
_DOCUMENTS = ("zarr.json", ".zarray", ".zattrs")
_SCALES = ("s0", "0")  # names of the largest array in a group of scales: E11bio's and funlib's, ome-zarr's and bioio's
_MAX_METADATA_BYTES = 1 << 20
_MAX_GRID_CHUNKS = 100_000  # a hundred times the published crops'; planning takes memory and time for each
_MAX_CHANNELS = 10_000  # as many as a request can name


@dataclass(frozen=True)
class ArraySource:
    """One array of a crop.

    `shape` is (C,Z,Y,X) of raw and (Z,Y,X) of others, in voxels. `chunks` is the shape of what one object holds (of a
    shard, where the array is sharded), with all axes as stored. `offset` and `resolution` are as published (nm; Z,Y,X),
    None where the attributes do not say. `has_fill` is false for ``fill_value: null``, zarr v2's "undefined".
    """

    name: str
    shape: Shape
    chunks: Shape
    dtype: np.dtype[Any]
    fill_value: float
    separator: str
    key_prefix: str
    offset: tuple[float, float, float] | None
    resolution: tuple[float, float, float] | None
    codec: ChunkCodec
    has_fill: bool = True

    def key(self, index: Shape) -> str:
        """Return the key of a chunk, below the crop's folder."""
        return f"{self.name}/{self.key_prefix}{self.separator.join(map(str, index))}"

    @property
    def dtype_in_file(self) -> np.dtype[Any]:
        """The dtype of a further array in the crop's file: in this machine's byte order; HDF5 has none for bool."""
        return np.dtype(np.uint8) if self.dtype.kind == "b" else self.dtype.newbyteorder("=")

    @property
    def chunk_bytes(self) -> int:
        """Decoded size of what one object holds."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def inner_bytes(self) -> int:
        """Decoded size of what is decoded at once: a chunk, or an inner chunk of a shard."""
        sharding = self.codec.sharding
        return self.chunk_bytes if sharding is None else math.prod(sharding.inner) * self.dtype.itemsize


@dataclass(frozen=True)
class CropSource:
    """A crop as it was listed: its folder, its objects by key, and its arrays.

    `labels` is None in a split without labels. `arrays` are those that ride along, by the names of their datasets;
    `absent` names those that the catalog lists and this crop lacks.
    """

    folder: str
    objects: Mapping[str, SourceObject]
    raw: ArraySource
    labels: ArraySource | None
    arrays: Mapping[str, ArraySource] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


async def read_crop(
    source: Source, folder: str, objects: Mapping[str, SourceObject], entry: SplitEntry | None = None
) -> CropSource:
    """Read the metadata of a listed crop.

    Parameters
    ----------
    source, folder, objects
        Where the crop lies, and its listing.
    entry
        Names the arrays, and gives voxel size and offset where attributes have none; default: raw and labels.

    Raises
    ------
    InvalidSourceError
        If an array is absent or cannot be a PRISM crop's; names crop, array and numbers.
    SourceCorruptError
        If a listed metadata object cannot be read.
    """
    entry = entry or published()["instance"]
    arrays = dict(zip(entry.datasets, entry.arrays, strict=True))
    names = [name for name in (entry.raw, entry.labels, *entry.arrays) if name]
    documents = await _documents(source, folder, objects, names)

    def found(name: str, ndim: int, *, is_any: bool = False) -> ArraySource:
        array = _array(folder, name, ndim, documents, is_any=is_any)
        return replace(array, offset=array.offset or entry.offset, resolution=array.resolution or entry.resolution)

    there = {own for own, name in arrays.items() if any(key.startswith(f"{name}/") for key in documents)}
    return CropSource(
        folder,
        objects,
        found(entry.raw, 4),
        found(entry.labels, 3) if entry.labels else None,
        {own: found(name, 3, is_any=True) for own, name in arrays.items() if own in there},
        tuple(name for own, name in arrays.items() if own not in there),
    )


async def _documents(
    source: Source, folder: str, objects: Mapping[str, SourceObject], names: Sequence[str]
) -> dict[str, bytes]:
    """Return the metadata documents of some arrays by key, also those of the first scale of a group of scales."""
    scales = ("", *(f"{scale}/" for scale in _SCALES))
    keys = [f"{name}/{scale}{key}" for name in names for scale in scales for key in _DOCUMENTS]
    items = [objects[key] for key in keys if key in objects]
    for item in items:
        if item.size > _MAX_METADATA_BYTES:
            raise InvalidSourceError(f"{folder}: {item.key} has {item.size} bytes, too many for metadata")
    # All at once, each to its end: one after the other would take four times the bucket's latency.
    reading = (source.read_document(folder, item) for item in items)
    documents: dict[str, bytes] = {}
    for item, document in zip(items, await asyncio.gather(*reading, return_exceptions=True), strict=True):
        if isinstance(document, BaseException):
            raise document
        documents[item.key] = document
    return documents


def _array(folder: str, name: str, ndim: int, documents: Mapping[str, bytes], *, is_any: bool = False) -> ArraySource:
    own = {key: documents[f"{name}/{key}"] for key in _DOCUMENTS if f"{name}/{key}" in documents}
    for scale in _SCALES if ".zarray" not in own else ():  # a group of scales, as OME-NGFF has them
        path = f"{name}/{scale}"
        largest = {key: documents[f"{path}/{key}"] for key in _DOCUMENTS if f"{path}/{key}" in documents}
        if largest.keys() & {"zarr.json", ".zarray"}:
            where = f"{folder}: array {path!r}"
            return parse_array(where, path, ndim, largest, _group_attributes(where, own), is_any=is_any)
    where = f"{folder}: array {name!r}"
    if not own.keys() & {"zarr.json", ".zarray"}:
        raise InvalidSourceError(
            f"{where} has no metadata (neither {name}/.zarray nor {name}/zarr.json is listed)",
            remedy="If your lab's catalog names this array, correct it there; else report this to the data's owner.",
        )
    return parse_array(where, name, ndim, own, is_any=is_any)


def _group_attributes(where: str, documents: Mapping[str, bytes]) -> dict[str, Any]:
    for key, document in documents.items():
        _refuse_broken_json(f"{where}: {key} of its group", document)
    if "zarr.json" in documents:
        attributes = json.loads(documents["zarr.json"]).get("attributes", {})
    else:
        attributes = json.loads(documents.get(".zattrs", b"{}"))
    if not isinstance(attributes, dict):
        raise InvalidSourceError(f"{where}: the attributes of its group are not a JSON object")
    attributes.update(attributes.pop("ome", None) or {})  # OME-NGFF 0.5 puts its own there
    return attributes


def parse_array(
    where: str,
    name: str,
    ndim: int,
    documents: Mapping[str, bytes],
    inherited: Mapping[str, Any] | None = None,
    *,
    is_any: bool = False,
) -> ArraySource:
    """Return an array's metadata documents as an `ArraySource`; `where` begins every message.

    `inherited` are attributes of the array's group; they count where the array has none of that name.
    `is_any` allows every number type.

    Raises
    ------
    InvalidSourceError
        If zarr cannot read them, or shape, dtype or attributes cannot be a PRISM crop's.
    """
    for key, document in documents.items():
        _refuse_broken_json(f"{where}: {key}", document)
    try:
        store = MemoryStore({key: Buffer.from_bytes(document) for key, document in documents.items()})
        array = zarr.open_array(store, mode="r", zarr_format=3 if "zarr.json" in documents else 2)
        named = {"dimension_names": getattr(array.metadata, "dimension_names", None)}  # of zarr v3
        attributes = {**(inherited or {}), **named, **array.attrs}
        shape, chunks = _checked_shape(where, array, ndim)
        dtype = np.dtype(array.dtype)
        _check_dtype(where, ndim, dtype, is_any=is_any)
    except InvalidSourceError:
        raise
    except Exception as error:  # zarr raises many kinds of errors on broken metadata
        raise InvalidSourceError(f"{where} has metadata that zarr cannot read: {error}") from error
    sample = array.metadata.encode_chunk_key((0,) * len(chunks))
    place = read_place(where, attributes, name.rpartition("/")[2] if inherited else None)
    separator = "/" if "/" in sample.removeprefix("c/") else "."
    return ArraySource(
        name=name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=_fill_value(where, array.fill_value, dtype, is_any=is_any),
        separator=separator,
        key_prefix=f"c{separator}" if sample.startswith("c") else "",
        offset=place.offset,
        resolution=place.voxel_size,
        codec=codec_of(where, array, dtype),
        has_fill=array.metadata.fill_value is not None,
    )


def _refuse_broken_json(what: str, document: bytes) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        parsed = json.loads(document, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidSourceError(f"{what} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidSourceError(f"{what} is not a JSON object")


def _checked_shape(where: str, array: Any, ndim: int) -> tuple[Shape, Shape]:
    shape = tuple(int(n) for n in array.shape)
    chunks = tuple(int(n) for n in (array.shards or array.chunks))
    has_single_axis = ndim == 3 and len(shape) == 4 and shape[0] == chunks[0] == 1  # labels of one channel
    if len(shape) != ndim and not has_single_axis:
        raise InvalidSourceError(f"{where} has {len(shape)} axes {shape}, not {ndim}")
    if min(shape) < 1 or min(chunks) < 1:
        raise InvalidSourceError(f"{where} has an empty shape {shape} or chunk shape {chunks}")
    if ndim == 4 and shape[0] > _MAX_CHANNELS:
        raise InvalidSourceError(f"{where} of shape {shape} has {shape[0]} channels, more than {_MAX_CHANNELS}")
    count = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    if count > _MAX_GRID_CHUNKS:
        raise InvalidSourceError(f"{where} of shape {shape} has {count} chunks {chunks}, more than {_MAX_GRID_CHUNKS}")
    return shape[-3:] if has_single_axis else shape, chunks


def _check_dtype(where: str, ndim: int, dtype: np.dtype[Any], *, is_any: bool) -> None:
    if ndim == 4 and dtype != np.uint8:
        raise InvalidSourceError(f"{where} has dtype {dtype}, not uint8")
    if dtype.kind not in ("biuf" if is_any else "iu"):
        wanted = "a number type" if is_any else "an integer type of 8 to 64 bits"
        raise InvalidSourceError(f"{where} has dtype {dtype}, not {wanted}")


def _fill_value(where: str, value: Any, dtype: np.dtype[Any], *, is_any: bool) -> float:
    if value is None:
        return 0
    if is_any:
        fill: float = value.item()
        return fill
    limits = np.iinfo(dtype)
    if not max(0, int(limits.min)) <= value <= int(limits.max):
        raise InvalidSourceError(f"{where} has fill value {value}, which is negative or does not fit {dtype}")
    return int(value)
