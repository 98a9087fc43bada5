"""Crops that are stored as other people's tools store them give the same file as the published layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from prismcache import PrismClient
from tests.support.cache_root import tiny_spec
from tests.support.crops import write_crop
from tests.support.s3 import S3Server

SPEC = tiny_spec(0)


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _funlib(crop: Path) -> None:
    """`voxel_size` in place of `resolution`, in µm."""

    def change(attributes: dict) -> None:
        attributes["voxel_size"] = [n / 1000 for n in attributes.pop("resolution")]
        attributes["offset"] = [n / 1000 for n in attributes["offset"]]
        attributes["units"] = "um"

    _edit(crop / "raw/.zattrs", change)


def _multiscales(crop: Path) -> None:
    """Raw as the first scale of an OME-NGFF group, which alone says where it lies."""
    place = json.loads((crop / "raw/.zattrs").read_text())
    (crop / "raw").rename(crop / "s0")
    (crop / "raw").mkdir()
    (crop / "s0").rename(crop / "raw/s0")
    (crop / "raw/s0/.zattrs").unlink()
    (crop / "raw/.zgroup").write_text('{"zarr_format": 2}')
    transforms = [
        {"type": "scale", "scale": [1, *place["resolution"]]},
        {"type": "translation", "translation": [0, *place["offset"]]},
    ]
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "nanometer"} for n in "zyx")]
    datasets = [{"path": "s0", "coordinateTransformations": transforms}]
    (crop / "raw/.zattrs").write_text(json.dumps({"multiscales": [{"axes": axes, "datasets": datasets}]}))


def _one_channel_of_labels(crop: Path) -> None:
    """Labels with a leading axis of one."""

    def change(array: dict) -> None:
        array["shape"], array["chunks"] = [1, *array["shape"]], [1, *array["chunks"]]

    _edit(crop / "labels/.zarray", change)
    for chunk in (crop / "labels").glob("[0-9]*"):
        chunk.rename(chunk.with_name(f"0.{chunk.name}"))


WAYS = [_funlib, _multiscales, _one_channel_of_labels]


def test_the_same_voxels_in_the_same_place(tmp_path: Path) -> None:
    published = write_crop(tmp_path / "bucket", SPEC)
    for crop, change in enumerate(WAYS, start=1):
        change(shutil.copytree(published, published.with_name(f"crop_{crop}.zarr")))
    with (
        S3Server(tmp_path / "bucket") as server,
        PrismClient(root=tmp_path / "root", s3_endpoint_url=server.endpoint) as client,
    ):
        first, *others = client.ensure("instance", range(len(WAYS) + 1), strict=True, progress=False)
    with h5py.File(first, "r") as expected:
        names: list[str] = []
        expected.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) > 2
        for path in others:
            with h5py.File(path, "r") as found:
                for name in names:
                    np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{path}: {name}")
                    for key in ("offset", "resolution", "voxel_size") if "offset" in expected[name].attrs else ():
                        np.testing.assert_array_equal(found[name].attrs[key], expected[name].attrs[key])
