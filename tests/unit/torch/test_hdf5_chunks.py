"""Boxes read straight from a file's chunks are those that h5py reads."""

from __future__ import annotations

import os
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache import CropCorruptError
from prismcache.torch.hdf5_chunks import CropReader, chunk_table, pieces

SHAPE = (21, 70, 50)
STORAGE = {
    "gzip": {"chunks": (4, 16, 16), "compression": "gzip"},
    "shuffle": {"chunks": (4, 16, 16), "compression": "gzip", "shuffle": True},
    "plain": {},
    "lzf": {"chunks": True, "compression": "lzf"},
}


@pytest.fixture(scope="module")
def voxels() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, 9, SHAPE, np.uint32)
    return {"raw/ch_00": random.integers(0, 256, SHAPE, np.uint8), "labels": labels}


def write(path: Path, voxels: dict[str, np.ndarray], storage: str) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in voxels.items():
            file.create_dataset(name, data=values, **STORAGE[storage])
    return path


@given(st.tuples(*[st.tuples(st.integers(0, 20), st.integers(1, 20))] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_pieces_are_the_box(ranges, chunk) -> None:
    whole = np.arange(40**3).reshape(40, 40, 40)
    box = tuple(slice(start, start + size) for start, size in ranges)
    found = np.full([size for _, size in ranges], -1)
    for piece in pieces(box, chunk):
        first = [number * size for number, size in zip(piece.index, chunk, strict=True)]
        part = whole[tuple(slice(a, a + size) for a, size in zip(first, chunk, strict=True))]
        found[piece.target] = part[piece.inside]
    assert np.array_equal(found, whole[box])


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_storage_reads_as_through_h5py(storage, threads, voxels, tmp_path) -> None:
    reader = CropReader(write(tmp_path / "crop_0.h5", voxels, storage), voxels, threads)
    ids = np.arange(9, dtype=np.uint64) * 10**15
    for box in ((slice(0, 21), slice(0, 70), slice(0, 50)), (slice(3, 9), slice(15, 33), slice(40, 50))):
        for name, values in voxels.items():
            for dtype in (values.dtype, np.float32, np.int64):
                out = np.empty(values[box].shape, dtype)
                reader.read(name, box, out)
                assert np.array_equal(out, values[box])
        out = np.empty(voxels["labels"][box].shape, np.uint64)
        reader.read("labels", box, out, ids)
        assert np.array_equal(out, ids[voxels["labels"][box]])
    reader.close()


def test_only_plain_gzip_chunks_are_read_directly(voxels, tmp_path) -> None:
    for storage in STORAGE:
        with h5py.File(write(tmp_path / f"{storage}.h5", voxels, storage)) as file:
            assert (chunk_table(file["labels"]) is None) == (storage != "gzip")


def test_a_chunk_that_was_never_written_is_zero(tmp_path) -> None:
    with h5py.File(tmp_path / "crop_0.h5", "w") as file:
        file.create_dataset("raw/ch_00", SHAPE, np.uint8, **STORAGE["gzip"])[0:4] = 7
        file.create_dataset("labels", SHAPE, np.uint32, **STORAGE["gzip"])
    reader = CropReader(tmp_path / "crop_0.h5", ["raw/ch_00"])
    out = np.full((8, 70, 50), 9, np.uint8)
    reader.read("raw/ch_00", (slice(0, 8), slice(0, 70), slice(0, 50)), out)
    assert (out[:4].min(), out[:4].max(), out[4:].max()) == (7, 7, 0)


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_chunk_is_an_error_that_names_it(damage, voxels, tmp_path) -> None:
    path = write(tmp_path / "crop_0.h5", voxels, "gzip")
    reader = CropReader(path, ["labels"])
    table = reader._tables["labels"]
    offset, size = int(table.offsets[1, 0, 0]), int(table.sizes[1, 0, 0])
    with path.open("r+b") as file:
        if damage == "cut":
            file.truncate(offset + size // 2)
        else:
            file.seek(offset + size // 2)
            byte = file.read(1)[0]
            file.seek(offset + size // 2)
            file.write(bytes([byte ^ 0xFF]))
    box, out = (slice(4, 8), slice(0, 16), slice(0, 16)), np.empty((4, 16, 16), np.uint32)
    with pytest.raises(CropCorruptError, match=r"crop_0.h5: chunk \(1, 0, 0\) of labels"):
        reader.read("labels", box, out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("storage", ["gzip", "shuffle"])
def test_a_reader_goes_on_after_a_fork(storage, voxels, tmp_path) -> None:
    reader = CropReader(write(tmp_path / "crop_0.h5", voxels, storage), voxels, threads=2)
    whole = (slice(0, 21), slice(0, 70), slice(0, 50))

    def total() -> int:
        out = np.empty(SHAPE, np.uint8)
        reader.read("raw/ch_00", whole, out)
        return int(out.sum(dtype=np.int64))

    expected = total()
    context = get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(total()))
    child.start()
    assert queue.get() == expected
    child.join()
    assert child.exitcode == 0
    assert total() == expected
