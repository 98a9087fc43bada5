"""A synapse crop, which has further arrays instead of labels, as pipelines, viewers and zarr read it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import gunpowder as gp
import numpy as np
import pytest
import zarr
from funlib.persistence import open_ds
from ome_zarr_models.v04 import Image as OmeImage

from prismcache import RequestError
from prismcache.adapters import napari
from prismcache.adapters.funlib import further_array, labels_array, raw_array
from prismcache.adapters.gunpowder import hdf5_source
from prismcache.adapters.monai import LoadCrop, items
from prismcache.config import Settings
from prismcache.links import LinkRequest
from prismcache.remote.api import ServiceApi
from prismcache.schema import Split

RAW, OUTPUT, WEIGHTS = gp.ArrayKey("RAW"), gp.ArrayKey("OUTPUT"), gp.ArrayKey("WEIGHTS")
VOXEL = gp.Coordinate(400, 168, 168)
NAMES = ("psd95_output", "psd95_mask", "psd95_weights", "psd95_underseg")


@dataclass(frozen=True)
class Synapses:
    """The synapse crop of `tests.support.adapter_files`, with its arrays and their offsets (nm)."""

    path: Path
    ngff: Path
    e11: Path
    arrays: dict[str, np.ndarray[Any, Any]]

    @property
    def raw(self) -> np.ndarray[Any, Any]:
        return self.arrays["ls_2channels_globalnorm"]

    def at(self, name: str) -> tuple[int, ...]:
        return tuple(self.arrays[f"{name}_at"].tolist())


@pytest.fixture(scope="module")
def crop(made_files: Path) -> Synapses:
    with np.load(made_files / "synapses.npz") as arrays:
        path = made_files / "cache/synapses/crop_0.h5"
        return Synapses(path, made_files / "synapses.zarr", made_files / "synapses-e11.zarr", dict(arrays))


def from_file(crop: Synapses) -> gp.BatchProvider:
    source = hdf5_source(crop.path, {RAW: 0, OUTPUT: "psd95_output", WEIGHTS: "psd95_weights"})
    assert {key.identifier: spec.interpolatable for key, spec in source.array_specs.items()} == {
        "RAW": True,
        "OUTPUT": False,
        "WEIGHTS": True,
    }
    return source


def from_e11s_layout(crop: Synapses) -> gp.BatchProvider:
    names = {RAW: "ls_2channels_globalnorm", OUTPUT: "psd95_output", WEIGHTS: "psd95_weights"}
    specs = {key: gp.ArraySpec(interpolatable=key != OUTPUT) for key in names}
    return gp.ZarrSource(str(crop.e11), {key: f"volumes/{name}" for key, name in names.items()}, specs)


@pytest.mark.parametrize("make_source", [from_file, from_e11s_layout])
def test_a_request_with_context_is_what_numpy_gives(make_source: Any, crop: Synapses) -> None:
    raw_shape, inner = gp.Coordinate(20, 32, 30), gp.Coordinate(10, 16, 14)
    pipeline = make_source(crop) + gp.RandomLocation()
    request = gp.BatchRequest(random_seed=3)
    request.add(RAW, raw_shape * VOXEL)
    for key in (OUTPUT, WEIGHTS):
        request.add(key, inner * VOXEL)
    with gp.build(pipeline):
        batch = pipeline.request_batch(request)
    raw = crop.raw if make_source is from_e11s_layout else crop.raw[:1]
    found = batch[RAW].data if make_source is from_e11s_layout else batch[RAW].data[None]
    windows = np.lib.stride_tricks.sliding_window_view(raw, raw_shape, (1, 2, 3))
    (place,) = np.argwhere((windows[0] == found[0]).all((-3, -2, -1)))
    assert np.array_equal(windows[(slice(None), *place)], found)
    first = [at + (outer - n) // 2 for at, outer, n in zip(place, raw_shape, inner, strict=True)]
    for key, name in ((OUTPUT, "psd95_output"), (WEIGHTS, "psd95_weights")):
        start = (np.array(crop.at(name)) - crop.at("ls_2channels_globalnorm")) // VOXEL
        box = tuple(slice(at - by, at - by + n) for at, by, n in zip(first, start, inner, strict=True))
        assert np.array_equal(batch[key].data, crop.arrays[name][box])


def test_every_face_has_the_arrays_where_they_lie(crop: Synapses) -> None:
    layers = {layer[1]["name"]: layer for layer in napari.layers(crop.path)}
    assert list(layers) == ["synapses/0 ch 0", "synapses/0 ch 1", *(f"synapses/0 {name}" for name in NAMES)]
    item = LoadCrop(arrays=NAMES[1:])(items([crop.path])[0])
    assert item.keys() - {"path", "split", "crop"} == {"image", *NAMES[1:]}
    for name in NAMES:
        voxels, offset = crop.arrays[name], crop.at(name)
        layer, options, kind = layers[f"synapses/0 {name}"]
        assert (options["translate"], options["visible"]) == (offset, False)
        assert kind == ("image" if voxels.dtype == np.float32 else "labels")
        in_ngff, in_e11 = open_ds(str(crop.ngff / name / "0")), open_ds(str(crop.e11 / "volumes" / name))
        for array in (further_array(crop.path, name), in_ngff, in_e11):
            assert (array.roi.offset, array.voxel_size, array.dtype) == (offset, VOXEL, voxels.dtype)
            assert np.array_equal(array[array.roi], voxels)
        assert np.array_equal(layer, voxels)
        if name in item:
            assert np.array_equal(item[name][0], voxels)
            assert item[name].affine[:3, 3].tolist() == list(offset)
    raw = raw_array(crop.path)
    assert np.array_equal(raw[raw.roi], item["image"])
    exported = zarr.open_group(str(crop.e11), mode="r")
    assert set(exported) == {"volumes"}
    assert np.array_equal(exported["volumes/ls_2channels_globalnorm"][:], crop.raw)


def test_what_the_crop_does_not_have_is_refused(crop: Synapses) -> None:
    has_none = "has no labels: crops of 'synapses' have none"
    for ask in (
        lambda: labels_array(crop.path),
        lambda: labels_array(crop.path, "original"),
        lambda: hdf5_source(crop.path, {OUTPUT: "labels"}),
        lambda: napari.layers(crop.path, label_values="original"),
        lambda: LoadCrop(label_values="consecutive")(items([crop.path])[0]),
    ):
        with pytest.raises(RequestError, match=has_none) as caught:
            ask()
        assert "raw, psd95_output, psd95_mask" in caught.value.remedy
    with pytest.raises(RequestError, match=r"channel's number or one of 'psd95_output', .*, not 'psd95'"):
        hdf5_source(crop.path, {OUTPUT: "psd95"})
    with pytest.raises(RequestError, match="has no array 'psd95'; it has psd95_output"):
        further_array(crop.path, "psd95")
    with pytest.raises(RequestError, match=r"psd95_output has the value .*, which torch has no integers for"):
        LoadCrop()(items([crop.path])[0])


def test_each_array_is_an_image_by_url_and_in_the_export(crop: Synapses, service_url: str) -> None:
    async def make() -> str:
        async with ServiceApi(Settings.load({}, url=service_url)) as api:
            return (await api.make_link(LinkRequest(split=Split.SYNAPSES, crop=0))).url

    for store in (fsspec.get_mapper(asyncio.run(make())), str(crop.ngff)):
        group = zarr.open_group(store, mode="r")
        assert group.attrs["prismcache"]["arrays"] == list(NAMES)
        OmeImage.from_zarr(group)
        for name in NAMES:
            (scales,) = OmeImage.from_zarr(group[name]).attributes.multiscales
            assert scales.datasets[0].coordinateTransformations[1].translation == list(crop.at(name))
            assert np.array_equal(group[name]["0"][:], crop.arrays[name])
