"""Where an array lies in the world, as people write it into zarr attributes. Pure.

==============================================  =========================================================
attribute                                       meaning
==============================================  =========================================================
``resolution`` or ``voxel_size``                size of a voxel (Z,Y,X); the first is E11bio's, the second funlib's
``offset``                                      place of the first voxel's corner (Z,Y,X)
``units``, one or a list of one for each axis   of both, nm where it is missing
``multiscales``                                 OME-NGFF 0.4: ``scale``, ``translation`` and the axes' units, where
                                                the attributes above say nothing; of the array's own dataset
``axis_names``, ``_ARRAY_DIMENSIONS``,          names of the axes, funlib's, xarray's and zarr v3's: where the last
``dimension_names``, NGFF's ``axes``            three are not z, y and x though these are there, it is refused
==============================================  =========================================================

Of NGFF's axes, those of space are the last three. Its versions before 0.4 do not say where an array lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prismcache.errors import InvalidSourceError

Vector = tuple[float, float, float]
_ONE = (1.0, 1.0, 1.0)

NM = {
    "": 1.0, "nm": 1.0, "nanometer": 1.0, "nanometers": 1.0, "nanometre": 1.0,
    "um": 1e3, "µm": 1e3, "μm": 1e3, "micron": 1e3, "microns": 1e3, "micrometer": 1e3, "micrometers": 1e3,
    "micrometre": 1e3, "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6, "m": 1e9, "meter": 1e9, "metre": 1e9,
    "angstrom": 0.1, "å": 0.1, "pm": 1e-3, "picometer": 1e-3,
}  # fmt: skip
"""Nanometres of each unit that is understood."""


@dataclass(frozen=True)
class Place:
    """Offset and voxel size in nm (Z,Y,X); None where the attributes do not say."""

    offset: Vector | None
    voxel_size: Vector | None


def read_place(where: str, attributes: Mapping[str, Any], scale: str | None = None) -> Place:
    """Return where an array lies; `where` begins every message, `scale` is the array's path in its group of scales.

    Raises
    ------
    InvalidSourceError
        If an attribute is not three finite numbers, a voxel size is not above 0, two attributes disagree, a unit is
        unknown, the axes are in another order or the group's ``multiscales`` lack the array.
    """
    for key in ("axis_names", "_ARRAY_DIMENSIONS", "dimension_names"):
        _refuse_other_axes(where, attributes.get(key))
    factors = _factors(where, attributes.get("units"))
    offset = _vector(where, "offset", attributes.get("offset"), factors)
    resolution, voxel_size = (_vector(where, key, attributes.get(key), factors) for key in ("resolution", "voxel_size"))
    if resolution and voxel_size and resolution != voxel_size:
        raise InvalidSourceError(f"{where} has resolution {resolution} and another voxel_size, {voxel_size}")
    size = resolution or voxel_size
    if size is None or offset is None:
        stretch, translation = _of_multiscales(where, attributes.get("multiscales"), scale)
        size, offset = size or stretch, offset or translation
    if size is not None and min(size) <= 0:
        raise InvalidSourceError(f"{where} has attribute resolution = {size!r}, which must be above 0")
    return Place(offset, size)


def _of_multiscales(where: str, multiscales: Any, scale: str | None) -> tuple[Vector | None, Vector | None]:
    if multiscales is None:
        return None, None
    try:
        first = multiscales[0]
        dataset = next((d for d in first["datasets"] if scale in (None, d.get("path"))), None)
        if dataset is None:
            raise InvalidSourceError(f"{where} is not among the datasets that its group's multiscales name")
        if "coordinateTransformations" not in dataset:
            return None, None
        _refuse_other_axes(where, [axis.get("name") for axis in first.get("axes", ())])
        nm = _factors(where, [axis.get("unit") for axis in first.get("axes", ()) if axis.get("type") == "space"])
        size: Vector | None = None
        offset: Vector | None = None
        for transform in (  # of one scale, then of all: applied in this order to an index
            *dataset["coordinateTransformations"],
            *first.get("coordinateTransformations", ()),
        ):
            kind = transform["type"]
            vector = _vector(where, f"multiscales {kind}", transform.get(kind), nm if kind == "translation" else _ONE)
            if vector is not None and kind == "scale":
                size, offset = _times(size or nm, vector), offset and _times(offset, vector)
            elif vector is not None and kind == "translation":
                z, y, x = offset or (0.0, 0.0, 0.0)
                offset = z + vector[0], y + vector[1], x + vector[2]
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise InvalidSourceError(f"{where} has attribute multiscales that is not OME-NGFF's: {error!r}") from error
    return size, offset


def _refuse_other_axes(where: str, names: Any) -> None:
    """Raise if the names say that the voxels lie transposed; other names, such as dim_0, say nothing."""
    axes = [str(name).lower() for name in names] if isinstance(names, list | tuple | str) else []
    if {"x", "y", "z"} <= set(axes) and axes[-3:] != ["z", "y", "x"]:
        raise InvalidSourceError(f"{where} has the axes {', '.join(axes)}, and a crop's end with z, y, x")


def _times(one: Vector, other: Vector) -> Vector:
    return one[0] * other[0], one[1] * other[1], one[2] * other[2]


def _factors(where: str, units: Any) -> Vector:
    """Return the nm of a unit of each axis."""
    listed = [units] * 3 if units is None or isinstance(units, str) else units
    if not isinstance(listed, list | tuple) or len(listed) not in {0, 3}:
        raise InvalidSourceError(f"{where} has attribute units = {units!r}, not one unit or three")
    factors = [NM.get(str(unit or "").strip().lower()) for unit in listed] or [1.0] * 3
    for unit, factor in zip(listed, factors, strict=False):
        if factor is None:
            raise InvalidSourceError(f"{where} has the unit {unit!r}, which is unknown ({', '.join(filter(None, NM))})")
    z, y, x = (factor or 1.0 for factor in factors)
    return z, y, x


def _vector(where: str, key: str, value: Any, factors: Vector) -> Vector | None:
    if value is None:
        return None
    numbers = isinstance(value, list | tuple) and len(value) in ((3, 4, 5) if key.startswith("multiscales") else (3,))
    if not numbers or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise InvalidSourceError(f"{where} has attribute {key} = {value!r}, not three numbers (Z,Y,X)")
    if not all(abs(v) < 2**53 for v in value):  # false for NaN, and for integers that no float can hold
        raise InvalidSourceError(f"{where} has attribute {key} = {value!r}, which is not finite")
    z, y, x = (float(v) * factor for v, factor in zip(value[-3:], factors, strict=True))
    return z, y, x
