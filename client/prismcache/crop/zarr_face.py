"""A cached crop as a zarr hierarchy, without a copy: OME-NGFF 0.4 over zarr format 2.

HDF5 deflates a chunk to a zlib stream (RFC 1950), which is what a zarr v2 chunk with the compressor ``zlib`` is. So
each chunk of the hierarchy is a range of bytes of the cached file, and only the small metadata documents are made here.

======================  ==================================================================================
key                     content
======================  ==================================================================================
``.zgroup``             group, zarr format 2
``.zattrs``             ``multiscales`` with one scale, ``omero`` channels, ``prismcache`` provenance
``0/c.z.y.x``           raw, (C, Z, Y, X) uint8, one channel a chunk
``labels/SPLIT/0/z.y.x``  labels, (Z, Y, X) uint32, consecutive ids
``labels_ids/0``        (n+1,) uint64, the id in the source of each consecutive label
``0/.chunks``           where the chunks lie in the file: (chunks, 2) uint64, offset and size in bytes, in C order of
                        the grid; size 0 where none was written. For viewers that fetch many chunks with one range
                        request; likewise ``labels/SPLIT/0/.chunks``
``all_channels/…``      an image group of its own: raw with all channels in each chunk, uncompressed
``original_ids/…``      a group of its own: labels with the ids of the source, (Z, Y, X) uint64
======================  ==================================================================================

A chunk that was never written has no key: its voxels are zarr's fill value, 0. The last two groups are for
Neuroglancer, which mixes only channels that lie in one chunk. Their chunks are made when they are read, and are not
listed.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prismcache.crop import ngff
from prismcache.crop.chunks import ChunkTable, chunk_table
from prismcache.crop.voxels import OpenCrop
from prismcache.errors import CropCorruptError, CropNotCachedError, RequestError, StorageError
from prismcache.layout import LABELS_IDS

if TYPE_CHECKING:
    import h5py

RAW = "0"
_ZLIB = {"id": "zlib", "level": 1}  # readers need the name only; the level is that of the writer
_INDEX = re.compile(r"\d{1,9}(?:[./]\d{1,9})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a cached file: `offset` of the first and `size`, both in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Made:
    """A chunk that is made of others: where they lie in the file (None: never written), and what is done with them."""

    spans: tuple[Span | None, ...]
    make: Callable[[Sequence[bytes | None]], bytes]


class ZarrFace:
    """The keys of a crop's zarr hierarchy, and the bytes or the place of each. Read only; safe to use in threads.

    Parameters
    ----------
    crop
        A `prismcache.Crop`; it is read now, and may be closed afterwards.

    Raises
    ------
    PrismError
        As `prismcache.Crop` raises them, if the file cannot be opened.
    RequestError
        If a dataset is not stored in gzip chunks, as in files that other programs wrote.
    """

    def __init__(self, crop: OpenCrop) -> None:
        self._path, self._label_dtype = crop.path, crop.labels.dtype
        split, channels = crop.split.value, crop.channels
        raw = [crop.channel(channel) for channel in channels]
        ids = self._ids = crop.labels_ids
        label_image = f"labels/{split}"
        self._tables = {
            RAW: [self._table(dataset) for dataset in raw],
            f"{label_image}/0": [self._table(crop.labels)],
        }
        self._chunk_bytes = math.prod(raw[0].chunks)
        group = {"zarr_format": 2}
        image = {
            "multiscales": [ngff.multiscale(f"{split}/crop_{crop.crop_id}", **_where(raw[0]), has_channels=True)],
            "omero": ngff.omero(channels, _windows(crop)),
        }
        shape = (len(raw), *raw[0].shape)
        documents = {
            ".zgroup": group,
            ".zattrs": {
                **image,
                "prismcache": ngff.origin(split, crop.crop_id, channels, crop.provenance),
            },
            "0/.zarray": _zarray(shape, (1, *raw[0].chunks), "|u1"),
            "0/.zattrs": ngff.place(**_where(raw[0]), has_channels=True),
            "labels/.zgroup": group,
            "labels/.zattrs": {"labels": [split]},
            f"{label_image}/.zgroup": group,
            f"{label_image}/.zattrs": {
                "multiscales": [ngff.multiscale(f"{split} labels", **_where(crop.labels), has_channels=False)],
                "image-label": ngff.image_label(),
            },
            f"{label_image}/0/.zarray": _zarray(crop.labels.shape, crop.labels.chunks, crop.labels.dtype.str),
            f"{label_image}/0/.zattrs": ngff.place(**_where(crop.labels), has_channels=False),
            f"{LABELS_IDS}/.zarray": _zarray(ids.shape, ids.shape, "<u8", compressor=None),
        }
        self._documents = {key: json.dumps(value).encode() for key, value in documents.items()}
        together = _zarray(shape, (len(raw), *raw[0].chunks), "|u1", compressor=None)
        of_source = {"multiscales": [ngff.multiscale(f"{split} ids", **_where(crop.labels), has_channels=False)]}
        unlisted = {
            **{f"{name}/.zgroup": group for name in (ngff.ALL_CHANNELS, ngff.ORIGINAL_IDS)},
            f"{ngff.ALL_CHANNELS}/.zattrs": image,
            f"{ngff.ALL_CHANNELS}/0/.zarray": together,
            f"{ngff.ORIGINAL_IDS}/.zattrs": of_source,
            f"{ngff.ORIGINAL_IDS}/0/.zarray": _zarray(crop.labels.shape, crop.labels.chunks, "<u8"),
        }
        self._unlisted = {key: json.dumps(value).encode() for key, value in unlisted.items()}
        self._documents[f"{LABELS_IDS}/0"] = ids.astype("<u8").tobytes()
        for name, tables in self._tables.items():
            self._documents[f"{name}/.chunks"] = b"".join(table.pairs() for table in tables)

    def get(self, key: str) -> bytes | Span | Made | None:
        """Return the bytes of a key, where or of what they are made, or None if the hierarchy has no such key.

        The index of a chunk may be written with dots, as the metadata says, or with slashes.
        """
        for documents in (self._documents, self._unlisted):
            if key in documents:
                return documents[key]
        for name, tables in self._tables.items():
            if key.startswith(f"{name}/") and _INDEX.fullmatch(index := key.removeprefix(f"{name}/")):
                place = [int(part) for part in re.split(r"[./]", index)]
                return _span(tables, place if name == RAW else [0, *place])
        group, _, index = key.partition("/0/")
        if group in {ngff.ALL_CHANNELS, ngff.ORIGINAL_IDS} and _INDEX.fullmatch(index):
            return self._made(group, [int(part) for part in re.split(r"[./]", index)])
        return None

    def _made(self, group: str, place: list[int]) -> Made | None:
        raw, labels = self._tables.values()
        if group == ngff.ORIGINAL_IDS:
            spans: tuple[Span | None, ...] = (_span(labels, [0, *place]),)
        else:
            spans = tuple(_span(raw, [channel, *place[1:]]) for channel in range(len(raw))) if place[0] == 0 else ()
        make = self._with_original_ids if group == ngff.ORIGINAL_IDS else self._together
        return Made(spans, make) if any(spans) else None

    def _together(self, parts: Sequence[bytes | None]) -> bytes:
        return b"".join(bytes(self._chunk_bytes) if part is None else _inflated(part) for part in parts)

    def _with_original_ids(self, parts: Sequence[bytes | None]) -> bytes:
        import numpy as np

        try:
            import numpy as np  # here, since the embedded client imports this module as it starts

            ids = self._ids[np.frombuffer(_inflated(parts[0] or b""), self._label_dtype)]
        except IndexError as error:
            raise CropCorruptError(f"{self._path}: a label is larger than the table of original ids") from error
        return zlib.compress(ids.astype("<u8").tobytes(), 1)

    def __iter__(self) -> Iterator[str]:
        """Iterate over all keys; those of chunks that were written, with dots."""
        yield from self._documents
        for name, tables in self._tables.items():
            for channel, table in enumerate(tables):
                leading = [channel] if name == RAW else []
                for index in zip(*table.sizes.nonzero(), strict=True):
                    yield f"{name}/{'.'.join(map(str, [*leading, *map(int, index)]))}"

    def _table(self, dataset: h5py.Dataset) -> ChunkTable:
        table = chunk_table(dataset)
        if table is None:
            raise RequestError(
                f"{self._path}: {dataset.name} is not stored in gzip chunks, so it has no zarr face",
                remedy="Fetch the crop with `prismcache ensure`: files that other programs wrote differ.",
            )
        return table


def _inflated(part: bytes) -> bytes:
    try:
        return zlib.decompress(part)
    except zlib.error as error:
        raise CropCorruptError(f"a chunk cannot be inflated: {error}") from error


def _windows(crop: OpenCrop) -> dict[int, tuple[int, int]]:
    """Return the brightness windows of the channels, if facts of the crop lie beside it."""
    try:
        return crop.facts.windows()
    except (CropNotCachedError, CropCorruptError, StorageError):
        return {}


def _where(dataset: h5py.Dataset) -> dict[str, list[int]]:
    return {name: [int(value) for value in dataset.attrs[name]] for name in ("offset", "voxel_size")}


def _zarray(
    shape: Sequence[int], chunks: Sequence[int], dtype: str, compressor: Mapping[str, Any] | None = _ZLIB
) -> dict[str, Any]:
    """Return the metadata of an array, as the specification of zarr format 2 has them."""
    return {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": list(chunks),
        "dtype": dtype,
        "compressor": compressor,
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "dimension_separator": ".",
    }


def _span(tables: Sequence[ChunkTable], index: Sequence[int]) -> Span | None:
    """Return where the chunk at (channel's place, Z, Y, X) of the grid lies; None if there is none."""
    channel, *place = index
    if channel >= len(tables) or len(place) != 3:
        return None
    table = tables[channel]
    if any(number >= extent for number, extent in zip(place, table.sizes.shape, strict=True)):
        return None
    size = int(table.sizes[tuple(place)])
    return Span(int(table.offsets[tuple(place)]), size) if size else None
