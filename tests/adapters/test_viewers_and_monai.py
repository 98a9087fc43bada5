"""napari and MONAI take what the adapters give; the export is valid OME-Zarr."""

from __future__ import annotations

import npe2
import numpy as np
import pytest
import torch
import zarr
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, RandSpatialCropd
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer
from ome_zarr_models.v04 import Image as OmeImage
from ome_zarr_models.v04 import ImageLabel
from ome_zarr_models.v04 import Labels as OmeLabels

from prismcache import RequestError
from prismcache.adapters import napari
from prismcache.adapters.monai import LoadCrop, items

PATCH = (4, 16, 16)


def test_napari_draws_the_layers_where_they_lie(instance):
    viewer = ViewerModel()
    for data in napari.layers(instance.path):
        viewer.add_layer(Layer.create(*data))
    *images, labels = viewer.layers
    assert [type(layer) for layer in viewer.layers] == [Image] * len(instance.expected["raw"]) + [Labels]
    last = np.array(instance.expected["labels"].shape) - 1
    for layer, voxels in zip(viewer.layers, [*instance.expected["raw"], instance.expected["labels"]], strict=True):
        assert tuple(layer.data_to_world((0, 0, 0))) == instance.offset
        assert tuple(layer.data_to_world(last)) == tuple(instance.offset + last * instance.voxel_size)
        assert np.array_equal(layer.data, voxels)
    assert [str(unit) for unit in labels.units] == ["nanometer"] * 3
    assert labels.name == "instance/0 labels"
    assert [image.visible for image in images] == [True] * 3 + [False] * (len(images) - 3)


def test_napari_finds_our_reader(semantic):
    npe2.PluginManager.instance().discover()
    found = npe2.read([str(semantic.path)], stack=False, plugin_name="prismcache")
    assert [layer[2] for layer in found] == ["image"] * len(semantic.expected["raw"]) + ["labels"]
    assert np.array_equal(found[-1][0], semantic.expected["source_labels"])


def test_monai_datasets_load_and_cache_crops(instance, semantic):
    load = LoadCrop(channels=[0, 2])
    crop = RandSpatialCropd(["image", "label"], roi_size=PATCH, random_size=False)
    dataset = CacheDataset(items([instance.path, semantic.path]), Compose([load, crop]), progress=False, num_workers=0)
    for cached, made, name in zip(dataset._cache, (instance, semantic), ("labels", "source_labels"), strict=True):
        assert np.array_equal(cached["image"], made.expected["raw"][[0, 2]])
        assert np.array_equal(cached["label"][0], made.expected[name].astype(np.int64))
        assert isinstance(cached["image"], MetaTensor)
        assert cached["label"].affine[:3, 3].tolist() == list(made.offset)
        assert torch.diag(cached["image"].affine).tolist() == [*made.voxel_size, 1]
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert (batch["image"].shape, batch["label"].shape) == ((2, 2, *PATCH), (2, 1, *PATCH))
    assert (batch["split"], batch["crop"].tolist()) == (["instance", "semantic"], [0, 1])


def test_ids_that_torch_cannot_hold_are_refused(instance):
    assert instance.expected["source_labels"].max() >= 2**63
    with pytest.raises(RequestError, match="torch has no integers"):
        LoadCrop(label_values="original")(items([instance.path])[0])


@pytest.mark.parametrize("split", ["instance", "semantic"])
def test_the_export_is_valid_ome_zarr(made, split):
    group = zarr.open_group(str(made(split).export), mode="r")
    image = OmeImage.from_zarr(group)
    assert [axis.name for axis in image.attributes.multiscales[0].axes] == ["c", "z", "y", "x"]
    assert image.attributes.multiscales[0].axes[1].unit == "nanometer"
    assert OmeLabels.from_zarr(group["labels"]).attributes.labels == [split]
    assert ImageLabel.from_zarr(group[f"labels/{split}"]).attributes.image_label is not None
