from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.support.crops import (
    RESOLUTION,
    CropSpec,
    crop_folder,
    full_size_spec,
    layout_variants,
    small_spec,
    write_crop,
)
from tests.support.oracle import ReferenceCrop, absent_objects, reference_crop


def _files(folder: Path) -> dict[str, str]:
    """MD5 of every file, by path below `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def crop(bucket_dir: Path) -> Path:
    return crop_folder(bucket_dir, small_spec())


def test_full_size_spec_is_the_published_crop() -> None:
    spec = full_size_spec()
    assert spec.raw_array_shape == (18, 300, 650, 650)
    assert spec.labels_shape == (200, 500, 500)
    assert spec.shift == (50, 75, 75)
    assert spec.raw.chunk_shape(spec.raw_array_shape) == (3, 38, 163, 163)
    assert spec.labels.chunk_shape(spec.labels_shape) == (25, 63, 125)
    assert sum(key.startswith("raw/") for key in spec.keys) == 768
    assert sum(key.startswith("labels/") for key in spec.keys) == 256
    assert "raw/5.7.3.3" in spec.keys


def test_layout_is_the_published_one(crop: Path) -> None:
    assert {path.name for path in crop.iterdir()} == {".zgroup", "raw", "labels"}
    for name, dtype in (("raw", "|u1"), ("labels", "<u8")):
        metadata = json.loads((crop / name / ".zarray").read_text())
        assert metadata["zarr_format"] == 2
        assert metadata["dimension_separator"] == "."
        assert metadata["dtype"] == dtype
        assert metadata["order"] == "C"
        assert metadata["filters"] is None
        compressor = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
        assert metadata["compressor"] == compressor
    assert json.loads((crop / "raw/.zattrs").read_text())["resolution"] == list(RESOLUTION)
    assert list(json.loads((crop / "labels/.zattrs").read_text())) == ["offset"]


def test_every_chunk_is_an_object(crop: Path) -> None:
    metadata = {".zgroup", "raw/.zarray", "raw/.zattrs", "labels/.zarray", "labels/.zattrs"}
    assert set(_files(crop)) == {*small_spec().keys, *metadata}
    grid = small_spec().raw.object_grid(small_spec().raw_array_shape)
    assert min(grid) > 1


def test_equal_specs_give_equal_bytes_and_another_seed_other_voxels(tmp_path: Path) -> None:
    spec = small_spec(channels=2)
    first = _files(write_crop(tmp_path / "a", spec))
    assert _files(write_crop(tmp_path / "b", spec)) == first
    other = _files(write_crop(tmp_path / "a", dataclasses.replace(spec, seed=1)))
    assert other.keys() == first.keys()
    assert all(other[key] != first[key] for key in spec.keys if key.startswith("raw/"))


def test_instance_ids_are_arbitrary_and_large(crop: Path) -> None:
    ids = np.unique(np.asarray(zarr.open_array(crop / "labels", mode="r")[:]))
    assert ids[0] == 0
    assert (ids[1:] < 10_000).any()
    assert ((ids >= 2**40) & (ids < 2**42)).any()
    assert ids[-1] > 2**64 - 2000
    assert len(ids) > 15


def test_semantic_crop_0_shows_the_tissue_of_instance_crop_2(tmp_path: Path) -> None:
    shapes = {"raw_shape": (30, 90, 90), "labels_shape": (18, 50, 50), "channels": 2}
    crops = [write_crop(tmp_path, CropSpec(split, n, **shapes)) for split, n in (("instance", 2), ("semantic", 0))]
    raw = [np.asarray(zarr.open_array(crop / "raw", mode="r")[:]) for crop in crops]
    np.testing.assert_array_equal(raw[0], raw[1])


SMALLER: dict[str, Any] = {"channels": 3, "raw_shape": (24, 70, 72), "labels_shape": (14, 40, 44)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> ReferenceCrop:
    return reference_crop(write_crop(tmp_path_factory.mktemp("plain"), small_spec(**SMALLER)))


@pytest.mark.parametrize("name", layout_variants())
def test_every_layout_holds_the_same_crop(name: str, tmp_path: Path, plain: ReferenceCrop) -> None:
    spec = dataclasses.replace(layout_variants()[name], **SMALLER)
    folder = write_crop(tmp_path, spec)
    assert set(spec.keys) <= set(_files(folder))
    found = reference_crop(folder)
    np.testing.assert_array_equal(found.raw, plain.raw[: spec.channels])
    if spec.labels.dtype != "|u1":  # 255 ids are too few for all segments
        np.testing.assert_array_equal(found.labels > 0, plain.labels > 0)
    assert (found.offset, found.resolution, found.shift) == (plain.offset, plain.resolution, plain.shift)
    assert found.source_labels.dtype.newbyteorder("=") == np.dtype(spec.labels.dtype).newbyteorder("=")
    assert absent_objects(folder) == 0


def test_absent_chunks_and_fill_value(tmp_path: Path) -> None:
    spec = small_spec(channels=3)
    spec = dataclasses.replace(
        spec,
        raw=dataclasses.replace(spec.raw, absent=((0, 1, 1, 1),), fill_value=7),
        labels=dataclasses.replace(spec.labels, absent=((0, 0, 0), (1, 1, 1))),
    )
    folder = write_crop(tmp_path, spec)
    assert not (folder / "raw/0.1.1.1").exists()
    assert absent_objects(folder) == 1  # absent labels with fill value 0 are background
    assert "raw/0.1.1.1" not in spec.keys
    assert "labels/1.1.1" not in spec.keys
    raw = np.asarray(zarr.open_array(folder / "raw", mode="r")[:])
    assert (raw[0:3, 9:18, 28:56, 36:72] == 7).all()
