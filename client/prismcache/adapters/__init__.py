"""Cached crops for other libraries. Each module needs the library that it is named after, and nothing else needs it.

=============  ====================================================================================
module         content
=============  ====================================================================================
``gunpowder``  `hdf5_source`: a source node of chosen channels and labels, in world units
``funlib``     `raw_array`, `labels_array`: `funlib.persistence.Array` with offset, voxel size and units
``monai``      `items` for a MONAI dataset, and the transform `LoadCrop` that reads them
``napari``     `layers` with scale, position and names; napari itself opens crop files through it
``zarr``       `to_zarr`: OME-Zarr (NGFF 0.4), or a group as E11's scripts read it; also ``prismcache export``
=============  ====================================================================================

All take the path of a crop's file, as `PrismClient.ensure` returns it, and read only the voxels that are asked for.
In a file with context, raw and labels each lie at their own offset.
`label_values` is "consecutive" (as in the file), "original" (the source's ids), or None: original in semantic crops,
whose class ids are the same in every crop, and consecutive in instance crops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from prismcache.crop import LabelValues
from prismcache.errors import RequestError

if TYPE_CHECKING:
    import h5py

    from prismcache.crop import Crop, OriginalLabels


def labels_of(crop: Crop, label_values: LabelValues | None) -> h5py.Dataset | OriginalLabels:
    """Return a crop's labels, (Z, Y, X) uint32, or uint64 with original values; read where they are indexed.

    Raises
    ------
    RequestError
        If `label_values` is none of the three.
    """
    if label_values not in {None, *get_args(LabelValues)}:
        raise RequestError(f"label_values must be one of {get_args(LabelValues)} or None, not {label_values!r}")
    if label_values is None:
        label_values = "original" if crop.entry.classes else "consecutive"
    return crop.original_labels if label_values == "original" else crop.labels
