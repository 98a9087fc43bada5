"""What a cached crop must hold: the reference's algorithm, written from its description, and a judge of our files.

Independent on purpose: it reads whole arrays through zarr and shares no code with the pipeline.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import zarr
from skimage.segmentation import relabel_sequential
from zarr.storage import LocalStore

LARGEST_RELABEL_TABLE = 2**20
"""skimage's relabelling allocates a table up to the largest id; beyond this one, ``np.unique`` does the same."""


@dataclass(frozen=True)
class ReferenceCrop:
    """A crop as the reference program would cache it, and where it lies.

    Attributes
    ----------
    raw
        (C, Z, Y, X) uint8, cut to the labels' box.
    labels
        (Z, Y, X) uint32, consecutive ids in ascending order of the source's; 0 stays 0.
    source_labels
        (Z, Y, X), the ids as published.
    offset, resolution
        World position of the first labelled voxel and voxel size, nm (Z, Y, X).
    shift
        First labelled voxel in raw, (Z, Y, X).
    """

    raw: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint32]
    source_labels: npt.NDArray[Any]
    offset: tuple[int, ...]
    resolution: tuple[int, ...]
    shift: tuple[int, ...]


def reference_crop(crop_folder: Path) -> ReferenceCrop:
    """Read and align the crop in `crop_folder` (a local zarr folder) as the reference does.

    Raises
    ------
    ValueError
        If the labels' box leaves raw, where the reference would silently give wrong data.
    """
    raw_array, labels_array = _open(crop_folder, "raw"), _open(crop_folder, "labels")
    raw_offset, resolution = _attribute(raw_array, "offset", 0), _attribute(raw_array, "resolution", 1)
    offset = _attribute(labels_array, "offset", 0)
    shift = tuple(int(n) for n in np.round((offset - raw_offset) / resolution))
    stop = tuple(s + n for s, n in zip(shift, labels_array.shape, strict=True))
    if min(shift) < 0 or any(s > n for s, n in zip(stop, raw_array.shape[1:], strict=True)):
        raise ValueError(f"labels at {shift}…{stop} leave raw {raw_array.shape[1:]}")
    raw = np.asarray(raw_array[:])
    labels = np.asarray(labels_array[:])
    return ReferenceCrop(
        raw=raw[(slice(None), *map(slice, shift, stop))],
        labels=relabel(labels),
        source_labels=labels,
        offset=tuple(int(n) for n in np.round(raw_offset + np.array(shift) * resolution)),
        resolution=tuple(int(n) for n in np.round(resolution)),
        shift=shift,
    )


def relabel(labels: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Consecutive ids in ascending order of the old ones, 0 staying 0: what ``relabel_sequential`` gives."""
    if labels.size and int(labels.max()) <= LARGEST_RELABEL_TABLE:
        with warnings.catch_warnings():  # scikit-image 0.26 sets an array's shape, which numpy 2.5 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            return np.asarray(relabel_sequential(labels)[0], np.uint32)
    ids, inverse = np.unique(labels, return_inverse=True)
    has_ground = bool(ids.size) and int(ids[0]) == 0
    return np.asarray(inverse.reshape(labels.shape) + (0 if has_ground else 1), np.uint32)


def absent_objects(crop_folder: Path, channels: Sequence[int] | None = None) -> int:
    """Stored objects that the aligned box of these channels (None: all) and the labels need but the folder lacks."""
    raw_array, labels_array = _open(crop_folder, "raw"), _open(crop_folder, "labels")
    shift = reference_shift(crop_folder)
    wanted = range(raw_array.shape[0]) if channels is None else channels
    spans = [(s, s + n) for s, n in zip(shift, labels_array.shape, strict=True)]
    sizes = raw_array.shards or raw_array.chunks
    axes = [
        sorted({c // sizes[0] for c in wanted}),
        *(_covering(a, b, n) for (a, b), n in zip(spans, sizes[1:], strict=True)),
    ]
    absent = sum(not _is_stored(crop_folder / "raw", raw_array, index) for index in itertools.product(*axes))
    sizes = labels_array.shards or labels_array.chunks
    grid = itertools.product(*(_covering(0, n, size) for n, size in zip(labels_array.shape, sizes, strict=True)))
    stored = [_is_stored(crop_folder / "labels", labels_array, index) for index in grid]
    if labels_array.metadata.fill_value == 0 and any(stored):  # background, which zarr leaves out by default
        return absent
    return absent + stored.count(False)


def assert_crop_file_equals_oracle(h5_path: Path, crop_folder: Path, channels: Sequence[int] | None = None) -> None:
    """Compare our file with the oracle: every voxel, id and attribute of the file contract.

    Parameters
    ----------
    h5_path
        A published ``crop_<id>.h5`` or one of a subset of channels.
    crop_folder
        The crop's zarr folder, ``…/<split>/crop_<id>.zarr``.
    channels
        Channels that the file shall hold, and no others; None means all.

    Raises
    ------
    AssertionError
        Naming the dataset or attribute that differs, and where.
    """
    expected = reference_crop(crop_folder)
    wanted = list(range(len(expected.raw))) if channels is None else sorted(channels)
    with h5py.File(h5_path, "r", locking=False) as file:
        _assert_members(file, wanted)
        for channel in wanted:
            dataset = file[f"raw/ch_{channel:02d}"]
            assert_same_voxels(dataset.name, dataset, expected.raw[channel])
        assert_same_voxels("labels", file["labels"], expected.labels)
        _assert_ids(file, expected)
        for name in ["labels", *(f"raw/ch_{channel:02d}" for channel in wanted)]:
            _assert_place(file[name], expected)
        _assert_file_attributes(file.attrs, crop_folder, wanted, absent_objects(crop_folder, channels))


def assert_same_voxels(name: str, found: h5py.Dataset, expected: npt.NDArray[Any]) -> None:
    """Assert equal shape, dtype and voxels, naming the first voxel that differs and how many do."""
    assert found.shape == expected.shape, f"{name}: shape {found.shape}, expected {expected.shape}"
    assert found.dtype == expected.dtype, f"{name}: dtype {found.dtype}, expected {expected.dtype}"
    values = found[()]
    differs = values != expected
    if differs.any():
        first = tuple(int(n) for n in np.argwhere(differs)[0])
        raise AssertionError(
            f"{name}: {np.count_nonzero(differs)} of {expected.size} voxels differ, the first at {first}: "
            f"{values[first]}, expected {expected[first]}"
        )


def reference_shift(crop_folder: Path) -> tuple[int, ...]:
    """First labelled voxel in raw, (Z, Y, X)."""
    raw = _open(crop_folder, "raw")
    offset = _attribute(_open(crop_folder, "labels"), "offset", 0) - _attribute(raw, "offset", 0)
    return tuple(int(n) for n in np.round(offset / _attribute(raw, "resolution", 1)))


def _open(crop_folder: Path, name: str) -> zarr.Array[Any]:
    return zarr.open_array(LocalStore(crop_folder / name, read_only=True), mode="r")


def _attribute(array: zarr.Array[Any], name: str, default: float) -> npt.NDArray[np.float64]:
    """Attribute (Z, Y, X), or `default` on each axis where it is missing."""
    return np.broadcast_to(np.asarray(array.attrs.get(name, default), np.float64), 3)


def _covering(start: int, stop: int, size: int) -> range:
    """Numbers of the chunks of `size` that meet the half-open span."""
    return range(start // size, -(-stop // size))


def _is_stored(folder: Path, array: zarr.Array[Any], index: tuple[int, ...]) -> bool:
    return (folder / array.metadata.encode_chunk_key(index)).is_file()


def _assert_members(file: h5py.File, channels: list[int]) -> None:
    assert sorted(file) == ["labels", "labels_ids", "raw"], f"top-level objects: {sorted(file)}"
    expected = [f"ch_{channel:02d}" for channel in channels]
    assert sorted(file["raw"]) == sorted(expected), f"raw holds {sorted(file['raw'])}, expected {expected}"
    for dataset in [file["labels"], *file["raw"].values()]:
        assert dataset.compression == "gzip", f"{dataset.name}: compression {dataset.compression}, expected gzip"
        assert dataset.chunks is not None, f"{dataset.name}: not chunked"


def _assert_ids(file: h5py.File, expected: ReferenceCrop) -> None:
    ids = file["labels_ids"][()]
    assert ids.dtype == np.uint64, f"labels_ids: dtype {ids.dtype}, expected uint64"
    count = int(expected.labels.max(initial=0)) + 1
    assert ids.shape == (count,), f"labels_ids: shape {ids.shape}, expected {(count,)}"
    assert ids[0] == 0, f"labels_ids[0] is {ids[0]}, expected 0"
    restored = ids[expected.labels]
    differs = restored != expected.source_labels.astype(np.uint64)
    assert not differs.any(), f"labels_ids[labels] gives {np.count_nonzero(differs)} voxels another id than the source"


def _assert_place(dataset: h5py.Dataset, expected: ReferenceCrop) -> None:
    numbers = {"offset": expected.offset, "resolution": expected.resolution, "voxel_size": expected.resolution}
    for name, value in numbers.items():
        found = dataset.attrs.get(name)
        assert found is not None, f"{dataset.name}: no attribute {name}"
        assert np.issubdtype(np.asarray(found).dtype, np.integer), f"{dataset.name}.{name}: {found!r} are no integers"
        assert tuple(found) == value, f"{dataset.name}.{name}: {tuple(found)}, expected {value}"
    for name, words in (("axis_names", ["z", "y", "x"]), ("units", ["nm", "nm", "nm"])):
        found = [_text(word) for word in dataset.attrs.get(name, ())]
        assert found == words, f"{dataset.name}.{name}: {found}, expected {words}"


def _assert_file_attributes(attributes: Mapping[str, Any], crop_folder: Path, channels: list[int], absent: int) -> None:
    crop, split = int(crop_folder.stem.removeprefix("crop_")), crop_folder.parent.name
    numbers = {"crop_id": crop, "num_channels": len(channels), "missing_chunks": absent}
    for name, value in numbers.items():
        assert name in attributes, f"no attribute {name}"
        assert attributes[name] == value, f"{name}: {attributes[name]}, expected {value}"
    assert _text(attributes.get("split")) == split, f"split: {attributes.get('split')!r}, expected {split!r}"
    assert int(attributes.get("format_version", 0)) >= 1, f"format_version: {attributes.get('format_version')!r}"
    for name in ("prismcache_version", "source", "source_fingerprint"):
        assert _text(attributes.get(name)), f"{name}: {attributes.get(name)!r}, expected a text"
    source = _text(attributes["source"])
    assert f"{split}/{crop_folder.name}" in source, f"source {source!r} does not name {split}/{crop_folder.name}"


def _text(value: Any) -> str:
    """HDF5 text attributes come back as str or as bytes."""
    return value.decode() if isinstance(value, bytes) else "" if value is None else str(value)
