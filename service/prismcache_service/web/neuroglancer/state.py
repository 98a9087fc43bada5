"""The state of Neuroglancer that shows one crop, as E11 looks at its crops. Pure.

All channels are added in one shader: channel i goes to red, green or blue by i mod 3, with a slider for each. Sizes and
places are those of the NGFF metadata, so of the expanded tissue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prismcache.crop.ngff import ALL_CHANNELS, ORIGINAL_IDS

SERVICE = "{service}"
"""Stands for the service's address, which the page knows, also below a path of a proxy; `shim.js` replaces it."""

_MAX_GAIN = 10


def viewer_state(
    source: str,
    attributes: Mapping[str, Any],
    array: Mapping[str, Any],
    arrays: Mapping[str, str],
    *,
    has_labels: bool = True,
) -> dict[str, Any]:
    """Return a state with raw, labels and, hidden at first, further arrays, in the middle of the crop.

    Parameters
    ----------
    source
        URL of the crop's zarr hierarchy.
    attributes, array
        The hierarchy's documents ``.zattrs`` and ``0/.zarray``.
    arrays
        zarr's dtypes of the further arrays, by name; unsigned integers are shown as segmentations.
    has_labels
        Whether the hierarchy has labels.
    """
    multiscale = attributes["multiscales"][0]
    scale, translation = (each[each["type"]][1:] for each in multiscale["datasets"][0]["coordinateTransformations"])
    space = {axis: [size * 1e-9, "m"] for axis, size in zip("zyx", scale, strict=True)}
    middle = [at / size + count / 2 for at, size, count in zip(translation, scale, array["shape"][1:], strict=True)]
    channels = attributes["omero"]["channels"]
    raw = {
        "type": "image",
        "name": multiscale["name"],
        "source": {
            "url": f"zarr2://{source}/{ALL_CHANNELS}",
            # A name that ends in ^ makes an axis one that the shader sees as a whole.
            "transform": {"outputDimensions": {"c^": [1, ""], **space}},
        },
        "channelDimensions": {"c^": [1, ""]},
        "shader": shader([(each["label"], each["window"]["start"], each["window"]["end"]) for each in channels]),
    }
    segmentation = {
        "type": "segmentation",
        "name": "labels",
        "source": f"zarr2://{source}/{ORIGINAL_IDS}",
        "selectedAlpha": 0.25,
    }
    further = [
        {
            "type": "segmentation" if dtype[1] == "u" else "image",
            "name": name,
            "source": f"zarr2://{source}/{name}",
            "visible": False,
        }
        for name, dtype in arrays.items()
    ]
    return {
        "title": multiscale["name"],
        "dimensions": {axis: space[axis] for axis in "xyz"},
        "position": middle[::-1],
        "crossSectionScale": 1,
        "layers": [raw, *([segmentation] if has_labels else []), *further],
        "selectedLayer": {"layer": raw["name"], "visible": True},
        "layout": "xy",
    }


def shader(channels: Sequence[tuple[str, float, float]]) -> str:
    """Return E11's additive shader over all channels.

    Parameters
    ----------
    channels
        For each channel the name of its slider, and the intensities that are shown as black and as full brightness.
    """
    sliders = [f"#uicontrol float {name} slider(min=0, max={_MAX_GAIN}, default=1)" for name, _, _ in channels]
    sums = [
        f"  sum.{'rgb'[index % 3]} += {name} * max(0.0, "
        f"(float(toRaw(getDataValue({index}))) - {float(low)}) / {float(high - low)});"
        for index, (name, low, high) in enumerate(channels)
    ]
    return "\n".join([*sliders, "void main() {", "  vec3 sum = vec3(0.0);", *sums, "  emitRGB(sum);", "}", ""])
