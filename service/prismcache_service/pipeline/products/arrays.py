"""What products are computed from: grown and eroded labels, sums of raw for each label, distances. Pure.

The definitions are those of E11bio's training code; all arrays are (Z, Y, X) slabs or boxes of a crop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

Array = np.ndarray[Any, np.dtype[Any]]
Labels = np.ndarray[Any, np.dtype[np.uint32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Triple = tuple[int, int, int]

BRIGHT = (1, 3, 10, 11)
"""Original ids of the semantic classes that are bright in raw."""
VESSELS = (5, 6)
"""Original ids of vessels."""

_TILE_VOXELS = 3_000_000  # with its margin; the distance transform takes some 50 bytes a voxel


def barcode_labels(labels: Labels) -> Labels:
    """Return the labels whose voxels count for a barcode: grown by one voxel, then eroded once, slice by slice.

    Growing: a background voxel next to a label in its slice takes that label. Of several, it takes the one that
    scikit-image's ``expand_labels(slice, 1)`` takes: left, above, below, right, in this order (a test compares; the
    comparison of neighbours is ten times as fast). Eroding: a voxel stays if its four neighbours in the slice have its
    label; what lies outside the image counts as inside. All other voxels become 0.

    Parameters
    ----------
    labels
        (Z, Y, X) uint32.

    Returns
    -------
    ndarray
        (Z, Y, X) uint32.
    """
    grown = labels.copy()
    # From the last choice to the first, so that the first one stays.
    for target, neighbour in (
        (np.s_[:, :, :-1], np.s_[:, :, 1:]),  # right
        (np.s_[:, :-1], np.s_[:, 1:]),  # below
        (np.s_[:, 1:], np.s_[:, :-1]),  # above
        (np.s_[:, :, 1:], np.s_[:, :, :-1]),  # left
    ):
        takes = (labels[target] == 0) & (labels[neighbour] != 0)
        np.copyto(grown[target], labels[neighbour], where=takes)
    keeps = np.ones(labels.shape, bool)
    for one, other in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[:, :, 1:], np.s_[:, :, :-1])):
        equal = grown[one] == grown[other]
        keeps[one] &= equal
        keeps[other] &= equal
    grown[~keeps] = 0
    return grown


def label_sums(labels: Array, values: Array, count: int) -> Counts:
    """Return (count,) int64: the sum of `values`, integers below 2**16, over the voxels of each label in a slab.

    Exact: a slab's sum is below 2**53, so that the floating-point numbers of ``bincount`` are whole.
    """
    sums = np.bincount(labels.reshape(-1), weights=values.reshape(-1), minlength=count)
    return sums.astype(np.int64)


def mean_table(sums: Counts, counts: Counts) -> Bytes:
    """Return (C, n+1) uint8: floor(sum / count) for each channel and label; 0 for the background and for no voxels.

    Parameters
    ----------
    sums
        (C, n+1), sums of uint8 values.
    counts
        (n+1,), voxels of each label.
    """
    table = (sums // np.maximum(counts, 1)).astype(np.uint8)
    table[:, 0] = 0
    return table


def near(mask: Array, limit_nm: float, voxel_size: Triple) -> Array:
    """Return where the Euclidean distance to the nearest voxel of `mask` is less than `limit_nm`; bool."""
    if not mask.any():
        return np.zeros(mask.shape, bool)
    return np.asarray(distance_transform_edt(~mask, sampling=voxel_size) < limit_nm)


@dataclass(frozen=True)
class Tile:
    """A box of a crop, and the wider box that distances below a limit are computed in.

    Attributes
    ----------
    box
        The voxels whose distances are wanted.
    wide
        `box` and its margin, cut off at the crop's border.
    inner
        `box` in the coordinates of `wide`.
    """

    box: tuple[slice, slice, slice]
    wide: tuple[slice, slice, slice]
    inner: tuple[slice, slice, slice]


def tiles(shape: Triple, chunk: Triple, margin: Triple) -> Iterator[Tile]:
    """Cut a crop into boxes of whole chunks, small enough with their margins, in C order."""
    size = list(chunk)
    for axis in (2, 1):
        fits = (
            _TILE_VOXELS
            * (size[axis] + 2 * margin[axis])
            // math.prod(n + 2 * m for n, m in zip(size, margin, strict=True))
        )
        wanted = min(shape[axis], max(size[axis], fits - 2 * margin[axis]))
        size[axis] = max(1, wanted // chunk[axis]) * chunk[axis] if wanted < shape[axis] else shape[axis]
    for corner in itertools.product(*(range(0, n, step) for n, step in zip(shape, size, strict=True))):
        box, wide, inner = [], [], []
        for first, step, by, extent in zip(corner, size, margin, shape, strict=True):
            stop, low = min(extent, first + step), max(0, first - by)
            box.append(slice(first, stop))
            wide.append(slice(low, min(extent, stop + by)))
            inner.append(slice(first - low, stop - low))
        yield Tile((box[0], box[1], box[2]), (wide[0], wide[1], wide[2]), (inner[0], inner[1], inner[2]))
