"""Looking into one cached crop."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np
import pytest

from prismcache import (
    Crop,
    CropCorruptError,
    CropNotCachedError,
    RequestError,
    StorageError,
    UnknownChannelError,
)
from prismcache._testing_files import VOXEL_SIZE, CropArrays, crop_arrays, write_crop
from prismcache.crop.boxes import voxel_box
from prismcache.layout import FORMAT_VERSION
from prismcache.schema import Split
from tests.support.context_crops import write_context_crop

CHANNELS = (0, 2)


@pytest.fixture(scope="module")
def arrays() -> CropArrays:
    return crop_arrays(Split.INSTANCE, 3, None)


@pytest.fixture(scope="module")
def path(arrays: CropArrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(write_crop(tmp_path_factory.mktemp("root"), Split.INSTANCE, 3, arrays, CHANNELS).path)


def test_it_says_what_it_is_and_where_it_lies(path: Path, arrays: CropArrays) -> None:
    with Crop(path) as crop:
        assert (crop.split, crop.crop_id, crop.channels, crop.shape) == (Split.INSTANCE, 3, CHANNELS, (8, 24, 24))
        assert (crop.voxel_size, crop.resolution, crop.offset) == (VOXEL_SIZE, VOXEL_SIZE, arrays.offset)
        found = crop.provenance
    assert (found.source, found.missing_chunks, found.format_version) == ("memory", 0, FORMAT_VERSION)
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
        z, _, x = arrays.offset
        world = [slice(z + 400, z + 1200), slice(None), slice(x + 4 * 168 + 1, x + 6 * 168 - 1)]
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
    assert (copy.path, copy.shape, crop.shape) == (path, crop.shape, (8, 24, 24))
    copy.close()
    crop.close()


def test_it_shows_what_it_holds_to_a_person(path: Path, tmp_path: Path) -> None:
    shown = "crop instance 3, channels 0, 2, labels 8 × 24 × 24 voxels, voxel 400 × 168 × 168 nm expanded, "
    with Crop(path) as crop:
        assert repr(crop) == f"<Crop {path}: {shown}≈ 80 × 34 × 34 nm in tissue>"
        assert "≈ 80 × 34 × 34 nm in tissue" in crop._repr_html_()
        assert '<td><img src="data:image/png;base64,' in crop._repr_html_()
    assert "there is no file" in repr(Crop(tmp_path / "<b>.h5"))
    assert "&lt;b&gt;.h5" in Crop(tmp_path / "<b>.h5")._repr_html_()


def test_a_channel_is_indexed_by_its_number(path: Path, arrays: CropArrays) -> None:
    with Crop(path) as crop:
        assert np.array_equal(crop[2], arrays.raw[2])
        assert np.array_equal(crop[0, 1:3, 4], arrays.raw[0, 1:3, 4])
        assert np.array_equal(crop.read(channels="0-0,2"), arrays.raw[list(CHANNELS)])
        with pytest.raises(UnknownChannelError, match="no channel 1; it has 0, 2"):
            _ = crop[1]
        with pytest.raises(RequestError, match="write numbers and ranges"):
            crop.read(channels="first")


def test_one_box_is_the_same_tissue_in_raw_and_labels_where_raw_has_context(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    whole, labels = noise.integers(0, 256, (2, 12, 20, 22), np.uint8), noise.integers(0, 9, (6, 10, 12))
    box, there = [slice(-2, 3), slice(1, 4), slice(0, 12)], (slice(None), slice(0, 5), slice(6, 9), slice(4, 16))
    with Crop(write_context_crop(tmp_path / "crop_3.h5", whole, labels, (2, 5, 4))) as crop:
        assert (crop.shape, crop.raw_shape, crop.context) == ((6, 10, 12), (12, 20, 22), ((2, 5, 4), (4, 5, 6)))
        assert np.array_equal(crop.read(), whole)
        assert np.array_equal(np.asarray(crop.raw), whole)
        assert np.array_equal(crop.read(box), whole[there])
        ranges = zip(crop.offset, crop.voxel_size, box, strict=True)
        world = [slice(origin + part.start * size, origin + part.stop * size) for origin, size, part in ranges]
        assert np.array_equal(crop.read(world, units="nm"), whole[there])
        assert np.array_equal(crop.read_labels([slice(0, 3), *box[1:]], "original"), labels[0:3, 1:4, 0:12])
        assert np.array_equal(crop.read_labels([slice(None), *world[1:]], "original", units="nm"), labels[:, 1:4, 0:12])
        with pytest.raises(RequestError, match=r"\[-3, 3\) is empty or leaves the crop's \[-2, 10\)"):
            crop.read([slice(-3, 3), *box[1:]])
        with pytest.raises(RequestError, match=r"leaves the crop's \[0, 6\)"):
            crop.read_labels(box)
    with pytest.raises(CropCorruptError, match="does not hold the labels' box"):
        Crop(write_context_crop(tmp_path / "crop_4.h5", whole, labels, (8, 5, 4))).context  # noqa: B018 - the property raises


@pytest.mark.parametrize("damage", ["another id", "not ascending"])
def test_a_damaged_table_of_original_ids_is_never_used(damage: str, path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "crop_3.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        table = file["labels_ids"]
        table.attrs["sha256"] = hashlib.sha256(table[...].astype("<u8").tobytes()).hexdigest()
    with Crop(copy) as crop:
        assert crop.labels_ids[0] == 0
    with h5py.File(copy, "r+") as file:
        if damage == "not ascending":
            del file["labels_ids"].attrs["sha256"]
        file["labels_ids"][1] += np.uint64(1 if damage == "another id" else 2**63)
    with pytest.raises(CropCorruptError, match="'labels_ids' is damaged"):
        _ = Crop(copy).original_labels


def test_a_label_without_an_original_id_is_corrupt(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "crop_3.h5"
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["labels"][0, 0, 0] = 10**6
    with pytest.raises(CropCorruptError, match="larger than the table"):
        Crop(copy).read_labels(values="original")


def test_whatever_bit_is_flipped_a_crop_is_refused_or_right(path: Path, tmp_path: Path) -> None:
    """The file has no manifest beside it. Without the seal, HDF5 2.0 would crash on a flipped heap of strings."""

    def everything() -> list[object]:
        with Crop(copy) as crop:
            about = [crop.split, crop.crop_id, crop.channels, crop.voxel_size, crop.offset, crop.provenance]
            return [*about, *(voxels.tolist() for voxels in (np.asarray(crop.raw), crop.labels[...], crop.labels_ids))]

    whole, copy = path.read_bytes(), tmp_path / "crop_3.h5"
    copy.write_bytes(whole)
    right, refused = everything(), 0
    for place in range(0, len(whole), 61):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        copy.write_bytes(damaged)
        try:
            found = everything()
        except CropCorruptError:
            refused += 1
        else:
            assert found == right, f"bit {place % 8} of byte {place}"
    assert refused > 10


def descriptor_of(path: Path) -> int:
    """Return the descriptor under which this process has the file open."""
    opened = {int(link.name): link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    return next(number for number, target in opened.items() if target == path)


def test_what_the_system_refuses_for_a_moment_is_read_again(path: Path) -> None:
    with Crop(path) as crop:
        good = crop.labels[...]
    with Crop(path) as crop:
        dataset = crop.labels
        descriptor = descriptor_of(path)
        os.dup2(closed := os.open(os.devnull, os.O_WRONLY), descriptor)  # now each read fails with EBADF
        os.close(closed)
        assert np.array_equal(dataset[...], good)


def test_what_the_system_refuses_is_a_storage_error_with_its_number(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "crop_3.h5"
    copy.write_bytes(path.read_bytes())
    with Crop(copy) as crop:
        dataset = crop.labels
        descriptor = descriptor_of(copy)
        closed = os.open(os.devnull, os.O_WRONLY)
        os.dup2(closed, descriptor)
        os.close(closed)
        copy.write_bytes(b"another file")
        with pytest.raises(StorageError, match=rf"crop_3.h5: /labels cannot be read: .* \(errno {errno.ESTALE}\)"):
            _ = dataset[...]


@pytest.mark.parametrize("first", ["crop", "other"])
def test_another_library_may_have_the_file_open_too(first: str, path: Path) -> None:
    with ExitStack() as stack:
        crop = stack.enter_context(Crop(path)) if first == "crop" else None
        other = stack.enter_context(h5py.File(path, "r"))  # with HDF5's locks, as torch_em opens it
        crop = crop or stack.enter_context(Crop(path))
        assert np.array_equal(other["labels"], crop.labels)


def test_what_is_no_crop_is_named(tmp_path: Path) -> None:
    with pytest.raises(CropNotCachedError, match="there is no file"), Crop(tmp_path / "crop_0.h5"):
        pass
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(CropCorruptError, match="cannot be read as HDF5"), Crop(tmp_path / "text.h5"):
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
