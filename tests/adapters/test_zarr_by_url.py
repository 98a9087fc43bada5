"""A cached crop by URL, read by what people have: zarr 2 over fsspec, ome-zarr, napari's reader of OME-Zarr."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import fsspec
import napari_ome_zarr
import numpy as np
import pytest
import zarr
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
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


def test_ome_zarr_finds_the_image_and_its_labels(url: str, made: Callable[[str], Any]) -> None:
    image, _, labels = list(Reader(parse_url(url))())
    assert image.metadata["visible"][:4] == [True, True, True, False]
    assert np.array_equal(image.data[0].compute(), made("instance").expected["raw"])
    assert np.array_equal(labels.data[0].compute(), made("instance").expected["labels"])


def test_napari_draws_it_where_it_lies(url: str, made: Callable[[str], Any]) -> None:
    reader = napari_ome_zarr.napari_get_reader(url)
    assert reader is not None
    viewer = ViewerModel()
    crop = made("instance")
    for data, attributes, kind in reader(url):
        channels = Layer.create(data, attributes, kind)
        for layer in channels if isinstance(channels, list) else [channels]:
            viewer.add_layer(layer)
    assert {type(layer) for layer in viewer.layers} == {Image, Labels}
    for layer in viewer.layers:
        assert tuple(np.round(layer.data_to_world([0] * layer.ndim))[-3:]) == crop.offset
        assert tuple(layer.scale[-3:]) == crop.voxel_size
