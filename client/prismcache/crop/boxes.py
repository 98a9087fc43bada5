"""Boxes of voxels: three half-open ranges (Z, Y, X), in voxels or in world units. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prismcache.errors import RequestError

Shape3 = tuple[int, int, int]
Slices3 = tuple[slice, slice, slice]
Box = Sequence[slice]
"""Three ranges: Z, Y and X; ``slice(None)`` is all of an axis."""

_EDGE = 1e-6  # voxels; a border in nm may be this far off a voxel's border after rounding


def voxel_box(box: Box, shape: Shape3, offset: Shape3 = (0, 0, 0), voxel_size: Shape3 = (1, 1, 1)) -> Slices3:
    """Return the ranges of voxels that a box meets.

    Parameters
    ----------
    box
        Half-open ranges of Z, Y and X in world units; a missing start or stop is the array's border.
    shape
        (Z, Y, X) of the array, in voxels.
    offset, voxel_size
        World position of the array's first voxel and size of a voxel, (Z, Y, X).

    Raises
    ------
    RequestError
        If the box is not three ranges without step, is empty, or leaves the array.

    Examples
    --------
    >>> voxel_box([slice(800, 2000), slice(None), slice(0, 200)], (10, 5, 5), (400, 0, 0), (400, 168, 168))
    (slice(1, 4, None), slice(0, 5, None), slice(0, 2, None))
    """
    if [type(part) for part in box] != [slice] * 3 or any(part.step not in {None, 1} for part in box):
        raise RequestError(f"a box is three slices (Z, Y, X) without steps, not {box!r}")
    found = []
    for axis, part, extent, origin, size in zip("zyx", box, shape, offset, voxel_size, strict=True):
        start = 0 if part.start is None else math.floor((part.start - origin) / size + _EDGE)
        stop = extent if part.stop is None else math.ceil((part.stop - origin) / size - _EDGE)
        if not 0 <= start < stop <= extent:
            first, last = origin, origin + extent * size
            raise RequestError(
                f"along {axis} the box [{part.start}, {part.stop}) is empty or leaves the crop's [{first}, {last})"
            )
        found.append(slice(start, stop))
    z, y, x = found
    return z, y, x


def margins(
    shape: Shape3, offset: Shape3, outer_shape: Shape3, outer_offset: Shape3, voxel_size: Shape3
) -> tuple[Shape3, Shape3]:
    """Return the voxels (Z, Y, X) by which an outer box reaches beyond an inner one: before it, and after it.

    Shapes are in voxels, offsets and the voxel size in the same world units. A negative number is where the outer box
    ends inside the inner one.
    """
    places = zip(offset, outer_offset, voxel_size, strict=True)
    bz, by, bx = (round((inner - outer) / size) for inner, outer, size in places)
    extents = zip(outer_shape, shape, (bz, by, bx), strict=True)
    az, ay, ax = (outer - inner - before for outer, inner, before in extents)
    return (bz, by, bx), (az, ay, ax)


def shifted(box: Slices3, origin: Slices3) -> Slices3:
    """Return a box counted from where `origin` starts.

    Examples
    --------
    >>> shifted((slice(-2, 3), slice(0, 4), slice(5, 9)), (slice(-4, 30), slice(0, 30), slice(0, 30)))
    (slice(2, 7, None), slice(0, 4, None), slice(5, 9, None))
    """
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, origin, strict=True))
    return z, y, x
