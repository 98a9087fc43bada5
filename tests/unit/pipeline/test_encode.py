"""Blocks to deflated HDF5 chunks."""

from __future__ import annotations

import hashlib
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache_service.pipeline.codec.encode import deflate, encode_row

CHUNK = (3, 4, 5)


def row_of(shape: tuple[int, int, int], dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(shape).integers(1, 200, shape).astype(dtype)


@given(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 17)), st.sampled_from(["u1", "u4"]))
def test_any_stock_zlib_gives_the_voxels_back_with_zeros_beyond_the_border(shape, dtype: str) -> None:
    encode_row(np.full((*CHUNK[:2], 20), 255, dtype), (0, 0, 0), CHUNK)  # what was there before must not show
    row = row_of(shape, dtype)
    chunks = encode_row(row, (6, 8, 10), CHUNK)
    width = -(-shape[2] // 5)
    assert [chunk.origin for chunk in chunks] == [(6, 8, 10 + 5 * i) for i in range(width)]
    padded = np.zeros((*CHUNK[:2], 5 * width), dtype)
    padded[tuple(map(slice, shape))] = row
    for number, chunk in enumerate(chunks):
        found = np.frombuffer(zlib.decompress(chunk.data), dtype).reshape(CHUNK)
        np.testing.assert_array_equal(found, padded[:, :, 5 * number : 5 * number + 5])


def test_a_row_need_not_be_contiguous() -> None:
    whole = row_of((3, 8, 10))
    found = encode_row(whole[:, ::2], (0, 0, 0), CHUNK)
    expected = encode_row(np.ascontiguousarray(whole[:, ::2]), (0, 0, 0), CHUNK)
    assert found == expected


@pytest.mark.parametrize("dtype", ["u1", "u4"])
def test_equal_voxels_give_equal_bytes_that_later_rows_leave_alone(dtype: str) -> None:
    row = row_of((3, 4, 12), dtype)
    first = encode_row(row, (0, 0, 0), CHUNK)
    copies = [bytes(chunk.data) for chunk in first]
    encode_row(row[:, ::-1], (0, 0, 0), CHUNK)
    assert [bytes(chunk.data) for chunk in first] == copies
    assert encode_row(row, (0, 0, 0), CHUNK) == first


@given(st.binary(max_size=600) | st.binary(min_size=1, max_size=12).map(lambda pattern: pattern * 50))
def test_any_stock_zlib_inflates_what_is_deflated(data: bytes) -> None:
    assert zlib.decompress(deflate(np.frombuffer(data, np.uint8))) == data


@pytest.mark.parametrize("size", [1 << 10, 1 << 18, 5 << 20])
def test_noise_is_stored_whatever_came_before(size: int) -> None:
    noise = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    deflate(noise[:100])
    deflated = deflate(noise)
    assert zlib.decompress(deflated) == noise.tobytes()
    assert len(deflated) < 1.01 * size + 100


def test_every_thread_deflates_to_the_same_bytes() -> None:
    """Chunks that begin with a pattern that comes again are those whose bytes depended on the thread's addresses."""
    patterns = np.random.default_rng(0).integers(0, 256, (20_000, 1, 8), np.uint8)
    chunks = [np.tile(pattern, (1, 1, 64)).reshape(8, 8, 8) for pattern in patterns]

    def digest(_: int) -> str:
        together.wait()  # so that each has a stack of its own
        found = hashlib.sha256()
        for chunk in chunks:
            found.update(deflate(chunk))
        return found.hexdigest()

    together = threading.Barrier(3)
    with ThreadPoolExecutor(3) as threads:
        assert len(set(threads.map(digest, range(3)))) == 1
