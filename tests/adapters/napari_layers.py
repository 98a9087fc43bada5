"""``python -m tests.adapters.napari_layers URL``: what napari's reader of OME-Zarr makes of a URL, as JSON.

For a process of its own: the reader wants zarr 3, and gunpowder, beside which it is tested, zarr 2.
"""

from __future__ import annotations

import json
import sys
import warnings
import zlib

import numpy as np

with warnings.catch_warnings():  # what others deprecate of each other is not ours to mend
    warnings.simplefilter("ignore")
    from napari.components import ViewerModel
    from napari_ome_zarr import napari_get_reader


def main(url: str) -> None:
    """Print type, place and a checksum of the voxels of each layer."""
    reader = napari_get_reader(url)
    assert reader is not None
    viewer = ViewerModel()
    for data, attributes, kind in reader(url):
        getattr(viewer, f"add_{kind}")(data, **attributes)
    found = [
        {
            "type": type(layer).__name__,
            "visible": layer.visible,
            "origin": [float(at) for at in layer.data_to_world([0] * 3)],
            "scale": [float(size) for size in layer.scale],
            "crc": zlib.crc32(np.ascontiguousarray(layer.data[0] if layer.multiscale else layer.data)),
        }
        for layer in viewer.layers
    ]
    print(json.dumps(found))  # noqa: T201 - this is the program's result


if __name__ == "__main__":
    main(sys.argv[1])
