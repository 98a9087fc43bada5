from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.support.crops import (
    RESOLUTION,
    CropSpec,
    crop_folder,
    full_size_spec,
    small_spec,
    write_crop,
)


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
