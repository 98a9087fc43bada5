from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from skimage.segmentation import relabel_sequential

from tests.support.crops import crop_folder, set_attributes, small_spec, write_crop
from tests.support.oracle import absent_objects, assert_crop_file_equals_oracle, reference_crop, relabel

CHANNELS = (1, 3)


@pytest.fixture(scope="module")
def crop(bucket_dir: Path) -> Path:
    return crop_folder(bucket_dir, small_spec(crop=5))


@pytest.fixture
def file(right_file: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copy2(right_file, tmp_path))


@pytest.fixture(scope="module")
def right_file(crop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two channels as the contract wants it."""
    expected = reference_crop(crop)
    path = tmp_path_factory.mktemp("oracle") / "crop_5.ch01_03.h5"
    with h5py.File(path, "w") as file:
        voxels = {f"raw/ch_{channel:02d}": expected.raw[channel] for channel in CHANNELS} | {"labels": expected.labels}
        for name, values in voxels.items():
            dataset = file.create_dataset(name, data=values, chunks=(8, 32, 32), compression="gzip")
            dataset.attrs.update(offset=expected.offset, resolution=expected.resolution, voxel_size=expected.resolution)
            dataset.attrs.update(axis_names=["z", "y", "x"], units=["nm"] * 3)
        file["labels_ids"] = np.unique(np.append(expected.source_labels, np.uint64(0)))
        file.attrs.update(crop_id=5, split="instance", num_channels=2, format_version=1, missing_chunks=0)
        file.attrs.update(source="s3://bucket/instance/crop_5.zarr", source_fingerprint="ab", prismcache_version="1")
    return path


def test_raw_is_cut_to_the_labels(crop: Path) -> None:
    spec = small_spec(crop=5)
    expected = reference_crop(crop)
    assert expected.raw.shape == (12, *spec.labels_shape)
    assert expected.labels.shape == expected.source_labels.shape == spec.labels_shape
    assert (expected.raw.dtype, expected.labels.dtype) == (np.uint8, np.uint32)
    assert expected.shift == spec.shift
    assert expected.offset == spec.labels_world_offset
    assert expected.resolution == (400, 168, 168)


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # scikit-image 0.26 with numpy 2.5
def test_relabelling_is_that_of_skimage_for_any_id() -> None:
    random = np.random.default_rng(0)
    for values in ([0, 3, 9, 70_000], [5, 6, 2**19], [0, 0, 0]):
        labels = random.choice(np.array(values, np.uint64), (4, 5, 6))
        np.testing.assert_array_equal(relabel(labels), relabel_sequential(labels)[0])
    huge = np.array([[2**64 - 1, 0], [2**40, 2**64 - 2]], np.uint64)
    np.testing.assert_array_equal(relabel(huge), [[3, 0], [1, 2]])
    np.testing.assert_array_equal(relabel(huge[1:]), [[1, 2]])


def test_missing_attributes_are_offset_0_and_resolution_1(tmp_path: Path) -> None:
    spec = small_spec(channels=1, labels_shape=(30, 96, 92)).with_layout(attributes=())
    expected = reference_crop(write_crop(tmp_path, spec))
    assert (expected.shift, expected.offset, expected.resolution) == ((0, 0, 0), (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("offset", [[0, 0, 0], [8000 + 400 * 13, 33600, 16800]])
def test_labels_that_leave_raw_are_refused(tmp_path: Path, offset: list[int]) -> None:
    folder = write_crop(tmp_path, small_spec(channels=1))
    set_attributes(folder, "labels", {"offset": offset})
    with pytest.raises(ValueError, match="leave raw"):
        reference_crop(folder)


def test_a_right_file_passes(crop: Path, file: Path) -> None:
    assert_crop_file_equals_oracle(file, crop, CHANNELS)


def test_absent_chunks_are_counted_where_they_are_needed(tmp_path: Path) -> None:
    spec = small_spec(crop=5)
    absent = ((0, 1, 1, 1), (1, 1, 1, 1), (0, 3, 3, 2))  # needed by channels 1 and 3; outside the labels' box
    spec = dataclasses.replace(spec, raw=dataclasses.replace(spec.raw, absent=absent))
    folder = write_crop(tmp_path, spec)
    expected = {None: 2, (1,): 1, (1, 3): 2, (6,): 0}
    assert {channels: absent_objects(folder, channels) for channels in expected} == expected


def _voxel(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][3, 4, 5] += 1

    return change


def _attribute(name: str, value: object, where: str = "/") -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[where].attrs[name] = value

    return change


def _drop(name: str, where: str = "/") -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[where].attrs[name]

    return change


def _id(file: h5py.File) -> None:
    file["labels_ids"][2] += np.uint64(1)


def _ids_dtype(file: h5py.File) -> None:
    ids = file["labels_ids"][()].astype(np.int64)
    del file["labels_ids"]
    file["labels_ids"] = ids


def _extra(file: h5py.File) -> None:
    file["raw/ch_00"] = file["raw/ch_01"]


def _labels_dtype(file: h5py.File) -> None:
    labels = file["labels"][()].astype(np.uint64)
    del file["labels"]
    file.create_dataset("labels", data=labels, chunks=(8, 32, 32), compression="gzip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_voxel("raw/ch_03"), r"raw/ch_03: 1 of \d+ voxels differ, the first at \(3, 4, 5\)"),
        (_voxel("labels"), r"labels: 1 of \d+ voxels differ"),
        (_labels_dtype, "labels: dtype uint64, expected uint32"),
        (_id, r"labels_ids\[labels\] gives \d+ voxels another id"),
        (_ids_dtype, "labels_ids: dtype int64"),
        (_extra, "raw holds"),
        (_drop("voxel_size", "labels"), "labels: no attribute voxel_size"),
        (_attribute("offset", [1, 2, 3], "raw/ch_01"), r"raw/ch_01\.offset: .*expected"),
        (_attribute("resolution", [400.0, 168.0, 168.0], "labels"), "no integers"),
        (_attribute("units", ["um"] * 3, "raw/ch_03"), r"raw/ch_03\.units"),
        (_drop("axis_names", "labels"), r"labels\.axis_names"),
        (_attribute("crop_id", 6), "crop_id: 6, expected 5"),
        (_attribute("num_channels", 12), "num_channels: 12, expected 2"),
        (_attribute("missing_chunks", 1), "missing_chunks: 1, expected 0"),
        (_attribute("split", "semantic"), "split: 'semantic', expected 'instance'"),
        (_drop("format_version"), "format_version"),
        (_drop("source_fingerprint"), "source_fingerprint"),
        (_attribute("source", "s3://bucket/instance/crop_6.zarr"), "does not name instance/crop_5.zarr"),
    ],
)
def test_a_wrong_file_is_told_apart(crop: Path, file: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(file, "r+") as opened:
        change(opened)
    with pytest.raises(AssertionError, match=message):
        assert_crop_file_equals_oracle(file, crop, CHANNELS)
