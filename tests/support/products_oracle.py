"""The products of a crop, computed literally from their definitions, on whole arrays in memory.

All take labels (Z, Y, X) as original or consecutive ids and raw (C, Z, Y, X) uint8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from skimage.segmentation import expand_labels

Array = np.ndarray[Any, np.dtype[Any]]
_CROSS = ndimage.generate_binary_structure(2, 1)


def kept_labels(labels: Array) -> Array:
    """Labels grown by one voxel in each slice, and each eroded once by the 4-neighbour cross."""
    kept = np.zeros_like(labels)
    for plane, target in zip(labels, kept, strict=True):
        grown = expand_labels(plane, 1)
        for label in np.unique(grown[grown > 0]):
            target[ndimage.binary_erosion(grown == label, _CROSS, border_value=1)] = label
    return kept


def avg_barcodes(raw: Array, labels: Array) -> Array:
    """Means in whole numbers, rounded down."""
    kept = kept_labels(labels)
    found = np.zeros_like(raw)
    for label in np.unique(kept[kept > 0]):
        mask = kept == label
        for channel, target in zip(raw, found, strict=True):
            target[mask] = int(channel[mask].sum(dtype=np.int64)) // int(mask.sum())
    return found


def avg_barcodes_in_floats(raw: Array, labels: Array) -> Array:
    """Means of raw / 255 in floating point, as E11's code takes them, as bytes again."""
    kept = kept_labels(labels)
    found = np.zeros_like(raw)
    for label in np.unique(kept[kept > 0]):
        mask = kept == label
        for channel, target in zip(raw.astype(np.float32) / 255, found, strict=True):
            target[mask] = (channel[mask].mean() * 255).astype(np.uint8)
    return found


def unlabelled(labels: Array) -> Array:
    return (labels > 0).astype(np.uint8)


def fgbg(ids: Array, voxel_size: tuple[int, int, int]) -> Array:
    bright = np.isin(ids, (1, 3, 10, 11))
    return (_distance_to(bright, voxel_size) < 3 * voxel_size[2]).astype(np.uint8)


def border_mask(ids: Array, voxel_size: tuple[int, int, int]) -> Array:
    bright = np.isin(ids, (1, 3, 10, 11))
    found = bright & (_distance_to(~bright, voxel_size) < 30 * voxel_size[2])
    found[np.isin(ids, (5, 6))] = False
    return found.astype(np.uint8)


def _distance_to(mask: Array, voxel_size: tuple[int, int, int]) -> Array:
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=voxel_size))
