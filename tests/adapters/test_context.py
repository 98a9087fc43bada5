"""Crops whose raw reaches beyond the labels, as training pipelines like E11's and viewers read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gunpowder as gp
import numpy as np
import pytest
import zarr
from funlib.persistence import open_ds

from prismcache import Crop
from prismcache.adapters import napari
from prismcache.adapters.funlib import labels_array, raw_array
from prismcache.adapters.gunpowder import hdf5_source
from prismcache.adapters.monai import LoadCrop, items

RAW, LABELS, UNLABELLED, AFFINITIES = (gp.ArrayKey(name) for name in ("RAW", "LABELS", "UNLABELLED", "AFFINITIES"))
VOXEL = gp.Coordinate(400, 168, 168)
RAW_SHAPE, LABELS_SHAPE = gp.Coordinate(76, 196, 196), gp.Coordinate(44, 104, 104)
NEIGHBOURS = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [2, 0, 0], [0, 8, 0]]


@dataclass(frozen=True)
class ContextCrop:
    """The crop of `tests.support.adapter_files` that has context, and its voxels."""

    path: Path
    e11: Path
    ngff: Path
    raw: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def crop(made_files: Path) -> ContextCrop:
    with np.load(made_files / "context.npz") as arrays:
        return ContextCrop(
            made_files / "crop_3.h5", made_files / "e11.zarr", made_files / "context.zarr", **dict(arrays)
        )


def zarr_source(crop: ContextCrop) -> gp.BatchProvider:
    specs = {RAW: gp.ArraySpec(interpolatable=True)}
    specs |= {key: gp.ArraySpec(interpolatable=False) for key in (LABELS, UNLABELLED)}
    return gp.ZarrSource(str(crop.e11), {RAW: "raw", LABELS: "labels", UNLABELLED: "unlabelled"}, specs)


def h5_source(crop: ContextCrop) -> gp.BatchProvider:
    return hdf5_source(crop.path, {RAW: 0, LABELS: "labels", UNLABELLED: "labels"})


def cut(whole: np.ndarray, offset: gp.Coordinate, roi: gp.Roi) -> np.ndarray:
    """The voxels of a box in nm, zeros where it leaves the array."""
    start, shape = (roi.offset - offset) / VOXEL, roi.shape / VOXEL
    padded = np.pad(whole, [(0, 0)] * (whole.ndim - 3) + [(60, 60)] * 3)
    return padded[(..., *(slice(a + 60, a + 60 + n) for a, n in zip(start, shape, strict=True)))]


def affinities(labels: np.ndarray, offset: gp.Coordinate, roi: gp.Roi) -> np.ndarray:
    here = cut(labels, offset, roi)
    found = []
    for step in NEIGHBOURS:
        there = cut(labels, offset, roi.shift(gp.Coordinate(step) * VOXEL))
        found.append((here == there) & (here > 0) & (there > 0))
    return np.stack(found)


class NotePlace(gp.BatchFilter):
    """Keeps the world boxes of the last request: gunpowder moves a batch to the origin afterwards."""

    def process(self, batch: gp.Batch, request: gp.BatchRequest) -> None:
        self.rois = {key: spec.roi for key, spec in request.items()}


@pytest.mark.parametrize("make_source", [zarr_source, h5_source])
def test_a_request_shaped_like_e11s_affinities_is_what_numpy_gives(
    make_source: Callable[[ContextCrop], gp.BatchProvider], crop: ContextCrop
) -> None:
    place = NotePlace()
    pipeline = (
        make_source(crop)
        + gp.Pad(RAW, None)
        + gp.Pad(LABELS, LABELS_SHAPE / 2 * VOXEL)
        + gp.Pad(UNLABELLED, LABELS_SHAPE / 2 * VOXEL)
        + place
        + gp.RandomLocation(min_masked=0.3, mask=UNLABELLED)
        + gp.AddAffinities(NEIGHBOURS, LABELS, AFFINITIES, dtype=np.float32)
    )
    request = gp.BatchRequest(random_seed=5)
    request.add(RAW, RAW_SHAPE * VOXEL)
    for key in (LABELS, UNLABELLED, AFFINITIES):
        request.add(key, LABELS_SHAPE * VOXEL)
    with Crop(crop.path) as opened:
        raw_at, labels_at = gp.Coordinate(opened.raw_offset), gp.Coordinate(opened.offset)
        labels = opened.labels[...]
    raw = crop.raw if make_source is zarr_source else crop.raw[0]
    with gp.build(pipeline):
        for _ in range(3):
            batch = pipeline.request_batch(request)
            inner = place.rois[UNLABELLED]
            assert place.rois[RAW].get_center() == inner.get_center()
            assert batch[RAW].data.shape[-3:] == tuple(RAW_SHAPE)
            assert np.array_equal(batch[RAW].data, cut(raw, raw_at, place.rois[RAW]))
            assert np.array_equal(batch[LABELS].data, cut(labels, labels_at, inner))
            assert np.array_equal(batch[UNLABELLED].data > 0, cut(labels, labels_at, inner) > 0)
            assert np.array_equal(batch[AFFINITIES].data, affinities(labels, labels_at, inner))


def test_e11s_layout_has_flat_arrays_with_place_and_units(crop: ContextCrop) -> None:
    group = zarr.open(str(crop.e11), "r")
    with Crop(crop.path) as opened:
        labels = opened.labels[...]
        for name, voxels, offset in (("raw", crop.raw, opened.raw_offset), ("labels", labels, opened.offset)):
            attributes = group[name].attrs
            assert np.array_equal(group[name][:], voxels)
            assert tuple(attributes["offset"]) == offset
            assert attributes["resolution"] == attributes["voxel_size"] == list(VOXEL)
            assert attributes["units"] == ["nm"] * 3
    assert np.array_equal(group["labels_ids"][:][group["labels"][:]], crop.labels)
    assert np.array_equal(group["unlabelled"][:], (crop.labels > 0).astype(np.uint8))


def test_raw_and_labels_lie_at_their_own_offsets_everywhere(crop: ContextCrop) -> None:
    with Crop(crop.path) as opened:
        raw_at, labels_at = opened.raw_offset, opened.offset
    assert raw_at != labels_at
    arrays = (raw_array(crop.path), labels_array(crop.path, "original"))
    exported = (open_ds(str(crop.ngff / "0")), open_ds(str(crop.ngff / "labels/instance/0")))
    image, _, labels = napari.layers(crop.path)
    item = LoadCrop(label_values="consecutive")(items([crop.path])[0])
    for index, (offset, voxels) in enumerate(((raw_at, crop.raw), (labels_at, crop.labels))):
        assert (arrays[index].roi.offset, exported[index].roi.offset) == (offset, offset)
        assert np.array_equal(arrays[index][arrays[index].roi], voxels)
        layer, name = ((image, "image"), (labels, "label"))[index]
        assert layer[1]["translate"] == offset
        assert layer[0].shape == item[name].shape[1:] == voxels.shape[-3:]
        assert item[name].affine[:3, 3].tolist() == list(offset)
