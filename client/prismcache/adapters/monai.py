"""Crops for MONAI's datasets. Needs monai and torch.

::

    from monai.data import CacheDataset
    from monai.transforms import Compose, RandSpatialCropd

    patch = RandSpatialCropd(["image", "label"], roi_size=(32, 256, 256), random_size=False)
    dataset = CacheDataset(items(paths), Compose([LoadCrop(channels=[0, 3]), patch]))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from numpy.typing import NDArray

from prismcache.adapters import labels_of
from prismcache.arguments import Numbers
from prismcache.crop import Crop, LabelValues, Shape3
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
    """Read the whole crop of an item: "image" (C, Z, Y, X) uint8, "label" (1, Z, Y, X) int64, and further arrays.

    All are MetaTensors whose affine has the voxel size and the position of the first voxel (nm; Z,Y,X). In a file with
    context the image is larger than the label, and its position is its own. A crop without labels, such as one of
    synapses, has no "label". Further arrays have their names as keys, and places and extents of their own: (1, Z, Y, X)
    int64 for integers of more than one byte, else of their own dtype.

    Parameters
    ----------
    channels
        Channel numbers; the image has them in ascending order. None is all of the file's.
    label_values
        "consecutive", "original" or None; see `prismcache.adapters`.
    arrays
        Names of the further arrays to read; None is all of the file's.

    Raises
    ------
    UnknownChannelError
        If the file lacks a channel.
    RequestError
        If an integer is 2**63 or more, for which torch has no type, or `label_values` is given for a crop without
        labels.
    """

    def __init__(
        self,
        channels: Numbers | None = None,
        label_values: LabelValues | None = None,
        arrays: Sequence[str] | None = None,
    ) -> None:
        self.channels, self.label_values, self.arrays = channels, label_values, arrays

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        with Crop(item["path"]) as crop:
            found: dict[str, tuple[NDArray[Any], Shape3]] = {}
            found["image"] = (crop.read(channels=self.channels), crop.raw_offset)
            if crop.has_labels or self.label_values is not None:
                found["label"] = labels_of(crop, self.label_values)[...][None], crop.offset
            for name in crop.arrays if self.arrays is None else self.arrays:
                found[name] = crop.array(name)[...][None], crop.array_offset(name)
            size = crop.voxel_size
        tensors = {name: _tensor(f"{item['path']}: {name}", *each, size) for name, each in found.items()}
        return {**item, **tensors}


def _tensor(what: str, voxels: NDArray[Any], offset: Shape3, voxel_size: Shape3) -> MetaTensor:
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize > 1:
        if voxels.max(initial=0) >= 2**63:
            raise RequestError(
                f"{what} has the value {voxels.max()}, which torch has no integers for",
                remedy='Use label_values="consecutive" for labels; leave other arrays out.',
            )
        voxels = voxels.astype(np.int64)
    affine = torch.diag(torch.tensor([*voxel_size, 1], dtype=torch.float64))
    affine[:3, 3] = torch.tensor(offset)
    return MetaTensor(torch.from_numpy(voxels), affine=affine)
