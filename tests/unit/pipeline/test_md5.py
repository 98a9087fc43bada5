"""MD5 of several buffers at a time, compiled and not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache_service.pipeline.bucket import md5
from prismcache_service.pipeline.bucket.md5 import LANES, load, md5_of_each

# Where the padding begins, fits, and does not: a block has 64 bytes, the last 8 of them for the length.
SIZES = st.one_of(st.integers(0, 200), st.integers(0, 10_000))


@pytest.fixture(params=["compiled", "OpenSSL"], autouse=True)
def kind(request, monkeypatch) -> None:
    if request.param == "OpenSSL":
        monkeypatch.setattr(md5, "_in_lanes", None)
    elif md5._in_lanes is None:
        pytest.skip("md5_lanes.c is not compiled: this machine has no C compiler")


def expected(buffers: list[memoryview]) -> list[str]:
    return [hashlib.md5(buffer).hexdigest() for buffer in buffers]


def noise(*sizes: int) -> list[memoryview]:
    return [memoryview(np.random.default_rng(size).bytes(size)) for size in sizes]


@given(st.lists(SIZES, max_size=3 * LANES))
def test_each_buffer_has_the_digest_that_it_has_alone(sizes: list[int]) -> None:
    buffers = noise(*sizes)
    assert md5_of_each(buffers) == expected(buffers)


@pytest.mark.parametrize("size", range(130))
def test_every_length_of_padding(size: int) -> None:
    buffers = noise(size, size + 1)
    assert md5_of_each(buffers) == expected(buffers)


def test_test_vectors_of_rfc_1321() -> None:
    buffers = [memoryview(text) for text in (b"", b"abc", b"message digest", b"1234567890" * 8)]
    assert md5_of_each(buffers) == [
        "d41d8cd98f00b204e9800998ecf8427e",
        "900150983cd24fb0d6963f7d28e17f72",
        "f96b697d7cb7938d525a2f31aaf161d0",
        "57edf4a22be3c955ac49da2e2107b67a",
    ]


def test_parts_of_a_larger_buffer_wherever_they_begin() -> None:
    whole = memoryview(bytearray(np.random.default_rng(0).bytes(5_000)))
    buffers = [whole[start : 4_000 + start] for start in range(20)]
    assert md5_of_each(buffers) == expected(buffers)


def test_a_long_buffer_beside_many_short_ones() -> None:
    buffers = noise(3_000_000, *range(40))
    assert md5_of_each(buffers) == expected(buffers)


@pytest.mark.parametrize("content", [None, b"no library", b"\x7fELF of another system"])
def test_what_cannot_be_loaded_is_done_without(tmp_path: Path, content: bytes | None) -> None:
    library = tmp_path / "md5_lanes.so"
    if content is not None:
        library.write_bytes(content)
    assert load(library) is None
