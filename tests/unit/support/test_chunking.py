from __future__ import annotations

import math

import pytest

from tests.support.chunking import chunk_key, grid_shape, guess_chunks


@pytest.mark.parametrize(
    ("shape", "itemsize", "chunks", "objects"),
    [
        ((18, 300, 650, 650), 1, (3, 38, 163, 163), 768),
        ((200, 500, 500), 8, (25, 63, 125), 256),
    ],
)
def test_automatic_chunks_are_those_of_the_published_crop(
    shape: tuple[int, ...], itemsize: int, chunks: tuple[int, ...], objects: int
) -> None:
    assert guess_chunks(shape, itemsize) == chunks
    assert math.prod(grid_shape(shape, chunks)) == objects


@pytest.mark.parametrize(
    ("zarr_format", "separator", "key"),
    [(2, ".", "1.0.2"), (2, "/", "1/0/2"), (3, "/", "c/1/0/2"), (3, ".", "c.1.0.2")],
)
def test_chunk_keys(zarr_format: int, separator: str, key: str) -> None:
    assert chunk_key((1, 0, 2), zarr_format, separator) == key
