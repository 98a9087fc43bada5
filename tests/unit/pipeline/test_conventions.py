"""Where people write that an array lies, and in which units."""

from __future__ import annotations

from typing import Any

import pytest

from prismcache.errors import InvalidSourceError
from prismcache_service.pipeline.plan.conventions import NM, Place, read_place

WHERE = "instance/crop_0.zarr: array 'raw'"
SIZE, OFFSET = (400.0, 168.0, 168.0), (800.0, 0.0, 336.0)


def multiscales(unit: str | None = "nanometer", channel: bool = True, **top: Any) -> list[dict[str, Any]]:
    axes = [{"name": "c", "type": "channel"}] * channel
    axes += [{"name": name, "type": "space"} | ({"unit": unit} if unit else {}) for name in "zyx"]
    lead = [1] * channel
    transforms = [
        {"type": "scale", "scale": lead + list(SIZE)},
        {"type": "translation", "translation": lead + list(OFFSET)},
    ]
    return [{"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": transforms}], **top}]


UNDERSTOOD: dict[str, tuple[dict[str, Any], Place]] = {
    "nothing": ({}, Place(None, None)),
    "E11bio": ({"offset": [800, 0, 336], "resolution": [400, 168, 168]}, Place(OFFSET, SIZE)),
    "funlib": ({"offset": [800, 0, 336], "voxel_size": [400, 168, 168]}, Place(OFFSET, SIZE)),
    "both, alike": ({"resolution": [400, 168, 168], "voxel_size": [400, 168, 168]}, Place(None, SIZE)),
    "units for each axis": ({"voxel_size": [0.4, 168, 168], "units": ["um", "nm", "nm"]}, Place(None, SIZE)),
    "one unit for all": ({"voxel_size": [0.5, 0.25, 0.25], "units": "µm"}, Place(None, (500.0, 250.0, 250.0))),
    "units of the offset too": ({"offset": [1, 2, 3], "units": "um"}, Place((1000.0, 2000.0, 3000.0), None)),
    "fractional nm": ({"voxel_size": [281.6, 35.2, 35.2]}, Place(None, (281.6, 35.2, 35.2))),
    "NGFF": ({"multiscales": multiscales()}, Place(OFFSET, SIZE)),
    "NGFF without channels": ({"multiscales": multiscales(channel=False)}, Place(OFFSET, SIZE)),
    "NGFF without units": ({"multiscales": multiscales(None)}, Place(OFFSET, SIZE)),
    "NGFF of all scales": (
        {"multiscales": multiscales(coordinateTransformations=[{"type": "scale", "scale": [1, 2, 1, 1]}])},
        Place((1600.0, 0.0, 336.0), (800.0, 168.0, 168.0)),  # the scale of all stretches the dataset's translation, too
    ),
    "NGFF moved after it was scaled, in µm": (
        {
            "multiscales": multiscales(
                "micrometer",
                coordinateTransformations=[
                    {"type": "scale", "scale": [1, 1e-3, 1e-3, 1e-3]},
                    {"type": "translation", "translation": [0, 0.8, 0, 0]},
                ],
            )
        },
        Place((1600.0, 0.0, 336.0), SIZE),
    ),
    "NGFF 0.3": (
        {"multiscales": [{"version": "0.3", "axes": ["c", "z", "y", "x"], "datasets": [{"path": "s0"}]}]},
        Place(None, None),
    ),
    "names of axes": (
        {"axis_names": ["c^", "z", "y", "x"], "_ARRAY_DIMENSIONS": ["dim_0", "x", "y"]},
        Place(None, None),
    ),
    "NGFF behind our own": ({"multiscales": multiscales(), "voxel_size": [1, 2, 3]}, Place(OFFSET, (1.0, 2.0, 3.0))),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_understood(name: str) -> None:
    attributes, place = UNDERSTOOD[name]
    assert read_place(WHERE, attributes, "s0") == place


@pytest.mark.parametrize("unit", NM)
def test_each_unit_is_converted(unit: str) -> None:
    assert read_place(WHERE, {"voxel_size": [2, 2, 2], "units": unit.upper()}).voxel_size == (2 * NM[unit],) * 3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "two that differ": ({"resolution": [4, 1, 1], "voxel_size": [5, 1, 1]}, "another voxel_size"),
    "an unknown unit": ({"voxel_size": [4, 1, 1], "units": "parsec"}, "unit 'parsec', which is unknown"),
    "two units": ({"voxel_size": [4, 1, 1], "units": ["nm", "nm"]}, "not one unit or three"),
    "no number": ({"voxel_size": ["4", 1, 1]}, "not three numbers"),
    "no size": ({"voxel_size": [4, 0, 1]}, "must be above 0"),
    **{
        f"{key} {''.join(axes)}": ({key: axes}, f"has the axes {', '.join(axes)}, and a crop's end with z, y, x")
        for key in ("axis_names", "_ARRAY_DIMENSIONS", "dimension_names")
        for axes in ("cxyz", ["z", "y", "x", "c"], ["z", "c", "y", "x"])
    },
    "a transposed NGFF": (
        {"multiscales": [multiscales()[0] | {"axes": [{"name": n, "type": "space"} for n in "yxz"]}]},
        "has the axes y, x, z",
    ),
    "an NGFF without the array": ({"multiscales": [multiscales()[0] | {"datasets": [{"path": "s1"}]}]}, "not among"),
    "an empty NGFF": ({"multiscales": []}, "not OME-NGFF's"),
    "an odd NGFF": ({"multiscales": [{"datasets": 3}]}, "not OME-NGFF's"),
    "NaN in NGFF": (
        {
            "multiscales": [
                multiscales()[0]
                | {
                    "datasets": [
                        {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [float("nan")] * 3}]}
                    ]
                }
            ]
        },
        "not finite",
    ),
}


ODD = [3, "400,168,168", [1, 2], [1, 2, 3, 4], [1, None, 3], [1, True, 3], {"z": 1}, [[1], 2, 3]]
REFUSED |= {f"{key} {value}": ({key: value}, "not three numbers") for key in ("offset", "resolution") for value in ODD}
REFUSED |= {f"{value:.0e}": ({"offset": [0, value, 0]}, "not finite") for value in (1e308, -(2.0**53))}
REFUSED |= {"10**400": ({"offset": [0, 10**400, 0]}, "not finite")}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    attributes, words = REFUSED[name]
    with pytest.raises(InvalidSourceError, match=words):
        read_place(WHERE, attributes, "s0")
