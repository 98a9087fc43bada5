"""The crops of a training set: what each is, found from paths or through a client, and how its voxels are read."""

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
from prismcache.errors import PrismError, RequestError, UnknownChannelError, UnknownCropError
from prismcache.layout import LABELS, LABELS_IDS, raw_dataset
from prismcache.progress.reporter import Progress
from prismcache.schema import CropInfo, Split
from prismcache.torch.decoded import Layout, labels_dtype
from prismcache.torch.patches import Channels, choose_channels

Array = np.ndarray[Any, np.dtype[Any]]


class Reader(Protocol):
    """What reads boxes of a crop's datasets: from its file or from arrays."""

    def read(self, name: str, box: Slices3, out: Array, ids: Array | None = None) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class CropFacts:
    """What a file says of its crop.

    Attributes
    ----------
    path
        The file.
    split, crop
        Its name.
    channels
        Those of the file.
    shape
        (Z, Y, X) in voxels.
    ids
        (n+1,) uint64, the original id of each label; None in a file that another program wrote.
    """

    path: Path
    split: Split
    crop: int
    channels: tuple[int, ...]
    shape: Shape3
    ids: Array | None

    @property
    def name(self) -> str:
        return crop_name(self.split, self.crop)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> CropFacts:
        """Read them.

        Raises
        ------
        PrismError
            As `Crop` does.
        """
        with Crop(path) as crop:
            ids = crop.labels_ids if LABELS_IDS in crop.file else None
            return cls(crop.path, crop.split, crop.crop_id, crop.channels, crop.shape, ids)

    def table(self, *, original: bool) -> Array | None:
        """What to put in place of each label: its original id, or None for nothing.

        Raises
        ------
        RequestError
            If the file has no original ids.
        """
        if not original:
            return None
        if self.ids is None:
            with Crop(self.path) as crop:
                return crop.labels_ids  # says what is the matter
        return self.ids

    def layout(self, channels: Sequence[int]) -> Layout:
        """What is decoded of it, in the smallest dtypes."""
        largest = np.iinfo(np.uint32).max if self.ids is None else len(self.ids) - 1
        return decoded_layout(self.shape, channels, labels_dtype(largest))


def crop_name(split: Split, crop: int) -> str:
    """How errors call a crop."""
    return f"{split.value} crop {crop}"


def decoded_layout(shape: Shape3, channels: Sequence[int], labels: str = "uint32") -> Layout:
    """What is decoded of a crop of that shape, (Z, Y, X), with labels of that dtype."""
    return Layout(shape, {LABELS: labels} | {raw_dataset(channel): "uint8" for channel in channels})


def facts_of_files(
    paths: Sequence[str | os.PathLike[str]], split: str | Split | None, crops: Numbers | None
) -> list[CropFacts]:
    """The crops of these files.

    Parameters
    ----------
    paths
        Files, as `PrismClient.ensure` returns them.
    split
        What all must be of; None takes any one.
    crops
        Only these, in this order; None is all.

    Raises
    ------
    RequestError
        If there is none, or they are of different splits.
    UnknownCropError
        If one of `crops` is not among them.
    """
    folder = next((path for path in paths if Path(path).is_dir()), None)
    if folder is not None:
        raise RequestError(
            f"{os.fspath(folder)!r} is a folder, not a crop's file",
            remedy=f"Give PrismClient(root={os.fspath(folder)!r}), or the paths of the files.",
        )
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


@dataclass(frozen=True)
class ClientCrops:
    """The crops that a client shall provide.

    Attributes
    ----------
    split, crops
        Which.
    ask
        Channels to ask the client for; None is all.
    described
        What is known of the crops before they are there; empty where that was not needed.
    """

    split: Split
    crops: tuple[int, ...]
    ask: tuple[int, ...] | None
    described: Mapping[int, CropInfo]


def plan_client_crops(
    client: PrismClient, split: str | Split | None, crops: Numbers | None, channels: Channels
) -> ClientCrops:
    """What to ask a client for.

    Raises
    ------
    UnknownChannelError
        If the crops do not all have the channels.
    PrismError
        Whatever the client raises.
    """
    wanted = as_split(Split.INSTANCE if split is None else split)
    numbers = as_crops(crops)
    if numbers is None:
        numbers = tuple(info.crop for info in client.catalog(wanted))
    if not numbers:
        raise RequestError(f"no crop of the split {wanted.value!r} is asked for")
    numbers = tuple(dict.fromkeys(numbers))
    if not isinstance(channels, str):
        return ClientCrops(wanted, numbers, tuple(sorted(choose_channels(channels, {}))), {})
    described = describe(client, wanted, numbers)
    chosen = choose_channels(channels, channels_of(described))
    return ClientCrops(wanted, numbers, None if channels == "all" else chosen, described)


def describe(client: PrismClient, split: Split, crops: Sequence[int]) -> dict[int, CropInfo]:
    """What is published of these crops, with their shapes.

    Raises
    ------
    PrismError
        If one cannot be read.
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
    """Channels of published crops, by the crops' names."""
    return {crop_name(info.split, crop): range(info.raw_shape[0]) for crop, info in described.items() if info.raw_shape}


def ensure_crops(client: PrismClient, plan: ClientCrops, crops: Sequence[int], progress: Progress) -> list[str]:
    """Paths of crops, fetched where they are not cached.

    Raises
    ------
    UnknownChannelError
        If one lacks a channel; names the channels that all crops of the plan have.
    PrismError
        Whatever the client raises.
    """
    try:
        return client.ensure(plan.split, crops, channels=plan.ask, progress=progress)
    except UnknownChannelError:
        choose_channels(plan.ask or "all", channels_of(describe(client, plan.split, plan.crops)))
        raise


def cached_crops(client: PrismClient, plan: ClientCrops) -> set[int]:
    """Those of the plan's crops that are cached with the channels wanted; none where the catalog cannot be had."""
    try:
        known = client.catalog(plan.split)
    except PrismError:
        return set()
    return {info.crop for info in known if info.crop in plan.crops and _is_cached(info, plan.ask)}


def _is_cached(info: CropInfo, channels: tuple[int, ...] | None) -> bool:
    if channels is None:
        return any(info.raw_shape and len(file.channels) == info.raw_shape[0] for file in info.files)
    return any(set(channels) <= set(file.channels) for file in info.files)
