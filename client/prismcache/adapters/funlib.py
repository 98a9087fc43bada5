"""Crops as `funlib.persistence.Array`, addressed in nanometres: for daisy, volara, dacapo, gunpowder's ArraySource."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dask.array import from_array
from funlib.persistence import Array

from prismcache.adapters import labels_of
from prismcache.arguments import Numbers, as_channels
from prismcache.crop import Crop, LabelValues, OriginalLabels
from prismcache.layout import AXIS_NAMES, UNITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def raw_array(path: os.PathLike[str] | str, channels: Numbers | None = None) -> Array:
    """Return raw of a crop: (C, Z, Y, X) uint8 at its place in the world (nm; Z,Y,X), with all of its context.

    Voxels are read when they are used, also in other processes.

    Parameters
    ----------
    path
        A crop's file.
    channels
        Channel numbers; the array has them in ascending order. None is all of the file's.

    Raises
    ------
    UnknownChannelError
        If the file lacks a channel.

    Examples
    --------
    >>> raw = raw_array("/lab/prism/instance/crop_0.h5", channels=[0, 3])
    >>> raw[Roi(raw.roi.offset, (12800, 43008, 43008))].shape
    (2, 32, 256, 256)
    """
    crop = Crop(path)
    wanted = as_channels(channels) or crop.channels
    for channel in wanted:
        crop.channel(channel)
    voxels = from_array(crop.raw, chunks=(1, *crop.channel(wanted[0]).chunks))  # type: ignore[no-untyped-call]  # dask has no types there
    if wanted != crop.channels:
        voxels = voxels[[crop.channels.index(channel) for channel in wanted]]
    types = ["channel", "space", "space", "space"]
    return Array(voxels, crop.raw_offset, crop.voxel_size, ["c^", *AXIS_NAMES], list(UNITS), types)


def labels_array(path: os.PathLike[str] | str, label_values: LabelValues | None = None) -> Array:
    """Return labels of a crop: (Z, Y, X) uint32 if consecutive, else uint64, at their place in the world (nm).

    Voxels are read when they are used, also in other processes.

    Parameters
    ----------
    path
        A crop's file.
    label_values
        "consecutive", "original" or None; see `prismcache.adapters`.
    """
    crop = Crop(path)
    labels = labels_of(crop, label_values)
    lazy = labels if isinstance(labels, OriginalLabels) else _ConsecutiveLabels(crop)
    voxels = from_array(lazy, chunks=crop.labels.chunks)  # type: ignore[no-untyped-call]  # dask has no types there
    return Array(voxels, crop.offset, crop.voxel_size, list(AXIS_NAMES), list(UNITS), ["space"] * 3)


class _ConsecutiveLabels:
    """Labels as they are in the file. Unlike h5py's dataset, it can be pickled."""

    ndim = 3

    def __init__(self, crop: Crop) -> None:
        self._crop = crop
        self.shape, self.dtype = crop.shape, crop.labels.dtype

    def __getitem__(self, key: Any) -> NDArray[np.uint32]:
        found: NDArray[np.uint32] = self._crop.labels[key]
        return found
