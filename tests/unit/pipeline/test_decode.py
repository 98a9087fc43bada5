"""Decoding of untrusted chunks: every allowed codec comes back, every lie about sizes is refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import math
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from google_crc32c import value as crc32c_of
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from prismcache.errors import InvalidSourceError
from prismcache_service.pipeline.codec.decode import ChunkCodec, DecodeError, Sharding
from prismcache_service.pipeline.plan.metadata import ArraySource, parse_array
from tests.support.chunking import grid_indices
from tests.support.codecs import ArrayLayout, Compressor
from tests.support.crops import layout_variants

WHERE = "instance/crop_0.zarr: array 'labels'"
SIZE = 1000
VOXELS = (np.arange(SIZE) % 7).astype(np.uint8)

ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "blosc": lambda data: bytes(numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE).encode(data)),
    "zstd": lambda data: bytes(numcodecs.Zstd(3).encode(data)),
    "lz4": lambda data: bytes(numcodecs.LZ4().encode(data)),
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bz2": bz2.compress,
    "lzma": lzma.compress,
    "crc32c": lambda data: data + struct.pack("<I", crc32c_of(data)),
}
every_codec = pytest.mark.parametrize("name", ENCODE)


def codec(*compressors: str, filters: tuple[Any, ...] = (), sharding: Sharding | None = None) -> ChunkCodec:
    return ChunkCodec(compressors, filters, np.dtype("u1"), (0,), sharding)


def decoded(name: str, data: bytes, size: int = SIZE) -> bytes:
    return codec(name).decode(data, (size,)).tobytes()


def stored_array(layout: ArrayLayout, voxels: np.ndarray) -> tuple[ArraySource, dict[str, bytes]]:
    """`voxels` as zarr stores them: the array as we read it, and its objects by key."""
    contents: dict[str, Any] = {}
    array = zarr.create_array(MemoryStore(contents), **layout.creation(voxels.shape))
    array[...] = voxels
    documents = {key: value.to_bytes() for key, value in contents.items()}
    metadata = {key: documents.pop(key) for key in ("zarr.json", ".zarray", ".zattrs") if key in documents}
    return parse_array(WHERE, "labels", voxels.ndim, metadata), documents


def read_back(source: ArraySource, documents: dict[str, bytes]) -> np.ndarray:
    """All voxels of the array through our codec alone."""
    found = np.full([-(-n // c) * c for n, c in zip(source.shape, source.chunks, strict=True)], source.fill_value, "u8")
    for index in grid_indices(source.shape, source.chunks):
        data = documents.get(source.key(index).removeprefix("labels/"))
        if data is None:
            continue
        for origin, piece in source.codec.pieces(data, source.chunks):
            if piece is not None:
                start = [i * c + o for i, c, o in zip(index, source.chunks, origin, strict=True)]
                found[tuple(slice(a, a + n) for a, n in zip(start, piece.shape, strict=True))] = piece
    return found[tuple(map(slice, source.shape))]


LAYOUTS = {name: spec.labels for name, spec in layout_variants().items()}
LAYOUTS |= {
    "v2-lzma": ArrayLayout("<u8", chunks=(7, 25, 30), compressor=Compressor("lzma")),
    "v2-delta-fortran-big": ArrayLayout(">u4", chunks=(7, 25, 30), delta=True, order="F"),
    "v3-zstd-crc32c-fortran-big": ArrayLayout(
        ">u4", chunks=(7, 25, 30), zarr_format=3, order="F", compressor=Compressor("zstd"), checksum=True
    ),
    "v3-sharded-crc32c": ArrayLayout(
        ">u2", chunks=(2, 5, 6), shards=(4, 10, 12), zarr_format=3, checksum=True, compressor=Compressor("gzip", 1)
    ),
    "v3-sharded-fortran": ArrayLayout(
        "<u8", chunks=(2, 5, 6), shards=(4, 10, 12), zarr_format=3, order="F", compressor=Compressor("zstd", 1)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_reads_as_zarr_wrote_it(layout: ArrayLayout) -> None:
    most = min(np.iinfo(layout.dtype).max, 2**50)
    voxels = np.random.default_rng(1).integers(0, most, (9, 31, 33)).astype(layout.dtype)
    source, documents = stored_array(layout, voxels)
    np.testing.assert_array_equal(read_back(source, documents), voxels)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_shuffle_filter_is_undone(size: int) -> None:
    stored = numcodecs.Zlib().encode(numcodecs.Shuffle(size).encode(VOXELS))
    found = codec("zlib", filters=(numcodecs.Shuffle(size),)).decode(stored, (SIZE,))
    np.testing.assert_array_equal(found, VOXELS)


def test_filters_and_compressors_are_undone_from_last_to_first() -> None:
    filters = (numcodecs.Delta("u1"), numcodecs.Shuffle(4))
    stored = filters[1].encode(filters[0].encode(VOXELS)).tobytes()
    stored = ENCODE["crc32c"](ENCODE["zstd"](ENCODE["gzip"](stored)))
    found = codec("gzip", "zstd", "crc32c", filters=filters).decode(stored, (SIZE,))
    np.testing.assert_array_equal(found, VOXELS)


@every_codec
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_each_codec_takes_bytes_of_any_kind(name: str, kind: type) -> None:
    assert decoded(name, kind(ENCODE[name](VOXELS.tobytes()))) == VOXELS.tobytes()


@every_codec
@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1, 2 * SIZE, 100 * SIZE])
def test_a_chunk_of_another_size_is_refused(name: str, size: int) -> None:
    with pytest.raises(DecodeError, match=rf"{SIZE}|does not decode"):
        decoded(name, ENCODE[name](bytes(size)))


@every_codec
@pytest.mark.parametrize("kept", [0, 1, 3, 4, 15, 16, 20, -8, -4, -1])
def test_a_chunk_that_ends_early_is_refused(name: str, kept: int) -> None:
    data = ENCODE[name](np.random.default_rng(0).bytes(SIZE))
    with pytest.raises(DecodeError):
        decoded(name, data[:kept])


JOINED = ("gzip", "bz2", "lzma", "zstd")  # a stream of theirs may be followed by another


@pytest.mark.parametrize("name", sorted(ENCODE.keys() - {"bz2", "lzma"}))  # Python's readers of these skip what follows
@pytest.mark.parametrize("tail", [b"junk", b"\1" * 4096])
def test_bytes_after_the_chunks_end_are_refused(name: str, tail: bytes) -> None:
    with pytest.raises(DecodeError):
        decoded(name, ENCODE[name](VOXELS.tobytes()) + tail)


@every_codec
def test_streams_of_more_bytes_than_the_chunk_are_refused(name: str) -> None:
    with pytest.raises(DecodeError):
        decoded(name, ENCODE[name](bytes(SIZE)) + ENCODE[name](bytes(SIZE // 2)))


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("cuts", [(400,), (1, 2, 999)])
def test_streams_that_follow_one_another_are_one_chunk(name: str, cuts: tuple[int, ...]) -> None:
    parts = zip((0, *cuts), (*cuts, SIZE), strict=True)
    data = b"".join(ENCODE[name](VOXELS[start:stop].tobytes()) for start, stop in parts)
    assert decoded(name, data) == VOXELS.tobytes()


@pytest.mark.parametrize("name", sorted(ENCODE.keys() - set(JOINED)))
def test_other_formats_have_one_stream(name: str) -> None:
    with pytest.raises(DecodeError):
        decoded(name, ENCODE[name](bytes(SIZE // 2)) * 2)


def test_a_zstd_frame_to_skip_may_stand_anywhere() -> None:
    skipped = struct.pack("<II", 0x184D2A50, 5) + b"hello"
    halves = [ENCODE["zstd"](half.tobytes()) for half in np.split(VOXELS, 2)]
    assert decoded("zstd", skipped + skipped.join(halves) + skipped) == VOXELS.tobytes()


def test_frames_with_and_without_a_content_size_may_be_mixed() -> None:
    half = SIZE // 2
    first, second = VOXELS[:half].tobytes(), VOXELS[half:].tobytes()
    assert decoded("zstd", zstd_frame((0, half, first)) + ENCODE["zstd"](second)) == VOXELS.tobytes()


def test_gzip_may_be_padded_with_zeros() -> None:
    assert decoded("gzip", gzip.compress(VOXELS.tobytes()) + bytes(100)) == VOXELS.tobytes()


@every_codec
@given(data=st.data())
def test_damage_gives_an_error_or_voxels_of_the_right_shape_and_nothing_else(name: str, data: st.DataObject) -> None:
    stored = bytearray(ENCODE[name](VOXELS.tobytes()))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        assert len(decoded(name, bytes(stored))) == SIZE


@every_codec
@given(stored=st.binary(max_size=200))
def test_noise_gives_an_error_or_voxels_of_the_right_shape_and_nothing_else(name: str, stored: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert len(decoded(name, stored, 8)) == 8


def zstd_frame(*blocks: tuple[int, int, bytes], content_size: int | None = None) -> bytes:
    """A zstd frame (RFC 8878) of (type, size, body) blocks: type 0 is raw, 1 repeats one byte."""
    described = b"\x00\x58" if content_size is None else b"\xc0\x58" + struct.pack("<Q", content_size)
    parts = [
        (int(number == len(blocks) - 1) | kind << 1 | size << 3).to_bytes(3, "little") + body
        for number, (kind, size, body) in enumerate(blocks)
    ]
    return b"\x28\xb5\x2f\xfd" + described + b"".join(parts)


@pytest.mark.parametrize("content_size", [None, SIZE])
def test_a_zstd_frame_may_leave_out_its_content_size(content_size: int | None) -> None:
    assert decoded("zstd", zstd_frame((0, SIZE, VOXELS.tobytes()), content_size=content_size)) == VOXELS.tobytes()


@pytest.mark.parametrize("size", [0, 10, SIZE - 1, SIZE + 1, 100_000])
def test_a_zstd_frame_without_content_size_must_still_give_exactly_the_voxels(size: int) -> None:
    decoded("zstd", ENCODE["zstd"](VOXELS.tobytes()))  # leaves its voxels in the buffer that is used again
    with pytest.raises(DecodeError):
        decoded("zstd", zstd_frame((1, size, b"x")))


@pytest.mark.parametrize("size", [1, 255, 256, 300, 65_791, 65_792, 70_000, 2**21])
@pytest.mark.parametrize("level", [1, 19])
def test_every_width_of_a_zstd_content_size_is_read(size: int, level: int) -> None:
    voxels = np.random.default_rng(0).bytes(size)
    assert decoded("zstd", numcodecs.Zstd(level).encode(voxels), size) == voxels


def _blosc(declared: int) -> bytes:
    data = bytearray(ENCODE["blosc"](VOXELS.tobytes()))
    data[4:8] = struct.pack("<I", declared)
    return bytes(data)


def _lz4(declared: int) -> bytes:
    return struct.pack("<I", declared) + ENCODE["lz4"](VOXELS.tobytes())[4:]


HEADER_LIES = {
    "blosc": _blosc,
    "lz4": _lz4,
    "zstd": lambda declared: zstd_frame((0, SIZE, VOXELS.tobytes()), content_size=declared),
}


@pytest.mark.parametrize("name", HEADER_LIES)
@pytest.mark.parametrize("declared", [1, SIZE - 1, SIZE + 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_header_that_claims_another_size_is_refused_by_that_number(name: str, declared: int) -> None:
    with pytest.raises(DecodeError, match=f"claims to decode to {declared} bytes, the metadata says {SIZE}"):
        decoded(name, HEADER_LIES[name](declared))


BOMBS: dict[str, bytes] = {
    "blosc": _blosc(2**31 - 1),
    "lz4": _lz4(2**31 - 1),
    "zstd": zstd_frame(*[(1, 100_000, b"x")] * 20_000),  # 80 kB that decode to 2 GB, with no size in the header
    "gzip": gzip.compress(bytes(200_000_000), 1),
    "zlib": zlib.compress(bytes(200_000_000), 1),
    "bz2": bz2.compress(bytes(200_000_000), 9),
    "lzma": lzma.compress(bytes(200_000_000), preset=0),
}

_BOMB_CHILD = """
import resource, sys
import numpy as np
from prismcache_service.pipeline.codec.decode import ChunkCodec, DecodeError
names, bomb, least = sys.argv[1].split(","), sys.stdin.buffer.read(), 1000
codec = ChunkCodec(tuple(names), (), np.dtype("u1"), (0,))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    codec.decode(bomb, (least,))
except DecodeError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("names", [*BOMBS, "gzip,crc32c"])
def test_a_bomb_is_refused_without_large_memory(names: str) -> None:
    name, _, outer = names.partition(",")
    bomb = ENCODE[outer](BOMBS[name]) if outer else BOMBS[name]
    command = [sys.executable, "-c", _BOMB_CHILD, names]
    done = subprocess.run(command, input=bomb, capture_output=True, check=True, timeout=60)
    assert int(done.stdout) < 20_000, "KiB of resident memory that the refusal cost"


def test_a_bomb_within_a_chain_is_bounded_too() -> None:
    """Where the inner size is unknown, twice the chunk and a bit is the most that is decoded."""
    with pytest.raises(DecodeError, match="claims to decode to"):
        codec("zstd", "gzip").decode(BOMBS["gzip"], (SIZE,))


def test_a_wrong_checksum_is_refused() -> None:
    stored = bytearray(ENCODE["crc32c"](VOXELS.tobytes()))
    stored[17] ^= 1
    with pytest.raises(DecodeError, match="CRC-32C"):
        decoded("crc32c", bytes(stored))


@pytest.mark.parametrize(
    "filter_",
    [numcodecs.Shuffle(3), numcodecs.Delta("u8", "u1"), numcodecs.Delta("u1", "u8"), numcodecs.Delta("M8[s]")],
    ids=str,
)
def test_a_filter_that_gives_another_size_or_type_is_refused(filter_: Any) -> None:
    with pytest.raises(DecodeError):
        codec(filters=(filter_,)).decode(VOXELS.tobytes(), (SIZE,))


def test_what_was_decoded_into_the_reused_buffer_before_never_shows() -> None:
    for name, encode in ENCODE.items():
        decoded(name, encode(b"\xff" * SIZE))
        assert decoded(name, encode(bytes(SIZE))) == bytes(SIZE)
        assert decoded(name, encode(bytes(10)), 10) == bytes(10)


# Shards


def shard(
    inner: list[bytes | None],
    *,
    index_at_end: bool = True,
    crc: bool = True,
    entries: dict[int, tuple[int, int]] | None = None,
) -> bytes:
    """A shard of a row of inner chunks; `entries` replaces (offset, length) pairs of its index by number."""
    count = len(inner)
    index_size = 16 * count + 4 * crc
    body, index = b"", b""
    for number, data in enumerate(inner):
        start = len(body) + (0 if index_at_end else index_size)
        place = (2**64 - 1, 2**64 - 1) if data is None else (start, len(data))
        index += struct.pack("<QQ", *(entries or {}).get(number, place))
        body += data or b""
    index += struct.pack("<I", crc32c_of(index)) if crc else b""
    return body + index if index_at_end else index + body


def shard_codec(*, index_at_end: bool = True, crc: bool = True) -> ChunkCodec:
    return codec("zstd", sharding=Sharding((250,), index_at_end, crc))


QUARTERS = [ENCODE["zstd"](VOXELS[i : i + 250].tobytes()) for i in range(0, SIZE, 250)]


@pytest.mark.parametrize("crc", [True, False])
@pytest.mark.parametrize("index_at_end", [True, False])
def test_a_shard_gives_its_inner_chunks_and_says_which_are_absent(index_at_end: bool, crc: bool) -> None:
    data = shard([QUARTERS[0], None, QUARTERS[2], None], index_at_end=index_at_end, crc=crc)
    found = {}
    for origin, piece in shard_codec(index_at_end=index_at_end, crc=crc).pieces(data, (SIZE,)):
        found[origin] = None if piece is None else piece.tobytes()
    assert found == {
        (0,): VOXELS[:250].tobytes(),
        (250,): None,
        (500,): VOXELS[500:750].tobytes(),
        (750,): None,
    }


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "shorter than its index of 68"),
        (shard(QUARTERS)[-67:], "shorter than its index of 68"),
        (shard(QUARTERS)[:-1] + b"\0", "index that does not match its CRC-32C"),
        (shard(QUARTERS, entries={1: (0, 10**6)}), r"0\+1000000, past the shard's"),
        (shard(QUARTERS, entries={1: (10**6, 1)}), r"1000000\+1, past the shard's"),
        (shard(QUARTERS, entries={1: (2**64 - 1, 5)}), "past the shard's"),
        (shard(QUARTERS, entries={1: (2**64 - 2, 2**64 - 1)}), "past the shard's"),
        (shard(QUARTERS, entries={1: (5, 2**64 - 5)}), "past the shard's"),
        (shard(QUARTERS, entries={1: (0, 0)}), "does not decode"),
        (shard(QUARTERS, entries={1: (1, 20)}), "does not decode"),
        (shard([b"\0" * 9, *QUARTERS[1:]]), "does not decode"),
        (shard([ENCODE["zstd"](bytes(251)), *QUARTERS[1:]]), "claims to decode to 251 bytes"),
    ],
)
def test_a_shard_that_lies_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        list(shard_codec().pieces(data, (SIZE,)))


@given(st.data())
def test_a_damaged_shard_gives_an_error_or_inner_chunks_of_the_right_shape(data: st.DataObject) -> None:
    stored = bytearray(shard(QUARTERS, crc=False))
    for _ in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    try:
        shapes = [None if piece is None else piece.shape for _, piece in shard_codec(crc=False).pieces(stored, (SIZE,))]
    except DecodeError:
        return
    assert all(shape in {None, (250,)} for shape in shapes)


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("index_codecs", [("bytes",), ("bytes", "crc32c")])
def test_shards_are_read_as_zarr_writes_them_with_empty_inner_chunks_left_out(location, index_codecs) -> None:
    contents: dict[str, Any] = {}
    make = {"bytes": zarr.codecs.BytesCodec, "crc32c": zarr.codecs.Crc32cCodec}
    voxels = np.zeros((8, 12, 12), "<u8")
    voxels[:4, :6, 6:] = 2**40
    array = zarr.create(
        voxels.shape,
        store=MemoryStore(contents),
        zarr_format=3,
        dtype="<u8",
        chunks=(8, 12, 12),
        fill_value=0,
        codecs=[
            zarr.codecs.ShardingCodec(
                chunk_shape=(4, 6, 6),
                codecs=[zarr.codecs.BytesCodec(), zarr.codecs.ZstdCodec()],
                index_codecs=[make[name]() for name in index_codecs],
                index_location=location,
            )
        ],
    )
    array[...] = voxels
    documents = {key: value.to_bytes() for key, value in contents.items()}
    source = parse_array(WHERE, "labels", 3, {"zarr.json": documents["zarr.json"]})
    pieces = [(origin, piece is None) for origin, piece in source.codec.pieces(documents["c/0/0/0"], source.chunks)]
    assert [origin for origin, is_absent in pieces if not is_absent] == [(0, 0, 6)]
    assert len(pieces) == 8
    np.testing.assert_array_equal(read_back(source, documents), voxels)


# Which codecs are allowed


def v2_document(**changes: Any) -> dict[str, bytes]:
    document = {
        "zarr_format": 2, "shape": [4, 4, 4], "chunks": [4, 4, 4], "dtype": "<u8", "fill_value": 0, "order": "C",
        "compressor": None, "filters": None, "dimension_separator": ".",
    }  # fmt: skip
    return {".zarray": json.dumps(document | changes).encode()}


def v3_document(codecs: list[Any]) -> dict[str, bytes]:
    document = {
        "zarr_format": 3, "node_type": "array", "shape": [4, 4, 4], "data_type": "uint64", "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4, 4]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs, "attributes": {},
    }  # fmt: skip
    return {"zarr.json": json.dumps(document).encode()}


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def sharded(codecs: list[Any], index_codecs: list[Any]) -> dict[str, Any]:
    configuration = {
        "chunk_shape": [2, 2, 2], "codecs": codecs, "index_codecs": index_codecs, "index_location": "end",
    }  # fmt: skip
    return {"name": "sharding_indexed", "configuration": configuration}


def refused(documents: dict[str, bytes], named: str) -> str:
    with pytest.raises(InvalidSourceError, match=named) as caught:
        parse_array(WHERE, "labels", 3, documents)
    assert str(caught.value).startswith(WHERE)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"compressor": {"id": "pickle", "protocol": 5}}, "'pickle'"),
        ({"compressor": {"id": "snappy"}}, "snappy"),
        ({"compressor": {"id": "crc32"}}, "'crc32'"),
        ({"filters": [{"id": "fixedscaleoffset", "offset": 0, "scale": 1, "dtype": "<u8"}]}, "'fixedscaleoffset'"),
        ({"filters": [{"id": "json2"}]}, "'json2'"),
        ({"filters": [{"id": "packbits"}]}, "'packbits'"),
        ({"filters": [{"id": "zlib", "level": 1}]}, "'zlib'"),
        ({"compressor": {"id": "shuffle", "elementsize": 8}}, "'shuffle'"),
    ],
)
def test_a_v2_codec_outside_the_list_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    refused(v2_document(**changes), named)


@pytest.mark.parametrize(
    ("codecs", "named"),
    [
        ([LITTLE, {"name": "numcodecs.lzma", "configuration": {}}], "lzma"),
        ([LITTLE, {"name": "zfp", "configuration": {}}], "zfp"),
        ([sharded([sharded([LITTLE], [LITTLE])], [LITTLE])], "'sharding_indexed'"),
        (
            [sharded([LITTLE], [LITTLE, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}])],
            "(?i)zstd",
        ),  # zarr may say so itself
        ([sharded([LITTLE], [LITTLE]), {"name": "crc32c"}], "'crc32c'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec disables partial reads")
def test_a_v3_codec_outside_the_list_is_refused_by_name(codecs: list[Any], named: str) -> None:
    refused(v3_document(codecs), named)


def test_a_refusal_lists_what_is_supported() -> None:
    said = refused(v2_document(compressor={"id": "crc32"}), "crc32")
    for name in ENCODE:
        assert name in said


def test_one_buffer_serves_a_thread_whatever_the_order_of_sizes() -> None:
    for size in (10, 5000, 10, 3):
        voxels = np.random.default_rng(size).bytes(size)
        assert decoded("blosc", ENCODE["blosc"](voxels), size) == voxels
    assert math.prod(codec("blosc").decode(ENCODE["blosc"](bytes(24)), (24,)).shape) == 24
