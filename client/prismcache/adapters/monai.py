"""Crops for MONAI's datasets. Needs monai and torch.

::

    from monai.data import CacheDataset
    from monai.transforms import Compose, RandSpatialCropd

    patch = RandSpatialCropd(["image", "label"], roi_size=(32, 256, 256), random_size=False)
    dataset = CacheDataset(items(paths), Compose([LoadCrop(channels=[0, 3]), patch]))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform

from prismcache.adapters import labels_of
from prismcache.arguments import Numbers
from prismcache.crop import Crop, LabelValues
from prismcache.errors import RequestError


def items(paths: Iterable[os.PathLike[str] | str]) -> list[dict[str, Any]]:
    """Return an item for each crop, as MONAI's datasets take them, with the keys "path", "split" and "crop".

    Parameters
    ----------
    paths
        Files of crops.
    """
    found = []
    for path in paths:
        with Crop(path) as crop:
            found.append({"path": str(crop.path), "split": crop.split.value, "crop": crop.crop_id})
    return found


class LoadCrop(Transform):  # type: ignore[misc]  # monai is Any where mypy runs
    """Read the whole crop of an item: "image" (C, Z, Y, X) uint8 and "label" (1, Z, Y, X) int64.

    Both are MetaTensors whose affine has the voxel size and the position of the first voxel (nm; Z,Y,X). In a file with
    context the image is larger than the label, and its position is its own.

    Parameters
    ----------
    channels
        Channel numbers; the image has them in ascending order. None is all of the file's.
    label_values
        "consecutive", "original" or None; see `prismcache.adapters`.

    Raises
    ------
    UnknownChannelError
        If the file lacks a channel.
    RequestError
        If an original id is 2**63 or more, for which torch has no integer type.
    """

    def __init__(self, channels: Numbers | None = None, label_values: LabelValues | None = None) -> None:
        self.channels, self.label_values = channels, label_values

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        with Crop(item["path"]) as crop:
            image, labels = crop.read(channels=self.channels), labels_of(crop, self.label_values)[...]
            size, places = crop.voxel_size, (crop.raw_offset, crop.offset)
        if labels.dtype == np.uint64 and labels.max(initial=0) >= 2**63:
            raise RequestError(
                f"{item['path']} has the id {labels.max()}, which torch has no integers for",
                remedy='Use label_values="consecutive".',
            )
        found = {}
        for name, array, offset in zip(("image", "label"), (image, labels[None].astype(np.int64)), places, strict=True):
            affine = torch.diag(torch.tensor([*size, 1], dtype=torch.float64))
            affine[:3, 3] = torch.tensor(offset)
            found[name] = MetaTensor(torch.from_numpy(array), affine=affine)
        return {**item, **found}
