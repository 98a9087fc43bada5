"""Crops as `funlib.persistence.Array`, addressed in nanometres: for daisy, volara, dacapo, gunpowder's ArraySource."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dask.array import from_array
from funlib.persistence import Array

from prismcache.adapters import labels_of
from prismcache.arguments import Numbers, as_channels
from prismcache.crop import Crop, LabelValues, OriginalLabels, Shape3
from prismcache.layout import AXIS_NAMES, LABELS, UNITS

if TYPE_CHECKING:
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
    return _placed(labels if isinstance(labels, OriginalLabels) else _Voxels(crop, LABELS), crop, LABELS, crop.offset)


def further_array(path: os.PathLike[str] | str, name: str) -> Array:
    """Return a further array of a crop, such as "psd95_output": (Z, Y, X) of its own dtype, at its place (nm).

    Voxels are read when they are used, also in other processes.

    Parameters
    ----------
    path
        A crop's file.
    name
        One of `Crop.arrays`.

    Raises
    ------
    RequestError
        If the file has no such array; the message names those that it has.
    """
    crop = Crop(path)
    crop.array(name)
    return _placed(_Voxels(crop, name), crop, name, crop.array_offset(name))


def _placed(voxels: Any, crop: Crop, name: str, offset: Shape3) -> Array:
    lazy = from_array(voxels, chunks=crop.file[name].chunks)  # type: ignore[no-untyped-call]  # dask has no types there
    return Array(lazy, offset, crop.voxel_size, list(AXIS_NAMES), list(UNITS), ["space"] * 3)


class _Voxels:
    """Voxels of a dataset, (Z, Y, X), as they are in the file. Unlike h5py's dataset, it can be pickled."""

    ndim = 3

    def __init__(self, crop: Crop, name: str) -> None:
        self._crop, self._name = crop, name
        self.shape, self.dtype = crop.file[name].shape, crop.file[name].dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        found: NDArray[Any] = (self._crop.labels if self._name == LABELS else self._crop.array(self._name))[key]
        return found
