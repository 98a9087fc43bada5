"""A cached crop by URL, read by what people have: zarr 2 over fsspec, napari's reader of OME-Zarr, a validator."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from ome_zarr_models.v04 import Image as OmeImage
from ome_zarr_models.v04 import ImageLabel
from ome_zarr_models.v04 import Labels as OmeLabels

from prismcache.config import Settings
from prismcache.links import LinkRequest
from prismcache.remote.api import ServiceApi
from prismcache.schema import Split


@pytest.fixture
def url(service_url: str) -> str:
    """The zarr hierarchy of a link to instance/0, which needs no token."""

    async def make() -> str:
        async with ServiceApi(Settings.load({}, url=service_url)) as api:
            return (await api.make_link(LinkRequest(split=Split.INSTANCE, crop=0))).url

    return asyncio.run(make())


def test_zarr_2_reads_voxels_and_ids_over_fsspec(url: str, made: Callable[[str], Any]) -> None:
    assert zarr.__version__.startswith("2.")
    image = zarr.open_group(fsspec.get_mapper(url), mode="r")
    expected = made("instance").expected
    assert np.array_equal(image["0"][:], expected["raw"])
    assert np.array_equal(image["labels/instance/0"][:], expected["labels"])
    assert np.array_equal(image["all_channels/0"][:], expected["raw"])
    assert np.array_equal(image["original_ids/0"][:], expected["source_labels"])


def test_it_is_valid_ome_zarr(url: str) -> None:
    group = zarr.open_group(fsspec.get_mapper(url), mode="r")
    for place in (group, group["all_channels"]):
        image = OmeImage.from_zarr(place)
        assert [(axis.name, axis.type) for axis in image.attributes.multiscales[0].axes][:2] == [
            ("c", "channel"),
            ("z", "space"),
        ]
    assert OmeLabels.from_zarr(group["labels"]).attributes.labels == ["instance"]
    assert ImageLabel.from_zarr(group["labels/instance"]).attributes.image_label is not None
    assert OmeImage.from_zarr(group["original_ids"]).attributes.multiscales[0].axes[0].name == "z"


def test_napari_draws_channels_with_labels_over_them(url: str, made: Callable[[str], Any]) -> None:
    expected, crop = made("instance").expected, made("instance")
    path = f"{Path(sys.prefix) / 'zarr3'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-W", "ignore", "-m", "tests.adapters.napari_layers", url]
    program = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert program.returncode == 0, program.stderr
    layers = json.loads(program.stdout.splitlines()[-1])  # the reader prints, too
    assert [layer["type"] for layer in layers] == ["Image"] * len(expected["raw"]) + ["Labels"]
    for layer, voxels in zip(layers, [*expected["raw"], expected["labels"]], strict=True):
        # This release of the reader takes the scale and leaves out the translation, of all layers alike.
        assert (layer["origin"], tuple(layer["scale"])) == (layers[0]["origin"], crop.voxel_size)
        assert layer["crc"] == zlib.crc32(np.ascontiguousarray(voxels))
    assert [layer["visible"] for layer in layers[:4]] == [True] * 3 + [False]
