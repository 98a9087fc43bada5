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
    """An item for each crop, as MONAI's datasets take them: its "path", "split" and "crop".

    Parameters
    ----------
    paths
        Crops' files.
    """
    found = []
    for path in paths:
        with Crop(path) as crop:
            found.append({"path": str(crop.path), "split": crop.split.value, "crop": crop.crop_id})
    return found


class LoadCrop(Transform):  # type: ignore[misc]  # monai is Any where mypy runs
    """Read an item's crop whole: its "image" (C, Z, Y, X) uint8 and its "label" (1, Z, Y, X) int64.

    Both are MetaTensors whose affine has the voxel size and the position of the first voxel (nm; Z,Y,X).

    Parameters
    ----------
    channels
        Numbers of the channels wanted, which come in ascending order; None is all of the file's.
    label_values
        "consecutive", "original" or None; see `prismcache.adapters`.

    Raises
    ------
    UnknownChannelError
        If the file lacks a channel.
    RequestError
        If an original id is 2**63 or more, which torch has no integers for.
    """

    def __init__(self, channels: Numbers | None = None, label_values: LabelValues | None = None) -> None:
        self.channels, self.label_values = channels, label_values

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        with Crop(item["path"]) as crop:
            image, labels = crop.read(channels=self.channels), labels_of(crop, self.label_values)[...]
            affine = torch.diag(torch.tensor([*crop.voxel_size, 1], dtype=torch.float64))
            affine[:3, 3] = torch.tensor(crop.offset)
        if labels.dtype == np.uint64 and labels.max(initial=0) >= 2**63:
            raise RequestError(
                f"{item['path']} has the id {labels.max()}, which torch has no integers for",
                remedy='Use label_values="consecutive".',
            )
        label = torch.from_numpy(labels[None].astype(np.int64))
        return {
            **item,
            "image": MetaTensor(torch.from_numpy(image), affine=affine),
            "label": MetaTensor(label, affine=affine.clone()),
        }
