"""Crops in gunpowder pipelines, addressed in nanometres. Needs gunpowder, and works with the zarr 2 that it needs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping

from gunpowder import ArrayKey, ArraySpec, Coordinate, Hdf5Source, Roi

from prismcache.crop import Crop
from prismcache.errors import RequestError
from prismcache.layout import LABELS, raw_dataset


def hdf5_source(path: os.PathLike[str] | str, arrays: Mapping[ArrayKey, int | str]) -> Hdf5Source:
    """Return a source node over a crop's file; only requested boxes are read.

    Labels have consecutive ids. For original ids, or several channels in one array, use gunpowder's `ArraySource` with
    the arrays of `prismcache.adapters.funlib`.

    Parameters
    ----------
    path
        A crop's file.
    arrays
        For each key that the node shall provide, the number of a channel (uint8, interpolatable), "labels" (uint32), or
        the name of a further array, such as "psd95_weights" (its own dtype; floats are interpolatable).

    Returns
    -------
    Hdf5Source
        `array_specs` has the roi and voxel size (nm; Z,Y,X) and the dtype of each key, also before the pipeline is
        built. In a file with context the roi of raw is larger than that of labels.

    Raises
    ------
    RequestError
        If a value of `arrays` is neither a channel's number nor a name that the crop has.
    UnknownChannelError
        If the file lacks a channel.

    Examples
    --------
    >>> raw, labels = gp.ArrayKey("RAW"), gp.ArrayKey("LABELS")
    >>> source = hdf5_source("/lab/prism/instance/crop_0.h5", {raw: 0, labels: "labels"})
    >>> source.array_specs[raw].voxel_size
    (400, 168, 168)
    """
    with Crop(path) as crop:
        names, specs = {}, {}
        for key, what in arrays.items():
            if what == LABELS:
                name, dataset, offset, interpolatable = LABELS, crop.labels, crop.offset, False
            elif isinstance(what, int):
                name, dataset, offset, interpolatable = raw_dataset(what), crop.channel(what), crop.raw_offset, True
            elif what in crop.arrays:
                name, dataset, offset = what, crop.array(what), crop.array_offset(what)
                interpolatable = dataset.dtype.kind == "f"
            else:
                has = ", ".join(map(repr, [LABELS] * crop.has_labels + list(crop.arrays)))
                raise RequestError(
                    f"{key} must be a channel's number{f' or one of {has}' if has else ''}, not {what!r}"
                )
            box = Roi(offset, Coordinate(dataset.shape) * Coordinate(crop.voxel_size))
            names[key] = name
            specs[key] = ArraySpec(box, crop.voxel_size, interpolatable=interpolatable, dtype=dataset.dtype)
        file = str(crop.path)
    with warnings.catch_warnings():  # gunpowder 1.4 announces its version 2
        warnings.filterwarnings("ignore", "HDF5LikeSource is", DeprecationWarning)
        return Hdf5Source(file, names, specs)
