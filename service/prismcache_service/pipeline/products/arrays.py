"""What products are computed from: grown and eroded labels, sums of raw for each label, near voxels. Pure.

The definitions are those of E11bio's training code; all arrays are (Z, Y, X) slabs or boxes of a crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Labels = np.ndarray[Any, np.dtype[np.uint32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Triple = tuple[int, int, int]

BRIGHT = (1, 3, 10, 11)
"""Original ids of the semantic classes that are bright in raw; vessels are none of them."""


def barcode_labels(labels: Labels) -> Labels:
    """Return the labels whose voxels count for a barcode: grown by one voxel, then eroded once, slice by slice.

    Growing: a background voxel next to a label in its slice takes that label. Of several, it takes the one that
    scikit-image's ``expand_labels(slice, 1)`` takes: left, above, below, right, in this order (a test compares; the
    comparison of neighbours is ten times as fast). Eroding: a voxel stays if its four neighbours in the slice have its
    label; what lies outside the image counts as inside. All other voxels become 0.
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


@dataclass(frozen=True)
class LabelRuns:
    """The runs of one label along X in a plane, of which segmentations have ten times fewer than voxels.

    Attributes
    ----------
    labels
        (R,), the label of each run, in C order.
    stops
        (R,), where each run ends: the number of voxels of the plane, in C order, up to its last one.
    """

    labels: Array
    stops: Array

    @classmethod
    def of(cls, plane: Array) -> LabelRuns:
        """Return the runs of a plane (Y, X) of labels."""
        is_last = np.ones(plane.shape, bool)
        is_last[:, :-1] = plane[:, 1:] != plane[:, :-1]
        return cls(plane[is_last], np.flatnonzero(is_last) + 1)

    @property
    def lengths(self) -> Array:
        """(R,), the voxels of each run."""
        return np.diff(self.stops, prepend=0)

    def sums(self, plane: Array, count: int) -> Counts:
        """Return (count,) int64: the sum of a plane (Y, X) of integers over the voxels of each label."""
        totals = np.cumsum(plane.reshape(-1), dtype=np.int64)[self.stops - 1]
        return self.sums_of(np.diff(totals, prepend=0), count)

    def sums_of(self, values: Array, count: int) -> Counts:
        """Return (count,) int64: the sum of one number for each run, (R,), over the runs of each label.

        Exact while a plane's sums are below 2**53: the floating-point numbers of ``bincount`` are then whole.
        """
        return np.bincount(self.labels, values, count).astype(np.int64)


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


class NearVoxels:
    """The voxels of a box whose Euclidean distance to the nearest voxel of a mask is less than a limit.

    Exact, since all numbers are integers. A plane of the mask marks the planes that the limit reaches, each with a
    cross-section of the ball around its voxels.

    Parameters
    ----------
    shape
        (Z, Y, X) of the box, in voxels.
    limit, voxel_size
        The limit, and the size (Z, Y, X) of a voxel, in nm.
    with_mask
        Whether the voxels of the mask itself count, whose distance is 0.
    """

    def __init__(self, shape: Triple, limit: int, voxel_size: Triple, *, with_mask: bool) -> None:
        unit = math.gcd(limit, *voxel_size)
        self._limit, self._with_mask = limit // unit, with_mask
        self._z, self._y, self._x = (size // unit for size in voxel_size)
        self._marks = np.zeros(shape, np.uint8)  # 1: near; 2 or 3: in the mask, and does not count

    def add(self, z: int, mask: Array, inner: tuple[slice, slice]) -> None:
        """Add plane `z` of the mask, bool (Y, X): `inner` of it is the box, around which it has all that is near."""
        squares = plane_distances(mask, self._limit, (self._y, self._x))[inner]
        for step in range(-(-self._limit // self._z)):
            near = squares < self._limit**2 - (step * self._z) ** 2
            for plane in {z - step, z + step} & set(range(len(self._marks))):
                self._marks[plane] |= near
        if not self._with_mask:
            self._marks[z] |= mask[inner].view(np.uint8) << 1

    def found(self, planes: slice) -> Bytes:
        """Return some planes, (Z, Y, X) uint8: 1 where a voxel is near; all planes of the mask have been added."""
        found: Bytes = (self._marks[planes] == 1).view(np.uint8)
        return found


def plane_distances(mask: Array, limit: int, voxel_size: tuple[int, int]) -> Array:
    """Return the square of the distance to the nearest voxel of a mask in a plane, where it is below ``limit**2``.

    First along X by the places of the nearest voxels of the mask, then along Y as the least of the rows that the limit
    reaches: for limits of 30 voxels a third of the time of scipy's distance transform, and in integers.

    Parameters
    ----------
    mask
        (Y, X) bool.
    limit, voxel_size
        The limit, and the size (Y, X) of a voxel, in the same unit.

    Returns
    -------
    ndarray
        (Y, X), unsigned integers; `limit` squared or more where the mask is farther.
    """
    dtype = np.uint32 if limit < 1 << 15 else np.uint64  # sums of two squares fit
    reach_y, reach_x = (-(-limit // size) for size in voxel_size)
    places, far = np.arange(mask.shape[1], dtype=np.int32), np.int32(mask.shape[1] + reach_x)
    before = np.maximum.accumulate(np.where(mask, places, -far), axis=1)
    after = np.minimum.accumulate(np.where(mask, places, 2 * far)[:, ::-1], axis=1)[:, ::-1]
    along_x = np.minimum(np.minimum(places - before, after - places), reach_x).astype(dtype)
    along_x *= dtype(voxel_size[1])
    along_x *= along_x
    least: Array = along_x.copy()
    moved = np.empty_like(along_x)
    for step in range(1, min(reach_y, len(mask))):
        np.add(along_x, dtype((step * voxel_size[0]) ** 2), out=moved)
        np.minimum(least[:-step], moved[step:], out=least[:-step])
        np.minimum(least[step:], moved[:-step], out=least[step:])
    return least
