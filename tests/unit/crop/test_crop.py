"""Looking into one cached crop."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from prismcache import Crop, CropCorruptError, CropNotCachedError, RequestError, UnknownChannelError
from prismcache._testing_files import VOXEL_SIZE, CropArrays, crop_arrays, write_crop
from prismcache.crop.boxes import voxel_box
from prismcache.schema import Split

CHANNELS = (0, 2)


@pytest.fixture(scope="module")
def arrays() -> CropArrays:
    return crop_arrays(Split.INSTANCE, 3, None)


@pytest.fixture(scope="module")
def path(arrays: CropArrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_crop(tmp_path_factory.mktemp("root"), Split.INSTANCE, 3, arrays, CHANNELS).path)


def test_it_says_what_it_is_and_where_it_lies(path: Path) -> None:
    with Crop(path) as crop:
        assert (crop.split, crop.crop_id, crop.channels, crop.shape) == (Split.INSTANCE, 3, CHANNELS, (8, 24, 24))
        assert (crop.voxel_size, crop.resolution, crop.offset) == (VOXEL_SIZE, VOXEL_SIZE, (0, 0, 0))
        found = crop.provenance
    assert (found.source, found.missing_chunks, found.format_version) == ("memory", 0, 1)
    assert found.manifest is not None
    assert found.manifest.channels == CHANNELS
    assert "2025.09.26.678648" in crop.citation
    assert crop.citation == found.citation


@pytest.mark.parametrize(
    "key",
    [
        ...,
        0,
        -1,
        (1, 3),
        (slice(None), slice(2, 4)),
        (..., 5),
        ([1, 0], slice(0, 2), slice(None), 3),
        (0, ..., slice(3)),
    ],
    ids=str,
)
def test_raw_is_indexed_as_an_array(key, path: Path, arrays: CropArrays) -> None:
    with Crop(path) as crop:
        assert np.array_equal(crop.raw[key], arrays.raw[list(CHANNELS)][key])


def test_raw_and_labels_are_like_arrays(path: Path, arrays: CropArrays) -> None:
    with Crop(path) as crop:
        assert (crop.raw.shape, crop.raw.dtype, crop.raw.ndim, len(crop.raw)) == ((2, 8, 24, 24), np.uint8, 4, 2)
        assert np.array_equal(np.asarray(crop.raw), arrays.raw[list(CHANNELS)])
        assert np.array_equal(np.asarray(crop.original_labels), arrays.labels)
        labels = crop.original_labels
        assert (labels.shape, labels.dtype, labels.ndim, len(labels)) == ((8, 24, 24), np.uint64, 3, 8)
        assert np.array_equal(crop.labels_ids[crop.labels[2:5, 3]], arrays.labels[2:5, 3])
        assert crop.labels.dtype == np.uint32
        with pytest.raises(IndexError, match="no channel"):
            _ = crop.raw[0:0]
        for lazy in (crop.raw, labels):
            with pytest.raises(ValueError, match="without a copy"):
                np.array(lazy, copy=False)


def test_a_box_is_read_in_voxels_or_in_nanometres(path: Path, arrays: CropArrays) -> None:
    with Crop(path) as crop:
        box = [slice(1, 3), slice(0, 24), slice(4, 6)]
        world = [slice(400, 1200), slice(None), slice(4 * 168 + 1, 6 * 168 - 1)]
        for units, ranges in (("voxels", box), ("nm", world)):
            assert np.array_equal(crop.read(ranges, 2, units=units), arrays.raw[2:3, 1:3, :, 4:6])
            assert np.array_equal(crop.read_labels(ranges, "original", units=units), arrays.labels[1:3, :, 4:6])
        assert np.array_equal(crop.read(), arrays.raw[list(CHANNELS)])
        assert crop.read_labels(box).dtype == np.uint32
        with pytest.raises(UnknownChannelError, match="no channel 1; it has 0, 2"):
            crop.read(channels=[0, 1])


@pytest.mark.parametrize(
    "box",
    [
        [slice(0, 9), slice(None), slice(None)],
        [slice(3, 3), slice(None), slice(None)],
        [slice(-1, 2), slice(None), slice(None)],
        [slice(0, 4, 2), slice(None), slice(None)],
        [slice(None)],
        [0, 1, 2],
    ],
    ids=str,
)
def test_a_box_that_is_none_or_leaves_the_crop_is_refused(box) -> None:
    with pytest.raises(RequestError, match=r"leaves the crop's \[0, 8\)|three slices"):
        voxel_box(box, (8, 24, 24))


def test_it_pickles_as_its_path_and_opens_again_after_closing(path: Path) -> None:
    crop = Crop(path)
    assert crop.shape == (8, 24, 24)
    copy = pickle.loads(pickle.dumps(crop))
    crop.close()
    assert (copy.path, copy.shape, crop.shape, repr(copy)) == (path, crop.shape, (8, 24, 24), f"Crop({str(path)!r})")
    copy.close()
    crop.close()


def test_what_is_no_crop_is_named(tmp_path: Path) -> None:
    with pytest.raises(CropNotCachedError, match="there is no file"), Crop(tmp_path / "crop_0.h5"):
        pass
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(CropCorruptError, match="cannot be opened as HDF5"), Crop(tmp_path / "text.h5"):
        pass
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("labels", data=np.zeros((2, 2, 2)))
    with pytest.raises(CropCorruptError, match="lacks 'raw'"), Crop(tmp_path / "other.h5"):
        pass


def test_a_file_of_another_program_lacks_only_what_it_lacks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "crop_0.h5", "w") as file:
        file.create_dataset("raw/ch_00", data=np.zeros((2, 3, 4), np.uint8))
        file.create_dataset("labels", data=np.ones((2, 3, 4), np.uint32))
    with Crop(tmp_path / "crop_0.h5") as crop:
        assert (crop.channels, crop.shape, crop.raw[0].max(), crop.labels[...].max()) == ((0,), (2, 3, 4), 0, 1)
        for missing in ("labels_ids", "voxel_size", "split", "provenance"):
            with pytest.raises(RequestError, match=r"crop_0\.h5") as caught:
                getattr(crop, missing)
            assert "prismcache ensure" in caught.value.remedy


@pytest.mark.parametrize(
    ("module", "statement"),
    [("h5py", "prismcache.Crop(__file__).shape"), ("torch", "from prismcache.torch import PrismDataset")],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(module: str, statement: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys; sys.modules[{module!r}] = None\nimport prismcache\n"
        f"try:\n    {statement}\nexcept prismcache.MissingExtraError as error:\n    print(error, error.remedy)\n"
    )
    said = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True).stdout
    assert f"needs {module}" in said
    assert 'pip install "prismcache[torch]"' in said
