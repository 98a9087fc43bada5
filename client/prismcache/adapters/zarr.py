"""Writes a crop as zarr (format 2), for programs that do not read HDF5. Needs zarr 3 (``prismcache[service]``).

======================  ==========================================================================================
layout ``ngff``         OME-NGFF 0.4
======================  ==========================================================================================
``.``                   image: ``multiscales`` with one scale, ``omero`` channel names, ``prismcache``
``0``                   raw, (C, Z, Y, X) uint8
``labels/<split>``      label image; ``labels/<split>/0`` is (Z, Y, X)
``labels_ids``          (n+1,) uint64, the source's id of each consecutive label
======================  ==========================================================================================

======================  ==========================================================================================
layout ``e11``          one flat group, as E11's training scripts read it
======================  ==========================================================================================
``.``                   group with the attribute ``prismcache``
``raw``                 (C, Z, Y, X) uint8
``labels``              (Z, Y, X)
``unlabelled``          (Z, Y, X) uint8: 1 where labels > 0, else 0 (the name is E11's)
``labels_ids``          as above
======================  ==========================================================================================

`arrays` chooses among these, and adds products of the crop under their names: ``avg_barcodes`` (C, Z, Y, X), ``fgbg``
and ``border_mask`` (Z, Y, X), uint8, of the labels' box.

The voxel arrays carry ``offset``, ``resolution``, ``voxel_size`` (nm; Z,Y,X), ``axis_names``, ``units`` and ``types``,
as gunpowder, funlib, volara and dacapo read them; ``offset`` and the NGFF translation are the same numbers. In a file
with context, raw has its own offset and is larger than the labels.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prismcache.adapters import labels_of
from prismcache.arguments import Numbers, as_channels
from prismcache.crop import Crop, LabelValues, ngff
from prismcache.crop.facts import check_same_crop, product_beside
from prismcache.disk import disk_errors
from prismcache.errors import MissingExtraError, RequestError
from prismcache.layout import LABELS_IDS, product_datasets
from prismcache.progress.signs import signs_of_life
from prismcache.schema import Product

if TYPE_CHECKING:
    import numpy as np
    import zarr

    from prismcache.crop.boxes import Shape3

Layout = Literal["ngff", "e11"]

_OF_CROP = ("raw", "labels", "unlabelled")
_PRODUCTS = (Product.AVG_BARCODES, Product.FGBG, Product.BORDER_MASK)

CHUNKS = (64, 64, 64)


def to_zarr(
    path: os.PathLike[str] | str,
    destination: os.PathLike[str] | str,
    *,
    layout: Layout = "ngff",
    arrays: Sequence[str] | None = None,
    channels: Numbers | str | None = None,
    label_values: LabelValues | None = None,
    label_dtype: str | None = None,
    chunks: Sequence[int] = CHUNKS,
) -> Path:
    """Write a crop as zarr. The folder appears when it is complete. Memory holds a row of chunks along X at a time.

    Parameters
    ----------
    path
        A crop's file.
    destination
        A folder that does not exist yet, as ``crop_0.zarr``.
    layout
        "ngff" or "e11"; see the tables above.
    arrays
        "raw", "labels", "unlabelled", "avg_barcodes", "fgbg", "border_mask"; products but "unlabelled" are read from
        the files beside the crop's. None is raw and labels, in layout e11 also unlabelled. Layout ngff needs raw.
    channels
        Channel numbers, also as "0-2,5"; the array has them in ascending order. None is all of the file's.
    label_values
        "consecutive", "original" or None; see `prismcache.adapters`. gunpowder 1.4 computes affinities in int32, so
        original ids of 2**31 and more lose theirs.
    label_dtype
        An integer type that holds all of the labels, as "uint8"; None is uint32 for consecutive ones, else uint64.
    chunks
        (Z, Y, X) in voxels; a chunk of raw has one channel.

    Returns
    -------
    Path
        The folder, absolute.

    Raises
    ------
    RequestError
        If the destination exists, or an argument has no meaning.
    UnknownChannelError
        If the file lacks a channel.
    CropNotCachedError
        If no file of a product lies beside the crop's; the remedy is the command that makes it.
    CropCorruptError
        If a product was made from another version of the crop.
    StorageError
        If the disk cannot be written.
    MissingExtraError
        If zarr 3 is not installed.

    Examples
    --------
    >>> to_zarr("/lab/prism/instance/crop_0.h5", "/scratch/crop_0.zarr", channels=[0, 3])
    PosixPath('/scratch/crop_0.zarr')
    """
    target = Path(os.path.abspath(destination))
    if layout not in get_args(Layout):
        raise RequestError(f"layout must be one of {get_args(Layout)}, not {layout!r}")
    if len(chunks) != 3 or min(chunks) < 1:
        raise RequestError(f"chunks must be three positive numbers (Z, Y, X), not {tuple(chunks)!r}")
    chosen = _chosen_arrays(layout, arrays)
    with signs_of_life(f"writing {target}"), ExitStack() as files:
        crop = files.enter_context(Crop(path))
        wanted = as_channels(channels) or crop.channels
        raw = [crop.channel(channel) for channel in wanted]
        products = {each: _product_arrays(crop, each, wanted, files) for each in chosen if each not in _OF_CROP}
        labels = labels_of(crop, label_values)
        dtype = _label_dtype(crop, label_dtype or labels.dtype.name, consecutive=labels.dtype == "uint32")
        folder = files.enter_context(_published(target))
        group, name = _group(folder), crop.split.value
        write = _Writer(crop, tuple(chunks), "." if layout == "e11" else "/")
        group.attrs.update({"prismcache": ngff.origin(name, crop.crop_id, wanted, crop.provenance)})
        if "raw" in chosen:
            write.raw(group, "raw" if layout == "e11" else "0", raw)
        if "labels" in chosen:
            ids = crop.labels_ids
            _create(group, LABELS_IDS, ids.shape, ids.shape, "uint64", {})[...] = ids
            if layout == "e11":
                write.labels(group, "labels", labels, dtype)
            else:
                segmentation = group.create_group("labels", attributes={"labels": [name]}).create_group(name)
                write.labels(segmentation, "0", labels, dtype)
                of_labels = ngff.multiscale(f"{name} labels", crop.offset, crop.voxel_size, has_channels=False)
                segmentation.attrs.update({"multiscales": [of_labels], "image-label": ngff.image_label()})
        if "unlabelled" in chosen:
            write.labels(group, "unlabelled", crop.labels, "uint8", foreground=True)
        for product, parts in products.items():
            write.product(group, product, parts)
        if layout == "ngff":
            image = ngff.multiscale(f"{name}/crop_{crop.crop_id}", crop.raw_offset, crop.voxel_size, has_channels=True)
            group.attrs.update({"multiscales": [image], "omero": ngff.omero(wanted)})
    return target


def _chosen_arrays(layout: Layout, arrays: Sequence[str] | None) -> Sequence[str]:
    """Return the names of the arrays to write.

    Raises
    ------
    RequestError
        If a name is unknown, or layout ngff is to have no raw.
    """
    chosen = arrays or (_OF_CROP if layout == "e11" else ("raw", "labels"))
    if unknown := set(chosen) - {*_OF_CROP, *_PRODUCTS}:
        known = ", ".join((*_OF_CROP, *_PRODUCTS))
        raise RequestError(f"there are no arrays {', '.join(sorted(unknown))} to export; there are {known}")
    if layout == "ngff" and "raw" not in chosen:
        raise RequestError("layout 'ngff' needs raw, which is its image", remedy="Take layout e11, or add raw.")
    return chosen


def _product_arrays(crop: Crop, name: str, channels: Sequence[int], files: ExitStack) -> list[Any]:
    """Open the product of a crop that lies beside its file; return the datasets, one for each channel or only one."""
    from prismcache.crop.files import open_dataset, open_file  # needs h5py

    product = Product(name)
    place = product_beside(crop.path, crop.split, crop.crop_id, product)
    names = product_datasets(product, channels)
    file = files.enter_context(open_file(place, names))
    check_same_crop(place, str(file.attrs["crop_sha256"]), crop.crop_id)
    return [open_dataset(file, each, place) for each in names]


@contextmanager
def _published(target: Path) -> Iterator[Path]:
    """Give a folder beside `target`; rename it to `target` when the block ends, delete it when the block fails."""
    if os.path.lexists(target):
        raise RequestError(f"{target} exists already", remedy="Name another folder, or delete it first.")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with disk_errors(target, "the export"):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _group(folder: Path) -> zarr.Group:
    try:
        import zarr

        return zarr.open_group(str(folder), mode="w", zarr_format=2)
    except (ImportError, TypeError) as error:  # TypeError: zarr 2 knows no zarr_format
        raise MissingExtraError(
            "writing OME-Zarr needs zarr 3, which is not installed", remedy='pip install "prismcache[service]"'
        ) from error


def _create(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: str,
    attributes: Any,
    *,
    separator: str = "/",
) -> zarr.Array[Any]:
    keys: Any = {"name": "v2", "separator": separator}
    return group.create_array(
        name, shape=shape, chunks=chunks, dtype=dtype, chunk_key_encoding=keys, attributes=attributes
    )


@dataclass(frozen=True)
class _Writer:
    """Writes voxel arrays of a crop with their place, one row of chunks along X after the other."""

    crop: Crop
    chunks: tuple[int, ...]
    separator: str

    def raw(self, group: zarr.Group, name: str, channels: Sequence[Any]) -> None:
        self._channels(group, name, channels, self.crop.raw_shape, self.crop.raw_offset)

    def _channels(self, group: zarr.Group, name: str, channels: Sequence[Any], shape: Shape3, offset: Shape3) -> None:
        place, sizes = ngff.place(offset, self.crop.voxel_size, has_channels=True), self._sizes(shape)
        target = _create(group, name, (len(channels), *shape), (1, *sizes), "uint8", place, separator=self.separator)
        for index, channel in enumerate(channels):
            for row in _rows(shape, sizes):
                target[(index, *row)] = channel[row]

    def labels(self, group: zarr.Group, name: str, labels: Any, dtype: str, *, foreground: bool = False) -> None:
        shape, place = self.crop.shape, ngff.place(self.crop.offset, self.crop.voxel_size, has_channels=False)
        sizes = self._sizes(shape)
        target = _create(group, name, shape, sizes, dtype, place, separator=self.separator)
        for row in _rows(shape, sizes):
            voxels = labels[row]
            target[row] = (voxels > 0 if foreground else voxels).astype(dtype)

    def product(self, group: zarr.Group, name: str, parts: Sequence[Any]) -> None:
        if len(parts) == 1 and name != Product.AVG_BARCODES:
            self.labels(group, name, parts[0], "uint8")
        else:
            self._channels(group, name, parts, self.crop.shape, self.crop.offset)

    def _sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(min(size, extent) for size, extent in zip(self.chunks, shape, strict=True))


def _rows(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    for z in range(0, shape[0], chunks[0]):
        for y in range(0, shape[1], chunks[1]):
            yield slice(z, z + chunks[0]), slice(y, y + chunks[1])


def _label_dtype(crop: Crop, name: str, *, consecutive: bool) -> str:
    """Return the name of an integer type.

    Raises
    ------
    RequestError
        If it names no integer type, or the type does not hold every label.
    """
    import numpy as np

    try:
        largest = int(np.iinfo(name).max)
    except (TypeError, ValueError):
        raise RequestError(f"label_dtype must name an integer type, not {name!r}") from None
    ids: np.ndarray[Any, Any] = crop.labels_ids
    needed = len(ids) - 1 if consecutive else int(ids.max())
    if needed > largest:
        raise RequestError(f"{crop.path} has the label {needed}, which {name} does not hold")
    return name
