"""Where the labels lie in raw: a whole-voxel, in-bounds shift, or a clear refusal. Pure.

The shift is the reference's ``round((labels.offset - raw.offset) / raw.resolution)`` per axis, but where the reference
rounds any number, wraps around at a negative one and cuts short past the end, this refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from prismcache.errors import InvalidSourceError, MisalignedError
from prismcache_service.pipeline.plan.metadata import ArraySource

Triple = tuple[int, int, int]
Vector = tuple[float, float, float]

_WHOLE_VOXEL_TOLERANCE = 0.01  # voxels; offsets written as floats carry rounding noise, never more
_WHOLE_NM_TOLERANCE = 0.001  # nm; the same
_NO_VOXEL_SIZE = "the source gives no voxel size: places and sizes in the file are in voxels"


@dataclass(frozen=True)
class Alignment:
    """The labels' box in raw, half-open in voxels (Z,Y,X), and its place in the world (Z,Y,X).

    Attributes
    ----------
    start, stop
        The box.
    offset, resolution
        Whole nm, as gunpowder wants them; in voxels, 0 and 1, without a voxel size.
    offset_nm, voxel_size_nm
        The exact values in nm where the whole ones are rounded, or say nothing; else None.
    has_voxel_size
        Whether raw or labels have a voxel size.
    notes
        Sentences on what the source lacks or what was rounded.
    """

    start: Triple
    stop: Triple
    offset: Triple
    resolution: Triple
    offset_nm: Vector | None = None
    voxel_size_nm: Vector | None = None
    has_voxel_size: bool = True
    notes: tuple[str, ...] = ()


def align(where: str, raw: ArraySource, labels: ArraySource | None) -> Alignment:
    """Return the box of raw that the labels cover, all of raw for a crop without labels; `where` begins every message.

    Raises
    ------
    MisalignedError
        If the shift is no whole number of voxels, the box leaves raw on any side, the resolutions differ, or an offset
        or both resolutions are missing where they are needed; the message gives the numbers.
    InvalidSourceError
        If a voxel is too small for whole nm.
    """
    labels = labels or replace(raw, shape=raw.shape[1:])
    if raw.resolution and labels.resolution and raw.resolution != labels.resolution:
        raise MisalignedError(f"{where}: raw has resolution {raw.resolution}, labels have {labels.resolution}")
    size, offset = raw.resolution or labels.resolution, labels.offset or raw.offset
    shift = _shift(where, raw, labels, size)
    stop = _triple(s + n for s, n in zip(shift, labels.shape, strict=True))
    if min(shift) < 0 or any(e > n for e, n in zip(stop, raw.shape[1:], strict=True)):
        raise MisalignedError(
            f"{where}: labels of shape {labels.shape} at offset {labels.offset} would cover voxels {shift} to {stop} "
            f"of raw, which has {raw.shape[1:]} at offset {raw.offset} (resolution {size})"
        )
    if size is None:
        return Alignment(shift, stop, (0, 0, 0), (1, 1, 1), offset, None, has_voxel_size=False, notes=(_NO_VOXEL_SIZE,))
    place = offset or (0.0, 0.0, 0.0)
    whole_place, whole_size = _triple(map(round, place)), _triple(map(round, size))
    if min(whole_size) < 1:
        raise InvalidSourceError(f"{where}: resolution {size} is less than half a nm, which files cannot hold")
    if _is_whole((*place, *size)):
        return Alignment(shift, stop, whole_place, whole_size)
    note = (
        f"voxel size {size} and offset {place} nm are rounded to {whole_size} and {whole_place} in `voxel_size` and "
        "`offset`; `voxel_size_nm` and `offset_nm` are exact"
    )
    return Alignment(shift, stop, whole_place, whole_size, place, size, notes=(note,))


def align_beside(where: str, raw: ArraySource, array: ArraySource) -> Alignment:
    """Return the box of raw that a further array covers, which may reach beyond raw, and its place in the world.

    Raises
    ------
    MisalignedError
        As `align`, except that the array may leave raw.
    """
    if raw.resolution and array.resolution and raw.resolution != array.resolution:
        raise MisalignedError(f"{where}: raw has resolution {raw.resolution}, {array.name!r} has {array.resolution}")
    size = raw.resolution or array.resolution
    start = _shift(where, raw, array, size)
    stop = _triple(s + n for s, n in zip(start, array.shape, strict=True))
    place = array.offset or raw.offset or (0.0, 0.0, 0.0)
    if size is None:
        return Alignment(start, stop, start, (1, 1, 1), array.offset or raw.offset, None, has_voxel_size=False)
    whole = Alignment(start, stop, _triple(map(round, place)), _triple(map(round, size)))
    return whole if _is_whole((*place, *size)) else replace(whole, offset_nm=place, voxel_size_nm=size)


def _is_whole(values: Iterable[float]) -> bool:
    return all(abs(value - round(value)) <= _WHOLE_NM_TOLERANCE for value in values)


def _shift(where: str, raw: ArraySource, labels: ArraySource, size: Vector | None) -> Triple:
    """Return the first voxel of labels, or of another array, in raw."""
    if raw.offset is None or labels.offset is None:
        if raw.shape[1:] != labels.shape:
            missing = " and ".join(a.name for a in (raw, labels) if a.offset is None)
            raise MisalignedError(
                f"{where}: the offset of {missing} is missing, and raw {raw.shape[1:]} and {labels.name} "
                f"{labels.shape} differ in shape, so their relative position is unknown"
            )
        return 0, 0, 0
    if raw.offset == labels.offset:
        return 0, 0, 0
    if size is None:
        raise MisalignedError(
            f"{where}: raw is at offset {raw.offset}, {labels.name} at {labels.offset}, and neither has a resolution, "
            "so the shift in voxels is unknown"
        )
    exact = [(b - a) / r for a, b, r in zip(raw.offset, labels.offset, size, strict=True)]
    whole = _triple(map(round, exact))
    if any(abs(s - w) > _WHOLE_VOXEL_TOLERANCE for s, w in zip(exact, whole, strict=True)):
        raise MisalignedError(
            f"{where}: {labels.name} at offset {labels.offset} are shifted by {tuple(exact)} voxels against raw at "
            f"{raw.offset} (resolution {size}), which is not whole"
        )
    return whole


def _triple(values: Iterable[int]) -> Triple:
    z, y, x = values
    return z, y, x
