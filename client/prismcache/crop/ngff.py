"""Metadata of a crop as OME-NGFF 0.4 and funlib write them. Pure.

The same functions serve a copy on disk (`prismcache.adapters.zarr`) and the zarr face of a cached file
(`prismcache.crop.zarr_face`). Source of the format: OME-NGFF 0.4, sections "multiscales", "omero" and "image-label".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismcache.crop.voxels import OpenCrop
from prismcache.layout import AXIS_NAMES, UNITS

NGFF_VERSION = "0.4"
ALL_CHANNELS, ORIGINAL_IDS = "all_channels", "original_ids"  # groups of the zarr face for Neuroglancer
_COLOURS = ("FF0000", "00FF00", "0000FF")  # the channels that a viewer shows first, as E11 looks at crops
_ACTIVE = 3


def place(offset: Sequence[float], voxel_size: Sequence[float], *, has_channels: bool) -> dict[str, Any]:
    """Return the attributes that gunpowder, funlib, volara and dacapo read.

    Parameters
    ----------
    offset, voxel_size
        World position of the first voxel and size of a voxel, (Z, Y, X) in nm.
    has_channels
        Whether the array is (C, Z, Y, X) rather than (Z, Y, X).
    """
    return {
        "offset": list(offset),
        "resolution": list(voxel_size),
        "voxel_size": list(voxel_size),
        "axis_names": ["c^"] * has_channels + list(AXIS_NAMES),  # funlib marks an axis that is not spatial so
        "units": list(UNITS),
        "types": ["channel"] * has_channels + ["space"] * 3,
    }


def multiscale(
    name: str, offset: Sequence[float], voxel_size: Sequence[float], *, has_channels: bool
) -> dict[str, Any]:
    """Return the NGFF description of one array at path ``0``, without coarser copies.

    Parameters are those of `place`; `name` is the name that viewers show.
    """
    axes = [{"name": "c", "type": "channel"}] * has_channels
    axes += [{"name": axis, "type": "space", "unit": "nanometer"} for axis in AXIS_NAMES]
    scale, translation = [1] * has_channels + list(voxel_size), [0] * has_channels + list(offset)
    transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
    return {
        "version": NGFF_VERSION,
        "name": name,
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": transformations}],
    }


def omero(channels: Sequence[int], windows: Mapping[int, tuple[float, float]] | None = None) -> dict[str, Any]:
    """Return the NGFF ``omero`` block: a label, a colour and a brightness window for each channel.

    Parameters
    ----------
    channels
        Channel numbers, in the order of the array's first axis. The first three are active: red, green and blue.
    windows
        Lowest and highest intensity to show, by channel number; 0 to 255 for a channel without an entry.
    """
    known = windows or {}
    return {
        "channels": [
            {
                "label": f"ch_{channel:02d}",
                "color": _COLOURS[index % len(_COLOURS)],
                "window": {"start": low, "end": high, "min": 0, "max": 255},
                "active": index < _ACTIVE,
            }
            for index, channel in enumerate(channels)
            for low, high in [known.get(channel, (0, 255))]
        ]
    }


def origin(crop: OpenCrop, channels: Sequence[int]) -> dict[str, Any]:
    """Return where the voxels come from, which arrays there are, and what to cite, for the attribute ``prismcache``."""
    provenance = crop.provenance
    return {
        "crop_id": crop.crop_id,
        "split": crop.split.value,
        "channels": list(channels),
        "arrays": list(crop.arrays),
        "source": provenance.source,
        "source_fingerprint": provenance.source_fingerprint,
        "missing_chunks": provenance.missing_chunks,
        "prismcache_version": provenance.prismcache_version,
        "citation": provenance.citation,
    }


def image_label() -> dict[str, Any]:
    """Return the NGFF ``image-label`` block of a label image that lies two groups below its image."""
    return {"version": NGFF_VERSION, "source": {"image": "../../"}}
