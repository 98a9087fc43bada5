"""Crops as napari layers, with scale, position and names. napari opens crop files through it (``napari.yaml``).

::

    viewer = napari.Viewer()
    for layer in layers("/lab/prism/instance/crop_0.h5"):
        viewer.add_layer(napari.layers.Layer.create(*layer))
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prismcache.adapters import labels_of
from prismcache.arguments import Numbers, as_channels
from prismcache.crop import CITATION, Crop, LabelValues
from prismcache.layout import AXIS_NAMES, UNITS, parse_file_name
from prismcache.schema import Product

LayerData = tuple[Any, dict[str, Any], str]
"""Voxels, keyword arguments of the layer, and the layer's kind."""

_COLORMAPS = ("green", "magenta", "cyan", "yellow", "red", "blue")
_SHOWN = 3  # channels: more cannot be told apart when they are drawn over one another


def layers(
    path: os.PathLike[str] | str, channels: Numbers | None = None, label_values: LabelValues | None = None
) -> list[LayerData]:
    """Return layers of a crop: each channel, labels, further arrays. napari reads the slices that it shows.

    Parameters
    ----------
    path
        A crop's file.
    channels
        Channel numbers; None is all of the file's. The first three are visible.
    label_values
        "consecutive", "original" or None; see `prismcache.adapters`.

    Returns
    -------
    list of tuple
        (voxels, arguments, kind): (Z, Y, X) uint8 with kind "image", then uint32 or uint64 with kind "labels"; then the
        further arrays, not visible at first, of kind "labels" if they are integers, else "image"; scale and translate
        in nm.

    Raises
    ------
    UnknownChannelError
        If the file lacks a channel.
    RequestError
        If `label_values` is given for a crop without labels.
    """
    crop = Crop(path)
    name = f"{crop.split.value}/{crop.crop_id}"
    placed = {
        "scale": crop.voxel_size,
        "units": UNITS,
        "axis_labels": AXIS_NAMES,
        "metadata": {"path": str(crop.path), "citation": CITATION},
    }
    found: list[LayerData] = []
    for place, channel in enumerate(as_channels(channels) or crop.channels):
        look = {
            "name": f"{name} ch {channel}",
            "colormap": _COLORMAPS[place % len(_COLORMAPS)],
            "blending": "additive",
            "contrast_limits": (0, 255),  # else napari reads the voxels to find them
            "visible": place < _SHOWN,
        }
        found.append((crop.channel(channel), placed | look | {"translate": crop.raw_offset}, "image"))
    if crop.has_labels or label_values is not None:
        look = {"name": f"{name} labels", "translate": crop.offset}
        found.append((labels_of(crop, label_values), placed | look, "labels"))
    for array in crop.arrays:
        voxels = crop.array(array)
        look = {"name": f"{name} {array}", "translate": crop.array_offset(array), "visible": False}
        found.append((voxels, placed | look, "labels" if voxels.dtype.kind in "iu" else "image"))
    return found


def reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return the function that reads these files, for napari; None if one is no crop's file."""
    paths = [path] if isinstance(path, str) else path
    names = [parse_file_name(Path(each).name) for each in paths]
    if any(name is None or name.product is not Product.CROP for name in names):
        return None
    return lambda given: [layer for each in ([given] if isinstance(given, str) else given) for layer in layers(each)]
