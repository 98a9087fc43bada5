"""gunpowder and funlib find our files, and exports of them, where they lie in the world."""

from __future__ import annotations

import pickle

import gunpowder as gp
import numpy as np
import pytest
from funlib.geometry import Roi
from funlib.persistence import open_ds

from prismcache import RequestError, UnknownChannelError
from prismcache.adapters.funlib import labels_array, raw_array
from prismcache.adapters.gunpowder import hdf5_source

RAW, OTHER, LABELS = gp.ArrayKey("RAW"), gp.ArrayKey("OTHER"), gp.ArrayKey("LABELS")
START, SHAPE = (3, 5, 7), (4, 10, 12)
BOX = tuple(slice(a, a + n) for a, n in zip(START, SHAPE, strict=True))


def requested(source: gp.BatchProvider, keys: list[gp.ArrayKey], box: gp.Roi) -> tuple[gp.Batch, gp.ProviderSpec]:
    """Return what a pipeline of the source alone returns, and what it says it provides."""
    request = gp.BatchRequest()
    for key in keys:
        request[key] = gp.ArraySpec(roi=box)
    with gp.build(source):
        return source.request_batch(request), source.spec.copy()


def test_hdf5_source_reads_the_file_as_it_is(instance):
    specs = {RAW: gp.ArraySpec(interpolatable=True), LABELS: gp.ArraySpec(interpolatable=False)}
    with pytest.warns(DeprecationWarning, match="HDF5LikeSource"):
        source = gp.Hdf5Source(str(instance.path), {RAW: "raw/ch_01", LABELS: "labels"}, specs)
    box = gp.Roi(*instance.world(START, SHAPE))
    batch, provided = requested(source, [RAW, LABELS], box)
    for key, whole in ((RAW, instance.expected["raw"][1]), (LABELS, instance.expected["labels"])):
        assert provided[key].voxel_size == instance.voxel_size
        assert provided[key].roi == gp.Roi(*instance.world((0, 0, 0), whole.shape))
        assert batch[key].spec.roi == box
        assert np.array_equal(batch[key].data, whole[BOX])


def test_our_source_knows_its_specs_before_the_pipeline_is_built(instance):
    source = hdf5_source(instance.path, {RAW: 0, OTHER: 2, LABELS: "labels"})
    known = dict(source.array_specs)
    batch, provided = requested(source, [RAW, OTHER, LABELS], gp.Roi(*instance.world(START, SHAPE)))
    raw, labels = instance.expected["raw"], instance.expected["labels"]
    for key, whole in ((RAW, raw[0]), (OTHER, raw[2]), (LABELS, labels)):
        assert provided[key] == known[key]
        assert known[key].roi == gp.Roi(*instance.world((0, 0, 0), whole.shape))
        assert (known[key].dtype, known[key].interpolatable) == (whole.dtype, key != LABELS)
        assert np.array_equal(batch[key].data, whole[BOX])


def test_our_source_works_in_a_training_pipeline_with_worker_processes(instance):
    source = hdf5_source(instance.path, {RAW: 0, LABELS: "labels"})
    pipeline = (
        source
        + gp.RandomLocation()
        + gp.SimpleAugment(transpose_only=[1, 2])
        + gp.PreCache(cache_size=2, num_workers=1)
    )
    request = gp.BatchRequest()
    for key in (RAW, LABELS):
        request.add(key, gp.Coordinate(4, 16, 16) * gp.Coordinate(instance.voxel_size))
    with gp.build(pipeline):
        batch = pipeline.request_batch(request)
    assert batch[RAW].data.shape == batch[LABELS].data.shape == (4, 16, 16)


def test_what_the_file_lacks_is_refused(instance):
    with pytest.raises(UnknownChannelError, match="has no channel 9"):
        hdf5_source(instance.path, {RAW: 9})
    with pytest.raises(RequestError, match="RAW must be a channel's number"):
        hdf5_source(instance.path, {RAW: "raw/ch_00"})
    with pytest.raises(UnknownChannelError, match="has no channel 9"):
        raw_array(instance.path, [0, 9])


def test_funlib_arrays_have_place_axes_and_units(instance):
    raw, labels = raw_array(instance.path), labels_array(instance.path)
    for array, name in ((raw, "raw"), (labels, "labels")):
        assert array.roi == Roi(*instance.world((0, 0, 0), instance.expected["labels"].shape))
        assert (array.voxel_size, array.units) == (instance.voxel_size, ["nm"] * 3)
        assert np.array_equal(array[array.roi], instance.expected[name])
        assert np.array_equal(array[Roi(*instance.world(START, SHAPE))], instance.expected[name][(..., *BOX)])
    assert raw.axis_names == ["c^", "z", "y", "x"]


def test_funlib_arrays_take_channels_and_original_ids_and_pickle(instance, semantic):
    raw = raw_array(instance.path, [2, 0])
    assert np.array_equal(raw[raw.roi], instance.expected["raw"][[0, 2]])
    for crop, values in ((instance, "original"), (semantic, None)):
        labels = labels_array(crop.path, values)
        assert labels.dtype == np.uint64
        assert np.array_equal(labels[labels.roi], crop.expected["source_labels"])
    for array, name in ((raw_array(instance.path), "raw"), (labels_array(instance.path), "labels")):
        assert np.array_equal(pickle.loads(pickle.dumps(array.data)).compute(), instance.expected[name])


def test_gunpowder_takes_several_channels_and_original_ids_as_funlib_arrays(semantic):
    sources = (
        gp.ArraySource(RAW, raw_array(semantic.path, [0, 2]), interpolatable=True),
        gp.ArraySource(LABELS, labels_array(semantic.path), interpolatable=False),
    )
    batch, _ = requested(sources + gp.MergeProvider(), [RAW, LABELS], gp.Roi(*semantic.world(START, SHAPE)))
    assert np.array_equal(batch[RAW].data, semantic.expected["raw"][[0, 2]][(slice(None), *BOX)])
    assert np.array_equal(batch[LABELS].data, semantic.expected["source_labels"][BOX])


@pytest.mark.parametrize(("split", "labels"), [("instance", "labels"), ("semantic", "source_labels")])
def test_funlib_opens_the_export_by_its_attributes(made, split, labels):
    crop = made(split)
    for folder, name in ((crop.export / "0", "raw"), (crop.export / "labels" / split / "0", labels)):
        array = open_ds(str(folder), strict_metadata=True)
        assert array.roi == Roi(*crop.world((0, 0, 0), crop.expected["labels"].shape))
        assert (array.voxel_size, array.units) == (crop.voxel_size, ["nm"] * 3)
        assert np.array_equal(array[array.roi], crop.expected[name])


def test_gunpowder_reads_the_export(instance):
    specs = {RAW: gp.ArraySpec(interpolatable=True)}
    source = gp.ZarrSource(str(instance.export), {RAW: "0"}, specs)
    batch, _ = requested(source, [RAW], gp.Roi(*instance.world(START, SHAPE)))
    assert np.array_equal(batch[RAW].data, instance.expected["raw"][(slice(None), *BOX)])
