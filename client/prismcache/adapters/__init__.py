"""Cached crops for other stacks, each in a module that needs that stack and nothing else needs.

=============  ====================================================================================
module         gives
=============  ====================================================================================
``gunpowder``  `hdf5_source`: a source node of chosen channels and labels, in world units
``funlib``     `raw_array`, `labels_array`: `funlib.persistence.Array` with offset, voxel size and units
``monai``      `items` for a MONAI dataset, and the transform `LoadCrop` that reads them
``napari``     `layers` with scale, position and names; napari itself opens crop files through it
``zarr``       `to_zarr`: OME-Zarr (NGFF 0.4), for whatever opens that; also ``prismcache export``
=============  ====================================================================================

All take the path of a crop's file, as `PrismClient.ensure` returns it, and read voxels when they are asked for.
`label_values` is "consecutive" (as in the file), "original" (the source's ids), or None: original in semantic crops,
whose class ids are the same in every crop, and consecutive in instance crops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from prismcache.crop import LabelValues
from prismcache.errors import RequestError
from prismcache.schema import Split

if TYPE_CHECKING:
    import h5py

    from prismcache.crop import Crop, OriginalLabels


def labels_of(crop: Crop, label_values: LabelValues | None) -> h5py.Dataset | OriginalLabels:
    """A crop's labels, (Z, Y, X) uint32 or, with original values, uint64; read where they are indexed.

    Raises
    ------
    RequestError
        If there are no such values.
    """
    if label_values not in {None, *get_args(LabelValues)}:
        raise RequestError(f"label_values must be one of {get_args(LabelValues)} or None, not {label_values!r}")
    if label_values is None:
        label_values = "original" if crop.split is Split.SEMANTIC else "consecutive"
    return crop.original_labels if label_values == "original" else crop.labels
