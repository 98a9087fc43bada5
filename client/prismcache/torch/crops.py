"""The crops of a training set: the facts of each, found from paths or through a client."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prismcache.arguments import Numbers, as_crops, as_split
from prismcache.client import PrismClient
from prismcache.crop import Crop
from prismcache.crop.boxes import Shape3, Slices3
from prismcache.crop.facts import check_same_crop, product_beside
from prismcache.crop.files import open_dataset, open_file, read_errors
from prismcache.errors import (
    CropCorruptError,
    CropNotCachedError,
    PrismError,
    RequestError,
    UnknownChannelError,
    UnknownCropError,
)
from prismcache.layout import LABELS, LABELS_IDS, covers, crop_file_name, parse_file_name, product_datasets, raw_dataset
from prismcache.progress.reporter import Progress
from prismcache.schema import CropInfo, Product, Split
from prismcache.torch.decoded import Layout, labels_dtype
from prismcache.torch.patches import Channels, choose_channels, ordered_channels

Array = np.ndarray[Any, np.dtype[Any]]


class Reader(Protocol):
    """Reads boxes of a crop's datasets, from its file or from arrays in memory; see `CropReader.read`."""

    def read(self, name: str, box: Slices3, out: Array, ids: Array | None = None) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class CropFacts:
    """The facts of a crop, read from its file.

    Attributes
    ----------
    path
        The file.
    split, crop
        The split and number of the crop.
    channels
        The numbers of the file's channels.
    shape
        (Z, Y, X) of the labels, in voxels.
    ids
        (n+1,) uint64, the original id of each label; None in a file that another program wrote.
    before, after
        Voxels (Z, Y, X) of raw beyond the labels: before their first voxel, and after their last one.
    """

    path: Path
    split: Split
    crop: int
    channels: tuple[int, ...]
    shape: Shape3
    ids: Array | None
    before: Shape3 = (0, 0, 0)
    after: Shape3 = (0, 0, 0)

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
            return cls(crop.path, crop.split, crop.crop_id, crop.channels, crop.shape, ids, *crop.context)

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

    def layout(self, channels: Sequence[int], context: Shape3, targets: Sequence[Product] = ()) -> Layout:
        """Return the part of the crop that is decoded for a training, in the smallest dtypes."""
        largest = np.iinfo(np.uint32).max if self.ids is None else len(self.ids) - 1
        before, after = _least(self.before, context), _least(self.after, context)
        files = {
            name: self.path.with_name(crop_file_name(self.crop, product=product))
            for product in targets
            for name in product_datasets(product, channels)
        }
        return decoded_layout(self.shape, channels, before, after, labels_dtype(largest), files)

    def check_product(self, product: Product, channels: Sequence[int]) -> None:
        """Check that a product of this crop lies beside its file, with these channels.

        Raises
        ------
        RequestError
            If crops of this split do not have the product.
        CropNotCachedError
            If there is no file.
        CropCorruptError
            If the file is not a product of this version of the crop.
        """
        check_product_of(self.split, product)
        place = product_beside(self.path, self.split, self.crop, product)
        names = product_datasets(product, channels)
        with open_file(place, names) as file:
            shapes = {open_dataset(file, name, place).shape for name in names}
            with read_errors(place, "attributes"):
                made_from = str(file.attrs["crop_sha256"])
        if shapes != {self.shape}:
            raise CropCorruptError(f"{place} is of another shape than the labels of {self.name}, {self.shape}")
        check_same_crop(place, made_from, self.crop)


def check_product_of(split: Split, product: Product) -> None:
    """Raise `RequestError` if crops of a split do not have a product."""
    if split is not Split.SEMANTIC and product in {Product.FGBG, Product.BORDER_MASK}:
        raise RequestError(f"product {product.value!r} exists for semantic crops only")


def _least(available: Shape3, wanted: Shape3) -> Shape3:
    z, y, x = map(min, available, wanted)
    return z, y, x


def crop_name(split: Split, crop: int) -> str:
    """Return the name of a crop in messages."""
    return f"{split.value} crop {crop}"


def tissue_of(split: Split, crop: int) -> tuple[str, int]:
    """Return a name of a crop's tissue: crops of the same tissue have the same name."""
    return (Split.INSTANCE.value, 2) if (split, crop) == (Split.SEMANTIC, 0) else (split.value, crop)


def decoded_layout(
    shape: Shape3,
    channels: Sequence[int],
    before: Shape3,
    after: Shape3,
    labels: str = "uint32",
    files: Mapping[str, Path] | None = None,
) -> Layout:
    """Return the layout of decoded labels of `shape` (Z, Y, X), and of what is read beside them.

    Raw reaches `before` and `after` voxels (Z, Y, X) beyond labels; `files` has the file of each product's dataset.
    """
    files = files or {}
    bytes_of = dict.fromkeys([*map(raw_dataset, channels), *files], "uint8")
    return Layout(shape, {LABELS: labels} | bytes_of, before, after, files)


def facts_of_files(
    paths: Sequence[str | os.PathLike[str]], split: str | Split | None, crops: Numbers | None
) -> list[CropFacts]:
    """Return the facts of crops, given by their files.

    Parameters
    ----------
    paths
        Files, as `PrismClient.ensure` returns them.
    split
        The split of all; None takes that of the first file.
    crops
        Only these crops, in this order; None is all.

    Raises
    ------
    RequestError
        If there is no file, or the files are of different splits.
    UnknownCropError
        If one of `crops` is not among the files.
    """
    found = [CropFacts.of(path) for path in paths]
    if not found:
        raise RequestError("no crop's path is given", remedy="PrismClient().ensure(…) returns paths.")
    wanted = found[0].split if split is None else as_split(split)
    if other := next((facts for facts in found if facts.split is not wanted), None):
        raise RequestError(f"{other.path} is of the split {other.split.value!r}, not {wanted.value!r}")
    numbers = as_crops(crops)
    if numbers is None:
        return found
    by_crop = {facts.crop: facts for facts in found}
    if lacking := [crop for crop in numbers if crop not in by_crop]:
        raise UnknownCropError(
            f"no file of {crop_name(wanted, lacking[0])} is among the paths given",
            remedy=f"They are of the crops {', '.join(map(str, sorted(by_crop)))}.",
        )
    return [by_crop[crop] for crop in dict.fromkeys(numbers)]


def files_of_root(
    root: Path, split: str | Split | None, crops: Numbers | None, channels: Channels, context: Shape3
) -> list[Path]:
    """Return a file for each crop of a cache folder: the smallest that has the channels and the most of the context.

    Parameters
    ----------
    root
        The cache folder, which has a folder for each split.
    split
        The split; None is "instance".
    crops
        Only these crops; None is all that lie there.
    channels, context
        As `PrismDataset` takes them; context in voxels (Z, Y, X).

    Raises
    ------
    CropNotCachedError
        If no crop of the split lies there.
    """
    folder = root / as_split(Split.INSTANCE if split is None else split).value
    named = {path: parse_file_name(path.name) for path in folder.glob("*.h5")}
    numbers = as_crops(crops)
    wanted = set() if isinstance(channels, str) else set(ordered_channels(channels))

    def worth(facts: CropFacts) -> tuple[bool, int, int]:
        reach = sum(_least(facts.before, context)) + sum(_least(facts.after, context))
        more = len(facts.channels) if isinstance(channels, str) else 0
        return wanted <= set(facts.channels), more + reach, -facts.path.stat().st_size

    by_crop: dict[int, list[CropFacts]] = {}
    for path, name in sorted(named.items()):
        is_crop = name is not None and name.product is Product.CROP
        if name is not None and is_crop and (numbers is None or name.crop in numbers):
            by_crop.setdefault(name.crop, []).append(CropFacts.of(path))
    if not by_crop:
        raise CropNotCachedError(
            f"no crop's file lies in {folder}", remedy="Run `prismcache ensure`, or give a PrismClient as the source."
        )
    return [max(by_crop[crop], key=worth).path for crop in sorted(by_crop)]


@dataclass(frozen=True)
class ClientCrops:
    """The crops that a client shall provide.

    Attributes
    ----------
    split, crops
        The split, and the crops' numbers.
    ask
        Channels to ask the client for; None is all.
    context
        Voxels (Z, Y, X) that raw shall reach beyond the labels.
    targets
        The products that each crop shall have.
    described
        The catalog's entries of the crops; empty where they were not needed.
    """

    split: Split
    crops: tuple[int, ...]
    ask: tuple[int, ...] | None
    context: Shape3
    targets: tuple[Product, ...]
    described: Mapping[int, CropInfo]


def plan_client_crops(
    client: PrismClient,
    split: str | Split | None,
    crops: Numbers | None,
    channels: Channels,
    context: Shape3,
    targets: tuple[Product, ...],
) -> ClientCrops:
    """Return what to ask a client for; products are made from whole crops, so that these are then asked for.

    Raises
    ------
    UnknownChannelError
        If the crops do not all have the channels.
    PrismError
        As the client raises it.
    """
    wanted = as_split(Split.INSTANCE if split is None else split)
    for product in targets:
        check_product_of(wanted, product)
    is_whole = bool(targets) and not any(context)
    numbers = as_crops(crops)
    if numbers is None:
        numbers = tuple(info.crop for info in client.catalog(wanted))
    if not numbers:
        raise RequestError(f"no crop of the split {wanted.value!r} is asked for")
    numbers = tuple(dict.fromkeys(numbers))
    if not isinstance(channels, str):
        ask = None if is_whole else tuple(sorted(choose_channels(channels, {})))
        return ClientCrops(wanted, numbers, ask, context, targets, {})
    described = describe(client, wanted, numbers)
    chosen = choose_channels(channels, channels_of(described))
    ask = None if is_whole or channels == "all" else chosen
    return ClientCrops(wanted, numbers, ask, context, targets, described)


def describe(client: PrismClient, split: Split, crops: Sequence[int]) -> dict[int, CropInfo]:
    """Return the catalog's entries of these crops, with their shapes.

    Raises
    ------
    PrismError
        If the client cannot say the shape of one.
    """
    found = {}
    for crop in crops:
        info = client.describe(split, crop)
        if info.raw_shape is None or info.labels_shape is None:
            reason = "" if info.problem is None else f": {info.problem.detail}"
            raise RequestError(f"the shape of {crop_name(split, crop)} is not known yet{reason}")
        found[crop] = info
    return found


def channels_of(described: Mapping[int, CropInfo]) -> dict[str, range]:
    """Return the channels of published crops, by the crops' names."""
    return {crop_name(info.split, crop): range(info.raw_shape[0]) for crop, info in described.items() if info.raw_shape}


def ensure_crops(client: PrismClient, plan: ClientCrops, crops: Sequence[int], progress: Progress) -> list[str]:
    """Return the paths of crops; crops that are not cached are fetched, and their products made.

    Raises
    ------
    UnknownChannelError
        If one lacks a channel; the remedy names the channels that all crops of the plan have.
    PrismError
        As the client raises it.
    """
    try:
        paths = client.ensure(plan.split, crops, channels=plan.ask, context=plan.context, progress=progress)
    except UnknownChannelError:
        choose_channels(plan.ask or "all", channels_of(describe(client, plan.split, plan.crops)))
        raise
    for product in plan.targets:
        client.ensure(plan.split, crops, product=product, progress=progress)
    return paths


def cached_crops(client: PrismClient, plan: ClientCrops) -> set[int]:
    """Return the plan's crops that are cached as they are wanted; none if there is no catalog."""
    try:
        known = client.catalog(plan.split)
    except PrismError:
        return set()
    return {info.crop for info in known if info.crop in plan.crops and _is_cached(info, plan)}


def _is_cached(info: CropInfo, plan: ClientCrops) -> bool:
    files = [file for file in info.files if file.product is Product.CROP and covers(file.context, plan.context)]
    if not set(plan.targets) <= {file.product for file in info.files}:
        return False
    if plan.ask is None:
        return any(info.raw_shape and len(file.channels) == info.raw_shape[0] for file in files)
    return any(set(plan.ask) <= set(file.channels) for file in files)
