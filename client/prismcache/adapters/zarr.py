"""Writes a crop as zarr (format 2), for programs that do not read HDF5. Needs zarr 3 (``prismcache[service]``).

======================  ==========================================================================================
layout ``ngff``         OME-NGFF 0.4
======================  ==========================================================================================
``.``                   image: ``multiscales`` with one scale, ``omero`` channel names, ``prismcache``
``0``                   raw, (C, Z, Y, X) uint8
``labels/<split>``      label image; ``labels/<split>/0`` is (Z, Y, X)
``labels_ids``          (n+1,) uint64, the source's id of each consecutive label
``NAME``                image of a further array, such as ``psd95_output``; ``NAME/0`` is (Z, Y, X) of its own dtype
======================  ==========================================================================================

======================  ==========================================================================================
layout ``e11``          one flat group, as E11's training scripts read it
======================  ==========================================================================================
``.``                   group with the attribute ``prismcache``
``raw``                 (C, Z, Y, X) uint8
``labels``              (Z, Y, X)
``unlabelled``          (Z, Y, X) uint8: 1 where labels > 0, else 0 (the name is E11's)
``labels_ids``          as above
``NAME``                further arrays, (Z, Y, X) of their own dtypes
======================  ==========================================================================================

Crops without labels have no labels, labels_ids and unlabelled; in layout e11, their arrays have the names of the
bucket, for example ``volumes/ls_2channels_globalnorm`` and ``volumes/psd95_output``.

`arrays` chooses among these, and adds products of the crop under their names: ``avg_barcodes`` (C, Z, Y, X), ``fgbg``
and ``border_mask`` (Z, Y, X), uint8, of the labels' box.

The voxel arrays carry ``offset``, ``resolution``, ``voxel_size`` (nm; Z,Y,X), ``axis_names``, ``units`` and ``types``,
as gunpowder, funlib, volara and dacapo read them; ``offset`` and the NGFF translation are the same numbers. Further
arrays, and raw in a file with context, have offsets and shapes of their own.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prismcache.adapters import labels_of
from prismcache.arguments import Numbers, as_channels
from prismcache.crop import Crop, LabelValues, ngff
from prismcache.crop.facts import check_same_crop, product_beside
from prismcache.disk import disk_errors
from prismcache.errors import MissingExtraError, RequestError
from prismcache.layout import LABELS_IDS, product_datasets
from prismcache.progress.reporter import signs_of_life
from prismcache.schema import Product

if TYPE_CHECKING:
    import numpy as np
    import zarr

    from prismcache.crop.boxes import Shape3

Layout = Literal["ngff", "e11"]

PRODUCTS = (Product.AVG_BARCODES, Product.FGBG, Product.BORDER_MASK)
"""The products that are read from files of their own."""

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
        "raw", "labels", "unlabelled", "avg_barcodes", "fgbg", "border_mask", names of further arrays; products but
        "unlabelled" are read from the files beside the crop's. None is raw, labels and all further arrays, in layout
        e11 also unlabelled. Layout ngff needs raw.
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
        If the destination exists, an argument has no meaning, or the crop does not have an array or labels that are
        asked for.
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
    with signs_of_life(f"writing {target}"), ExitStack() as files:
        crop = files.enter_context(Crop(path))
        chosen = _chosen_arrays(crop, layout, arrays)
        wanted = as_channels(channels) or crop.channels
        raw = [crop.channel(channel) for channel in wanted]
        products = {each: _product_arrays(crop, each, wanted, files) for each in PRODUCTS if each in chosen}
        labels, dtype = None, ""
        if crop.has_labels or label_values or label_dtype:
            labels = labels_of(crop, label_values)
            dtype = _label_dtype(crop, label_dtype or labels.dtype.name, consecutive=labels.dtype == "uint32")
        write = _Writer(files.enter_context(_published(target)), crop, tuple(chunks), layout)
        name = f"{crop.split.value}/crop_{crop.crop_id}"
        origin = {"prismcache": ngff.origin(crop, wanted)}
        write.group.attrs.update(origin | ({"omero": ngff.omero(wanted)} if layout == "ngff" else {}))
        if "raw" in chosen:
            write.image("", name, write.name("raw"), raw, crop.raw_offset, "uint8", has_channels=True)
        if "labels" in chosen:
            write.ids(crop.labels_ids)
            write.labels(labels, dtype)
        if "unlabelled" in chosen:
            write.array("unlabelled", [crop.labels], crop.offset, "uint8", is_mask=True)
        for product, parts in products.items():
            has_channels = product is Product.AVG_BARCODES
            write.array(product.value, parts, crop.offset, "uint8", has_channels=has_channels)
        for array in crop.arrays:
            if array in chosen:
                voxels = crop.array(array)
                write.image(
                    array, f"{name} {array}", write.name(array), [voxels], crop.array_offset(array), voxels.dtype.name
                )
    return target


def _chosen_arrays(crop: Crop, layout: Layout, arrays: Sequence[str] | None) -> Sequence[str]:
    """Return the names of the arrays to write.

    Raises
    ------
    RequestError
        If the crop has no array of a name, or layout ngff is to have no raw.
    """
    of_labels = ("labels", "unlabelled") if crop.has_labels else ()
    if not arrays:
        return "raw", *of_labels[: 2 if layout == "e11" else 1], *crop.arrays
    known = ("raw", *of_labels, *(each for each in PRODUCTS if each in crop.entry.products), *crop.arrays)
    if unknown := sorted(set(arrays) - set(known)):
        if unknown[0] in PRODUCTS:
            crop.entry.check_product(unknown[0])
        raise RequestError(f"{crop.path}: there is no array {unknown[0]} to export; there are {', '.join(known)}")
    if layout == "ngff" and "raw" not in arrays:
        raise RequestError("layout 'ngff' needs raw, which is its image", remedy="Take layout e11, or add raw.")
    return arrays


def _product_arrays(crop: Crop, product: Product, channels: Sequence[int], files: ExitStack) -> list[Any]:
    """Open the product of a crop that lies beside its file; return the datasets, one for each channel or only one."""
    from prismcache.crop.files import open_dataset, open_file  # needs h5py

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


class _Writer:
    """Writes arrays of a crop with their place, one row of chunks along X after the other."""

    def __init__(self, folder: Path, crop: Crop, chunks: tuple[int, ...], layout: Layout) -> None:
        self.group = _group(folder)
        self._crop, self._chunks, self._is_flat = crop, chunks, layout == "e11"

    def name(self, array: str) -> str:
        """Return where layout e11 has raw or a further array: in a crop without labels, where the bucket has it."""
        entry = self._crop.entry
        if self._crop.has_labels:
            return array
        return dict(zip(("raw", *entry.datasets), (entry.raw, *entry.arrays), strict=True))[array]

    def ids(self, ids: Any) -> None:
        """Write the table of original ids."""
        self._create(self.group, LABELS_IDS, ids.shape, ids.shape, "uint64", {})[...] = ids

    def labels(self, labels: Any, dtype: str) -> None:
        """Write labels of this dtype; in layout ngff as a label image."""
        offset, split = self._crop.offset, self._crop.split.value
        if not self._is_flat:
            group = self.group.create_group("labels", attributes={"labels": [split]}).create_group(split)
            group.attrs.update({"image-label": ngff.image_label()})
        self.image(f"labels/{split}", f"{split} labels", "labels", [labels], offset, dtype)

    def image(
        self,
        group: str,
        title: str,
        flat: str,
        parts: Sequence[Any],
        offset: Shape3,
        dtype: str,
        *,
        has_channels: bool = False,
    ) -> None:
        """Write an array called `flat` in layout e11; in layout ngff, an image in a group, with a title."""
        if self._is_flat:
            self.array(flat, parts, offset, dtype, has_channels=has_channels)
            return
        self.array(f"{group}/0".lstrip("/"), parts, offset, dtype, has_channels=has_channels)
        of_image = self.group.require_group(group) if group else self.group
        scales = ngff.multiscale(title, offset, self._crop.voxel_size, has_channels=has_channels)
        of_image.attrs.update({"multiscales": [scales]})

    def array(
        self,
        path: str,
        parts: Sequence[Any],
        offset: Shape3,
        dtype: str,
        *,
        has_channels: bool = False,
        is_mask: bool = False,
    ) -> None:
        """Write datasets (Z, Y, X) as one array (C, Z, Y, X), or the only one as (Z, Y, X); as a mask, 1 where > 0."""
        above, _, name = path.rpartition("/")
        group = self.group.require_group(above) if above else self.group
        shape = parts[0].shape
        sizes = tuple(map(min, self._chunks, shape))
        place = ngff.place(offset, self._crop.voxel_size, has_channels=has_channels)
        count, one = ((len(parts),), (1,)) if has_channels else ((), ())
        target = self._create(group, name, (*count, *shape), (*one, *sizes), dtype, place)
        for index, part in enumerate(parts):
            for row in _rows(shape, sizes):
                voxels = part[row] > 0 if is_mask else part[row]
                target[(index, *row) if has_channels else row] = voxels.astype(dtype, copy=False)

    def _create(
        self, group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, attributes: Any
    ) -> zarr.Array[Any]:
        keys: Any = {"name": "v2", "separator": "." if self._is_flat else "/"}
        return group.create_array(
            name, shape=shape, chunks=chunks, dtype=dtype, chunk_key_encoding=keys, attributes=attributes
        )


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
