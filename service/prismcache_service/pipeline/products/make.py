"""Make a product from a cached crop: open the crop → compute slab by slab → write → sync → hash.

Nothing is published here: `make_product` leaves a complete temporary file. Memory is bounded by the columns that a crop
is read in (`slabs`), and by the tables that have an entry for each label.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from prismcache.crop import Crop
from prismcache.disk import disk_errors, sha256_of
from prismcache.errors import StorageError
from prismcache.layout import FORMAT_VERSION, raw_dataset
from prismcache.schema import Product, Progress
from prismcache_service.pipeline import Report
from prismcache_service.pipeline.codec import encode_row
from prismcache_service.pipeline.products.arrays import (
    BRIGHT,
    Array,
    LabelRuns,
    NearVoxels,
    barcode_labels,
    mean_table,
)
from prismcache_service.pipeline.products.facts import FactsCollector
from prismcache_service.pipeline.products.slabs import CHUNK, Column, SlabReader
from prismcache_service.pipeline.write import SafeFile, check_file

RECIPES: Mapping[Product, str] = {
    Product.UNLABELLED: "unlabelled-1",
    Product.AVG_BARCODES: "avg_barcodes-1",
    Product.FGBG: "fgbg-1",
    Product.BORDER_MASK: "border_mask-1",
    Product.FACTS: "facts-1",
}
"""Versions of the products' definitions: equal recipe and equal crop give equal bytes."""

_REACHES = {Product.FGBG: 3, Product.BORDER_MASK: 30}
"""Limits of distances, in X voxels."""
_SLAB_BYTES = 20 * CHUNK[0]  # a pixel of a column: labels, what is made of them, and raw, of a slab
_DISTANCES_BYTES = 8 * CHUNK[0]  # a pixel of a column: labels of a slab, distances in a plane; and a byte a plane


def make_product(
    crop_path: Path,
    crop_sha256: str,
    product: Product,
    target: Path,
    *,
    mode: int,
    memory_limit: int,
    report: Report = lambda _: None,
) -> tuple[str, int]:
    """Make the file `target` from a cached crop with all its channels; return its SHA-256 and its size in bytes.

    Parameters
    ----------
    crop_path, crop_sha256
        The crop's file, without context, and the SHA-256 that its manifest gives.
    product
        What to make; not ``crop``.
    target
        The temporary file, which must not exist.
    mode
        Permissions of the file.
    memory_limit
        Bytes that this process may have resident.
    report
        Called with the voxels computed so far, in the caller's thread; voxels that are read twice count twice.

    Raises
    ------
    RequestError
        If the crop's split does not have this product.
    CropCorruptError
        If the file is no crop.
    MemoryLimitError
        If the limit is too small; the message gives what is needed.
    StorageError
        If the crop cannot be read, or the disk refuses a write (`NoSpaceError` when it is full).
    """
    try:
        with Crop(crop_path) as crop:
            crop.entry.check_product(product)
            reader = _reader(crop, product, report)
            # Of each label, for each channel: sums, means, and the numbers of a JSON document.
            tables = {Product.AVG_BARCODES: 24 * len(crop.channels), Product.FACTS: 100 * len(crop.channels) + 1000}
            reader.check_memory(memory_limit, tables.get(product, 0) * len(crop.labels_ids))
            about = {
                "crop_id": crop.crop_id,
                "split": str(crop.split),
                "product": product.value,
                "recipe": RECIPES[product],
                "crop_sha256": crop_sha256,
                "format_version": FORMAT_VERSION,
                "prismcache_version": version("prismcache"),
            }
            if product is Product.FACTS:
                _write_json(target, about | _facts(crop, reader), mode)
            else:
                _write_arrays(crop, reader, product, target, about, mode)
    except OSError as error:  # writing raises typed errors only
        raise StorageError(f"{crop_path} cannot be read: {error}") from error
    with disk_errors(target):
        return sha256_of(target), target.stat().st_size


def _write_arrays(
    crop: Crop, reader: SlabReader, product: Product, target: Path, about: Mapping[str, Any], mode: int
) -> None:
    with SafeFile(target, about, mode) as file:
        if product is Product.AVG_BARCODES:
            _write_barcodes(crop, reader, file)
        elif product is Product.UNLABELLED:
            _write_unlabelled(crop, reader, file)
        else:
            _write_near(crop, reader, file, product)
        file.close_file()
        file.sync()
        check_file(target, file.shapes)


def _reader(crop: Crop, product: Product, report: Report) -> SlabReader:
    """Return a reader of the columns that a product is made from, which reports the progress."""
    done, total = 0, math.prod(crop.shape) * (2 if product is Product.AVG_BARCODES else 1)

    def count(voxels: int) -> None:
        nonlocal done
        done += voxels
        report(Progress(voxels_done=done, voxels_total=total))

    count(0)
    if product in _REACHES:
        _, y, x = (-(-_limit(crop, product) // size) for size in crop.voxel_size)
        return SlabReader(crop, (y, x), _DISTANCES_BYTES + crop.shape[0], count)
    # A voxel's kept label depends on its neighbours, and theirs on their neighbours.
    return SlabReader(crop, (2, 2) if product is Product.AVG_BARCODES else (0, 0), _SLAB_BYTES, count)


def _limit(crop: Crop, product: Product) -> int:
    return _REACHES[product] * crop.voxel_size[2]


def _write_unlabelled(crop: Crop, reader: SlabReader, file: SafeFile) -> None:
    _create(file, Product.UNLABELLED.value, crop)
    for column in reader.columns:
        for z, labels in reader.labels(column):
            _write(file, Product.UNLABELLED.value, (labels > 0).view(np.uint8), z, column)


def _write_near(crop: Crop, reader: SlabReader, file: SafeFile, product: Product) -> None:
    """Write `fgbg`: near to bright voxels; or `border_mask`: bright, and near to voxels that are not."""
    is_fgbg = product is Product.FGBG
    measured = np.isin(crop.labels_ids, BRIGHT, invert=not is_fgbg)
    _create(file, product.value, crop)
    for column in reader.columns:
        y, x = (part.stop - part.start for part in column.box)
        near = NearVoxels((crop.shape[0], y, x), _limit(crop, product), crop.voxel_size, with_mask=is_fgbg)
        for z, labels in reader.labels(column):
            for plane, each in enumerate(labels, z):
                near.add(plane, measured[each], column.inner)
        for z in range(0, crop.shape[0], CHUNK[0]):
            _write(file, product.value, near.found(slice(z, z + CHUNK[0])), z, column)


def _write_barcodes(crop: Crop, reader: SlabReader, file: SafeFile) -> None:
    """Write the mean of raw over each label, in two passes: sums first, and then each voxel's mean."""
    number, channels = len(crop.labels_ids), crop.channels
    voxels, sums = np.zeros(number, np.int64), np.zeros((len(channels), number), np.int64)
    for column in reader.columns:
        for z, labels in reader.labels(column):
            planes = [LabelRuns.of(plane) for plane in barcode_labels(labels)[:, *column.inner]]
            voxels += sum(runs.sums_of(runs.lengths, number) for runs in planes)
            for index, raw in enumerate(reader.raw(column, z)):
                sums[index] += sum(runs.sums(plane, number) for runs, plane in zip(planes, raw, strict=True))
    names = [raw_dataset(channel).replace("raw/", "avg_barcodes/") for channel in channels]
    for name in names:
        _create(file, name, crop)
    table = mean_table(sums, voxels)
    for column in reader.columns:
        for z, labels in reader.labels(column):
            places = barcode_labels(labels)[:, *column.inner]
            for name, means in zip(names, table, strict=True):
                _write(file, name, means[places], z, column)


def _facts(crop: Crop, reader: SlabReader) -> dict[str, Any]:
    collector = FactsCollector(crop.labels_ids, crop.channels)
    for column in reader.columns:
        for z, slab in reader.labels(column):
            planes = [LabelRuns.of(plane) for plane in slab]
            for number, runs in enumerate(planes, z):
                collector.add_labels(runs, number, column.box)
            for index, raw in enumerate(reader.raw(column, z)):
                for plane, runs in zip(raw, planes, strict=True):
                    collector.add_raw(index, plane, runs)
    return collector.facts(offset=crop.offset, voxel_size=crop.voxel_size, semantic=crop.entry.classes)


def _create(file: SafeFile, name: str, crop: Crop) -> None:
    chunk = [min(n, c) for n, c in zip(crop.shape, CHUNK, strict=True)]
    known = crop.voxel_size_nm is not None
    file.create(
        name, crop.shape, np.uint8, chunk=chunk, offset=crop.offset, resolution=crop.resolution, has_voxel_size=known
    )


def _write(file: SafeFile, name: str, voxels: Array, z: int, column: Column) -> None:
    """Write a column's slab whose first plane is `z`, row by row of HDF5 chunks."""
    chunk_z, chunk_y, chunk_x = file.chunk(name)
    y, x = (part.start for part in column.box)
    for row in range(0, voxels.shape[1], chunk_y):
        rows = voxels[:, row : row + chunk_y]
        file.write(name, encode_row(rows, (z, y + row, x), (chunk_z, chunk_y, chunk_x)))


def _write_json(target: Path, facts: Mapping[str, Any], mode: int) -> None:
    with disk_errors(target):
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(facts, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
