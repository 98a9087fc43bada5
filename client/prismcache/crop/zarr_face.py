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
``NAME/…``              an image group for each further array, such as ``psd95_output`` of a synapse crop, with a place
                        of its own; the array is ``NAME/0``, (Z, Y, X)
``0/.chunks``           where the chunks lie in the file: (chunks, 2) uint64, offset and size in bytes, in C order of
                        the grid; size 0 where none was written. For viewers that fetch many chunks with one range
                        request; likewise ``labels/SPLIT/0/.chunks``
``all_channels/…``      an image group of its own: raw with all channels in each chunk, uncompressed
``original_ids/…``      a group of its own: labels with the ids of the source, (Z, Y, X) uint64
``slices/AXIS/raw/…``   the array ``0`` in chunks of one slice across z, y or x each, uncompressed; and
``slices/AXIS/labels``  labels likewise, zlib. For viewers that show one slice: it is one small request
======================  ==================================================================================

A chunk that was never written has no key: its voxels are zarr's fill value, 0. Chunks of the last three groups are
made when they are read (`prismcache.crop.made_chunks`), and are not listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from prismcache.crop import ngff
from prismcache.crop.chunks import ChunkTable, Span, chunk_table
from prismcache.crop.made_chunks import Made, of_all_channels, of_one_slice, of_original_ids
from prismcache.crop.voxels import OpenCrop
from prismcache.errors import CropCorruptError, CropNotCachedError, RequestError, StorageError
from prismcache.layout import AXIS_NAMES, LABELS_IDS

if TYPE_CHECKING:
    import h5py

RAW = "0"
_GROUP = {"zarr_format": 2}
_ZLIB = {"id": "zlib", "level": 1}  # readers need the name only; the level is that of the writer
_INDEX = re.compile(r"\d{1,9}(?:[./]\d{1,9})*", re.ASCII)


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
        self._path = crop.path
        self._tables: dict[str, list[ChunkTable]] = {}
        self._documents = {".zgroup": _encoded(_GROUP)}
        self._unlisted: dict[str, bytes] = {}
        self._chunks: dict[str, Callable[[list[int]], Span | Made | None]] = {}  # by the array's name
        self._add_image(crop)
        if crop.has_labels:
            self._add_labels(crop, f"labels/{crop.split.value}")
        for name in crop.arrays:
            self._add_scale(name, f"{crop.split.value}/crop_{crop.crop_id} {name}", crop.array(name))
        for name, tables in self._tables.items():
            self._documents[f"{name}/.chunks"] = b"".join(table.pairs() for table in tables)

    def _add_array(self, name: str, datasets: Sequence[h5py.Dataset], *, has_channels: bool) -> None:
        first = datasets[0]
        leading = [len(datasets)] if has_channels else []
        shape, chunks = (*leading, *first.shape), (*[1] * has_channels, *first.chunks)
        tables = self._tables[name] = [self._table(dataset) for dataset in datasets]
        self._chunks[name] = partial(_of_channel, tables, ChunkTable.span) if has_channels else tables[0].span
        self._documents[f"{name}/.zarray"] = _encoded(_zarray(shape, chunks, first.dtype.str))
        self._documents[f"{name}/.zattrs"] = _encoded(ngff.place(**_where(first), has_channels=has_channels))

    def _add_scale(self, group: str, title: str, dataset: h5py.Dataset, **attributes: Any) -> None:
        self._add_array(f"{group}/0", [dataset], has_channels=False)
        scales = [ngff.multiscale(title, **_where(dataset), has_channels=False)]
        self._documents[f"{group}/.zgroup"] = _encoded(_GROUP)
        self._documents[f"{group}/.zattrs"] = _encoded({"multiscales": scales, **attributes})

    def _add_image(self, crop: OpenCrop) -> None:
        split, channels = crop.split.value, crop.channels
        raw = [crop.channel(channel) for channel in channels]
        image = {
            "multiscales": [ngff.multiscale(f"{split}/crop_{crop.crop_id}", **_where(raw[0]), has_channels=True)],
            "omero": ngff.omero(channels, _windows(crop)),
        }
        self._documents[".zattrs"] = _encoded(image | {"prismcache": ngff.origin(crop, channels)})
        self._add_array(RAW, raw, has_channels=True)
        shape, tables = (len(raw), *raw[0].shape), self._tables[RAW]
        self._add_group(ngff.ALL_CHANNELS, image)
        together = _zarray(shape, (len(raw), *raw[0].chunks), "|u1", compressor=None)
        self._add_made(f"{ngff.ALL_CHANNELS}/0", together, partial(of_all_channels, tables))
        for group in ("slices", *(f"slices/{axis}" for axis in AXIS_NAMES)):
            self._add_group(group, {})
        self._add_slices("raw", shape, "|u1", partial(_of_channel, tables, of_one_slice, deflated=False), None)

    def _add_labels(self, crop: OpenCrop, group: str) -> None:
        labels, ids, split = crop.labels, crop.labels_ids, crop.split.value
        self._add_scale(group, f"{split} labels", labels, **{"image-label": ngff.image_label()})
        self._documents |= {
            "labels/.zgroup": _encoded(_GROUP),
            "labels/.zattrs": _encoded({"labels": [split]}),
            f"{LABELS_IDS}/.zarray": _encoded(_zarray(ids.shape, ids.shape, "<u8", compressor=None)),
            f"{LABELS_IDS}/0": ids.astype("<u8").tobytes(),
        }
        [table] = self._tables[f"{group}/0"]
        of_source = {"multiscales": [ngff.multiscale(f"{split} ids", **_where(labels), has_channels=False)]}
        self._add_group(ngff.ORIGINAL_IDS, of_source)
        originals = _zarray(labels.shape, labels.chunks, "<u8")
        self._add_made(f"{ngff.ORIGINAL_IDS}/0", originals, partial(of_original_ids, table, ids))
        self._add_slices("labels", labels.shape, labels.dtype.str, partial(of_one_slice, table, deflated=True), _ZLIB)

    def _add_slices(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        chunk: Callable[..., Made | None],
        compressor: Mapping[str, Any] | None,
    ) -> None:
        for number, axis in enumerate(AXIS_NAMES):
            chunks = [*[1] * (len(shape) - 3), *shape[-3:]]
            chunks[number - 3] = 1
            array = _zarray(shape, chunks, dtype, compressor)
            self._add_made(f"slices/{axis}/{name}", array, partial(chunk, axis=number))

    def _add_group(self, name: str, attributes: Mapping[str, Any]) -> None:
        self._unlisted |= {f"{name}/.zgroup": _encoded(_GROUP), f"{name}/.zattrs": _encoded(attributes)}

    def _add_made(self, name: str, array: Mapping[str, Any], chunk: Callable[[list[int]], Made | None]) -> None:
        self._unlisted[f"{name}/.zarray"] = _encoded(array)
        self._chunks[name] = chunk

    def get(self, key: str) -> bytes | Span | Made | None:
        """Return the bytes of a key, where or of what they are made, or None if the hierarchy has no such key.

        The index of a chunk may be written with dots, as the metadata says, or with slashes.
        """
        for documents in (self._documents, self._unlisted):
            if key in documents:
                return documents[key]
        for name, chunk in self._chunks.items():
            if key.startswith(f"{name}/") and _INDEX.fullmatch(index := key.removeprefix(f"{name}/")):
                return chunk([int(part) for part in re.split(r"[./]", index)])
        return None

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


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _windows(crop: OpenCrop) -> dict[int, tuple[int, int]]:
    """Return the brightness windows of the channels, if facts of the crop lie beside it."""
    try:
        return crop.facts.windows()
    except (CropNotCachedError, CropCorruptError, RequestError, StorageError):
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


def _of_channel(
    tables: Sequence[ChunkTable], chunk: Callable[..., Span | Made | None], place: list[int], **options: Any
) -> Any:
    """Return a chunk of an array (C, Z, Y, X), whose channels are datasets of their own; `chunk` is given the rest."""
    channel, *rest = place
    return chunk(tables[channel], rest, **options) if channel < len(tables) else None
