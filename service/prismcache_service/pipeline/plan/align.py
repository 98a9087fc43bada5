"""Where the labels lie in raw: a whole-voxel, in-bounds shift, or a clear refusal. Pure.

The shift is the reference's ``round((labels.offset - raw.offset) / raw.resolution)`` per axis, but where the reference
rounds any number, wraps around at a negative one and cuts short past the end, this refuses.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prismcache.errors import InvalidSourceError, MisalignedError
from prismcache_service.pipeline.plan.metadata import ArraySource

Triple = tuple[int, int, int]

_WHOLE_VOXEL_TOLERANCE = 0.01  # voxels; offsets written as floats carry rounding noise, never more

_WHOLE_NM_TOLERANCE = 0.001  # nm; the same


@dataclass(frozen=True)
class Alignment:
    """The labels' box in raw, half-open in voxels (Z,Y,X), and its place in the world (nm; Z,Y,X)."""

    start: Triple
    stop: Triple
    offset: Triple
    resolution: Triple


def align(where: str, raw: ArraySource, labels: ArraySource) -> Alignment:
    """Return the box of raw that the labels cover; `where` begins every message.

    Raises
    ------
    MisalignedError
        If the shift is no whole number of voxels, the box leaves raw on any side, the resolutions differ, or an offset
        is missing though the shapes differ; the message gives the numbers.
    InvalidSourceError
        If the offset or the resolution is not in whole nm.
    """
    resolution = _common_resolution(where, raw, labels)
    if raw.offset is None or labels.offset is None:
        shift, offset = _shift_without_offsets(where, raw, labels), labels.offset or raw.offset or (0.0, 0.0, 0.0)
    else:
        shift, offset = _whole_shift(where, raw.offset, labels.offset, resolution), labels.offset
    stop = _triple(s + n for s, n in zip(shift, labels.shape, strict=True))
    if min(shift) < 0 or any(e > n for e, n in zip(stop, raw.shape[1:], strict=True)):
        raise MisalignedError(
            f"{where}: labels of shape {labels.shape} at offset {labels.offset} would cover voxels {shift} to {stop} "
            f"of raw, which has {raw.shape[1:]} at offset {raw.offset} (resolution {resolution})"
        )
    return Alignment(shift, stop, _whole_nm(where, "offset", offset), _whole_nm(where, "resolution", resolution))


def _common_resolution(where: str, raw: ArraySource, labels: ArraySource) -> tuple[float, float, float]:
    if raw.resolution and labels.resolution and raw.resolution != labels.resolution:
        raise MisalignedError(f"{where}: raw has resolution {raw.resolution}, labels have {labels.resolution}")
    return raw.resolution or labels.resolution or (1.0, 1.0, 1.0)


def _shift_without_offsets(where: str, raw: ArraySource, labels: ArraySource) -> Triple:
    if raw.shape[1:] != labels.shape:
        missing = " and ".join(a.name for a in (raw, labels) if a.offset is None)
        raise MisalignedError(
            f"{where}: the offset of {missing} is missing, and raw {raw.shape[1:]} and labels {labels.shape} differ in "
            "shape, so that their places cannot be told"
        )
    return 0, 0, 0


def _whole_shift(
    where: str, raw: tuple[float, ...], labels: tuple[float, ...], resolution: tuple[float, ...]
) -> Triple:
    exact = [(b - a) / r for a, b, r in zip(raw, labels, resolution, strict=True)]
    whole = _triple(round(s) for s in exact)
    if any(abs(s - w) > _WHOLE_VOXEL_TOLERANCE for s, w in zip(exact, whole, strict=True)):
        raise MisalignedError(
            f"{where}: labels at offset {labels} are shifted by {tuple(exact)} voxels against raw at {raw} (resolution "
            f"{resolution}), which is not whole"
        )
    return whole


def _whole_nm(where: str, name: str, values: tuple[float, ...]) -> Triple:
    whole = _triple(round(v) for v in values)
    if any(abs(v - w) > _WHOLE_NM_TOLERANCE for v, w in zip(values, whole, strict=True)):
        raise InvalidSourceError(f"{where}: {name} {values} is not in whole nm")
    return whole


def _triple(values: Iterable[int]) -> Triple:
    z, y, x = values
    return z, y, x
