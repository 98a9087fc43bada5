"""The facts of one crop of a training set: where raw, labels, products and further arrays lie, and their extents."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prismcache.catalog import published
from prismcache.crop import Crop
from prismcache.crop.boxes import Shape3, Slices3
from prismcache.crop.facts import check_same_crop, product_beside
from prismcache.crop.files import open_dataset, open_file, read_errors
from prismcache.errors import CropCorruptError, RequestError
from prismcache.layout import LABELS, LABELS_IDS, crop_file_name, product_datasets, raw_dataset
from prismcache.schema import CropInfo, Product, Split
from prismcache.splits import PRODUCTS, SplitEntry
from prismcache.torch.decoded import Layout, labels_dtype
from prismcache.torch.patches import Context

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ArrayFacts:
    """A further array of a crop's file.

    Attributes
    ----------
    start, shape
        Its first voxel, counted from the crop's first one, and its extent, (Z, Y, X) in voxels.
    dtype
        Its dtype.
    """

    start: Shape3
    shape: Shape3
    dtype: str

    @property
    def box(self) -> Slices3:
        """The array's box, in voxels counted from the crop's first one."""
        z, y, x = (slice(first, first + size) for first, size in zip(self.start, self.shape, strict=True))
        return z, y, x


@dataclass(frozen=True)
class CropFacts:
    """The facts of a crop, read from its file or, of one that is awaited, from the catalog.

    Attributes
    ----------
    path
        The file.
    split, crop
        The split and number of the crop.
    channels
        The numbers of the file's channels.
    shape
        (Z, Y, X) of the labels, in voxels; of raw in a split without labels.
    ids
        (n+1,) uint64, the original id of each label; None in a file that another program wrote.
    before, after
        Voxels (Z, Y, X) of raw beyond the labels: before their first voxel, and after their last one.
    entry
        What the split is.
    arrays
        The further arrays, by name.
    """

    path: Path
    split: Split
    crop: int
    channels: tuple[int, ...]
    shape: Shape3
    ids: Array | None
    before: Shape3 = (0, 0, 0)
    after: Shape3 = (0, 0, 0)
    entry: SplitEntry = SplitEntry("")  # noqa: RUF009 - it is frozen
    arrays: Mapping[str, ArrayFacts] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name in messages, such as "instance crop 0"."""
        return crop_name(self.split, self.crop)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> CropFacts:
        """Read the facts of a crop's file.

        Raises
        ------
        PrismError
            As `Crop` raises it.
        """
        with Crop(path) as crop:
            ids = crop.labels_ids if LABELS_IDS in crop.file else None
            arrays = {
                name: ArrayFacts(crop.array_start(name), crop.array(name).shape, crop.array(name).dtype.name)
                for name in crop.arrays
            }
            facts = crop.path, crop.split, crop.crop_id, crop.channels, crop.shape, ids, *crop.context
            return cls(*facts, crop.entry, arrays)

    @classmethod
    def expected(cls, info: CropInfo, context: Shape3) -> CropFacts:
        """Return what a crop will be that the catalog describes, with all of its context."""
        entry = published().get(info.split) or SplitEntry(
            info.split.value,
            labels="labels" if info.has_labels else "",
            arrays=tuple(array.name for array in info.arrays),
            classes=info.classes,
            products=tuple(info.products),
            same_tissue=tuple((info.crop, other) for other in info.same_tissue),
        )
        channels, z, y, x = info.raw_shape or (0, 0, 0, 0)
        size, first = info.voxel_size or (1, 1, 1), info.offset or (0, 0, 0)
        arrays = {}
        for each in info.arrays:
            places = zip(each.offset or first, first, size, strict=True)
            az, ay, ax = (round((own - zero) / by) for own, zero, by in places)
            arrays[each.name] = ArrayFacts((az, ay, ax), each.shape, each.dtype)
        own_shape, reach = (info.labels_shape, context) if info.labels_shape else ((z, y, x), (0, 0, 0))
        numbers = tuple(range(channels))
        return cls(Path("awaited.h5"), info.split, info.crop, numbers, own_shape, None, reach, reach, entry, arrays)

    def drawable(self, context: Context, targets: Sequence[str]) -> Slices3:
        """Return the box, in voxels counted from the crop's first one, from which patches are drawn; it may be empty.

        Patches have their context, unless it is padded, and lie in each further array that is a target.
        """
        boxes = [context.drawable(self.shape, self.before, self.after)]
        boxes += [self.arrays[name].box for name in targets if name in self.arrays]
        z, y, x = (slice(max(p.start for p in axis), min(p.stop for p in axis)) for axis in zip(*boxes, strict=True))
        return z, y, x

    def table(self, *, original: bool) -> Array | None:
        """Return the original id of each label, (n+1,) uint64; None if `original` is False.

        Raises
        ------
        RequestError
            If the file has no original ids.
        """
        if not original:
            return None
        if self.ids is None:
            with Crop(self.path) as crop:
                return crop.labels_ids  # raises, with the remedy
        return self.ids

    def layout(self, channels: Sequence[int], context: Shape3, targets: Sequence[str] = ()) -> Layout:
        """Return the part of the crop that is decoded for a training, in the smallest dtypes."""
        largest = np.iinfo(np.uint32).max if self.ids is None else len(self.ids) - 1
        before, after = least(self.before, context), least(self.after, context)
        files = {
            name: self.path.with_name(crop_file_name(self.crop, product=Product(target)))
            for target in targets
            if target in PRODUCTS
            for name in target_datasets(target, channels)
        }
        labels = {LABELS: labels_dtype(largest)} if self.entry.labels else {}
        bytes_of = dict.fromkeys([*map(raw_dataset, channels), *files], "uint8")
        arrays = {name: self.arrays[name] for name in targets if name in self.arrays}
        dtypes = labels | bytes_of | {name: array.dtype for name, array in arrays.items()}
        return Layout(self.shape, dtypes, before, after, files, {name: each.box for name, each in arrays.items()})

    def check_target(self, target: str, channels: Sequence[int]) -> None:
        """Check that a further array is in this crop's file, or that a product lies beside it, with these channels.

        Raises
        ------
        RequestError
            If crops of this split do not have the target.
        CropNotCachedError
            If there is no file.
        CropCorruptError
            If the file is not a product of this version of the crop.
        """
        check_target_of(self.entry, target)
        if target not in PRODUCTS:
            if target not in self.arrays:
                raise RequestError(f"{self.name} has no array {target!r}; it has {', '.join(self.arrays) or 'none'}")
            return
        product = Product(target)
        place = product_beside(self.path, self.split, self.crop, product)
        names = product_datasets(product, channels)
        with open_file(place, names) as file:
            shapes = {open_dataset(file, name, place).shape for name in names}
            with read_errors(place, "attributes"):
                made_from = str(file.attrs["crop_sha256"])
        if shapes != {self.shape}:
            raise CropCorruptError(f"{place} is of another shape than the labels of {self.name}, {self.shape}")
        check_same_crop(place, made_from, self.crop)


def check_target_of(entry: SplitEntry, target: str) -> None:
    """Raise `RequestError` if crops of a split have neither such a product nor such an array."""
    if target in entry.datasets:
        return
    if target in PRODUCTS:
        entry.check_product(target)
        return
    known = [*(name for name in entry.products if name != Product.FACTS), *entry.datasets]
    raise RequestError(f"targets of split {entry.name!r} are {', '.join(known) or 'none'}, not {target!r}")


def target_datasets(target: str, channels: Sequence[int]) -> tuple[str, ...]:
    """Return the names of a target's datasets: those of a product, or that of a further array."""
    return product_datasets(Product(target), channels) if target in PRODUCTS else (target,)


def least(available: Shape3, wanted: Shape3) -> Shape3:
    """Return the smaller of two numbers on each axis."""
    z, y, x = map(min, available, wanted)
    return z, y, x


def crop_name(split: Split, crop: int) -> str:
    """Return the name of a crop in messages."""
    return f"{split.value} crop {crop}"
