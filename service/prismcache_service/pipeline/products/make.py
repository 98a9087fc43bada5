"""Make a product from a cached crop: open the crop → compute slab by slab → write → sync → hash.

Nothing is published here: `make_product` leaves a complete temporary file and returns what its manifest needs. Memory
is bounded by a slab of 16 planes of labels and one channel, and by the tables that have an entry for each label.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from prismcache.crop import Crop
from prismcache.disk import disk_errors, sha256_of
from prismcache.errors import RequestError, StorageError
from prismcache.layout import FORMAT_VERSION, raw_dataset
from prismcache.schema import Product, Progress
from prismcache_service.pipeline.codec import encode_row
from prismcache_service.pipeline.products.arrays import (
    BRIGHT,
    VESSELS,
    Array,
    Bytes,
    Labels,
    Triple,
    barcode_labels,
    label_sums,
    mean_table,
    near,
    tiles,
)
from prismcache_service.pipeline.products.facts import FactsCollector
from prismcache_service.pipeline.progress import Report
from prismcache_service.pipeline.write import SafeFile, check_file

Count = Callable[[int], None]

RECIPES: Mapping[Product, str] = {
    Product.UNLABELLED: "unlabelled-1",
    Product.AVG_BARCODES: "avg_barcodes-1",
    Product.FGBG: "fgbg-1",
    Product.BORDER_MASK: "border_mask-1",
    Product.FACTS: "facts-1",
}
"""Versions of the products' definitions: equal recipe and equal crop give equal bytes."""

_CHUNK: Triple = (16, 64, 64)
_FGBG_REACH = 3  # X voxels
_BORDER_REACH = 30  # X voxels


@dataclass(frozen=True)
class MadeProduct:
    """A finished temporary file and what its manifest needs; `size` is in bytes."""

    product: Product
    recipe: str
    crop_sha256: str
    sha256: str
    size: int


def make_product(
    crop_path: Path,
    crop_sha256: str,
    product: Product,
    target: Path,
    mode: int,
    report: Report = lambda _: None,
) -> MadeProduct:
    """Make the file `target`, on which nothing lies yet, from a cached crop with all its channels.

    Parameters
    ----------
    crop_path, crop_sha256
        The crop's file, without context, and the SHA-256 that its manifest gives.
    product
        What to make; not ``crop``.
    target
        The temporary file.
    mode
        Permissions of the file.
    report
        Called with the voxels computed so far, in the caller's thread; voxels that are read twice count twice.

    Raises
    ------
    RequestError
        If the crop's split does not have this product.
    CropCorruptError
        If the file is no crop.
    StorageError
        If the crop cannot be read, or the disk refuses a write (`NoSpaceError` when it is full).
    """
    try:
        with Crop(crop_path) as crop:
            _make(crop, crop_sha256, product, target, mode, report)
    except OSError as error:  # writing raises typed errors only
        raise StorageError(f"{crop_path} cannot be read: {error}") from error
    with disk_errors(target):
        return MadeProduct(product, RECIPES[product], crop_sha256, sha256_of(target), target.stat().st_size)


def _make(crop: Crop, crop_sha256: str, product: Product, target: Path, mode: int, report: Report) -> None:
    if refusal := crop.entry.refusal(product):
        raise RequestError(f"crop {crop.split}/{crop.crop_id}: {refusal}")
    about = {
        "crop_id": crop.crop_id,
        "split": str(crop.split),
        "product": product.value,
        "recipe": RECIPES[product],
        "crop_sha256": crop_sha256,
        "format_version": FORMAT_VERSION,
        "prismcache_version": version("prismcache"),
    }
    count = _counter(math.prod(crop.shape) * (2 if product is Product.AVG_BARCODES else 1), report)
    if product is Product.FACTS:
        _write_json(target, about | _facts(crop, count), mode)
        return
    with SafeFile(target, about, mode) as file:
        _write_arrays(crop, product, file, count)
        file.close_file()
        file.sync()
        check_file(target, file.shapes)


def _write_arrays(crop: Crop, product: Product, file: SafeFile, count: Count) -> None:
    if product is Product.AVG_BARCODES:
        _write_barcodes(crop, file, count)
        return
    _create(file, product.value, crop)
    if product is Product.UNLABELLED:
        for z, labels in _slabs(crop, count):
            _write(file, product.value, (labels > 0).astype(np.uint8), (z, 0, 0))
        return
    ids = crop.labels_ids
    bright = np.isin(ids, BRIGHT)
    reach = crop.voxel_size[2] * (_FGBG_REACH if product is Product.FGBG else _BORDER_REACH)
    z, y, x = (math.ceil(reach / size) for size in crop.voxel_size)
    for tile in tiles(crop.shape, _CHUNK, (z, y, x)):
        labels = crop.labels[tile.wide]
        is_bright = bright[labels]
        if product is Product.FGBG:
            found = near(is_bright, reach, crop.voxel_size)
        else:
            found = is_bright & near(~is_bright, reach, crop.voxel_size) & ~np.isin(ids, VESSELS)[labels]
        corner = (tile.box[0].start, tile.box[1].start, tile.box[2].start)
        voxels = found[tile.inner].astype(np.uint8)
        _write(file, product.value, voxels, corner)
        count(voxels.size)


def _write_barcodes(crop: Crop, file: SafeFile, count: Count) -> None:
    """Write the mean of raw over each label, in two passes: sums first, and then each voxel's mean."""
    number, channels = len(crop.labels_ids), crop.channels
    voxels, sums = np.zeros(number, np.int64), np.zeros((len(channels), number), np.int64)
    for z, labels in _slabs(crop, count):
        kept = barcode_labels(labels).astype(np.intp)  # what bincount would else make of it for each channel
        voxels += np.bincount(kept.reshape(-1), minlength=number)
        for index, raw in enumerate(_raw(crop, z, len(labels))):
            sums[index] += label_sums(kept, raw, number)
    table = mean_table(sums, voxels)
    names = [raw_dataset(channel).replace("raw/", "avg_barcodes/") for channel in channels]
    for name in names:
        _create(file, name, crop)
    for z, labels in _slabs(crop, count):
        places = barcode_labels(labels)
        for name, means in zip(names, table, strict=True):
            _write(file, name, means[places], (z, 0, 0))


def _facts(crop: Crop, count: Count) -> dict[str, Any]:
    collector = FactsCollector(crop.labels_ids, crop.channels)
    for z, labels in _slabs(crop, count):
        collector.add_labels(labels, z)
        wide = labels.astype(np.intp)  # what bincount would else make of it for each channel
        for index, raw in enumerate(_raw(crop, z, len(labels))):
            collector.add_raw(index, raw, wide)
    return collector.facts(offset=crop.offset, voxel_size=crop.voxel_size, semantic=crop.entry.classes)


def _counter(total: int, report: Report) -> Count:
    done = 0

    def count(voxels: int) -> None:
        nonlocal done
        done += voxels
        report(Progress(voxels_done=done, voxels_total=total))

    count(0)
    return count


def _slabs(crop: Crop, count: Count) -> Iterator[tuple[int, Labels]]:
    """Yield (first plane, labels) of slabs of whole HDF5 chunks; each is valid until the next one is asked for."""
    buffer = np.empty((_CHUNK[0], *crop.shape[1:]), np.uint32)
    for z in range(0, crop.shape[0], _CHUNK[0]):
        slab = buffer[: min(_CHUNK[0], crop.shape[0] - z)]
        crop.labels.read_direct(slab, np.s_[z : z + len(slab)])
        yield z, slab
        count(slab.size)


def _raw(crop: Crop, z: int, planes: int) -> Iterator[Bytes]:
    """Yield a slab of each channel; each is valid until the next one is asked for."""
    slab = np.empty((planes, *crop.shape[1:]), np.uint8)
    for channel in crop.channels:
        crop.channel(channel).read_direct(slab, np.s_[z : z + planes])
        yield slab


def _create(file: SafeFile, name: str, crop: Crop) -> None:
    chunk = [min(n, c) for n, c in zip(crop.shape, _CHUNK, strict=True)]
    known = crop.voxel_size_nm is not None
    file.create(
        name, crop.shape, np.uint8, chunk=chunk, offset=crop.offset, resolution=crop.resolution, has_voxel_size=known
    )


def _write(file: SafeFile, name: str, voxels: Array, corner: Triple) -> None:
    """Write a box of whole HDF5 chunks whose first voxel is `corner` of the dataset."""
    z, y, x = file.chunk(name)
    for top in range(0, voxels.shape[0], z):
        for row in range(0, voxels.shape[1], y):
            origin = (corner[0] + top, corner[1] + row, corner[2])
            file.write(name, encode_row(voxels[top : top + z, row : row + y], origin, (z, y, x)))


def _write_json(target: Path, facts: Mapping[str, Any], mode: int) -> None:
    with disk_errors(target):
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(facts, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
