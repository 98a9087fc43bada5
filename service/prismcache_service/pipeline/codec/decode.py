"""Decoding of untrusted chunks: zarr's codecs from an allow-list, into memory whose size is known beforehand.

zarr names the codecs and their order; the decompressors are numcodecs', python-isal's and Python's own. zarr's own
chain of them would allocate as much as a chunk claims. Here every step checks the decoded size before it allocates, so
that a small object cannot take a large part of the memory; and a chunk that decodes to another size than its metadata
says is an error.

Formats: zarr v2 and v3 core specifications; the zarr v3 ``sharding_indexed`` codec; Blosc chunk header (version 1);
numcodecs' lz4 (a little-endian uint32 length before the block).
"""

from __future__ import annotations

import bz2
import gzip
import itertools
import lzma
import math
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numcodecs
import numcodecs.blosc
import numpy as np
from google_crc32c import value as crc32c_of
from isal import isal_zlib

from prismcache.errors import InvalidSourceError

Shape = tuple[int, ...]
Bytes = bytes | bytearray | memoryview
Array = np.ndarray[Any, np.dtype[Any]]

numcodecs.blosc.use_threads = False  # our own threads decode; Blosc's would multiply them

_ABSENT = 2**64 - 1  # an inner chunk that is not stored, in a shard's index


class DecodeError(ValueError):
    """A chunk whose bytes do not decode to the shape and dtype of its metadata."""


class ScratchPad(threading.local):
    """One reusable buffer for each thread and purpose: touching fresh pages costs more than decoding does."""

    def __init__(self) -> None:
        self._buffers: dict[str, bytearray] = {}

    def take(self, purpose: str, size: int) -> memoryview:
        """Return `size` bytes of any content, valid until this thread takes the same purpose again."""
        held = self._buffers.get(purpose)
        if held is None or len(held) < size:
            held = self._buffers[purpose] = bytearray(size)
        return memoryview(held)[:size]


_scratch = ScratchPad()


@dataclass(frozen=True)
class Sharding:
    """How one object holds a grid of inner chunks: their shape, the index's place, and whether a CRC-32C follows it."""

    inner: Shape
    index_at_end: bool
    index_crc: bool


@dataclass(frozen=True)
class ChunkCodec:
    """How an array's chunks are stored.

    Attributes
    ----------
    compressors
        Names of bytes-to-bytes codecs in the order they were applied when encoding.
    filters
        numcodecs filters (v2) in the order applied when encoding.
    dtype
        dtype of the stored elements, with byte order.
    axes
        Order of the axes as stored: the stored array is ``chunk.transpose(axes)``.
    sharding
        Set where an object is a shard.
    """

    compressors: tuple[str, ...]
    filters: tuple[Any, ...]
    dtype: np.dtype[Any]
    axes: Shape
    sharding: Sharding | None = field(default=None)

    def pieces(self, data: Bytes, shape: Shape) -> Iterator[tuple[Shape, Array | None]]:
        """Decode an object of `shape` into (origin within the object, array) pairs that tile it.

        An array is valid until the next pair is taken; None stands for an inner chunk that a shard does not hold.

        Raises
        ------
        DecodeError
            If the bytes do not decode to exactly that shape.
        """
        if self.sharding is None:
            yield (0,) * len(shape), self.decode(data, shape)
            return
        for origin, inner in _inner_chunks(memoryview(data), shape, self.sharding):
            yield origin, None if inner is None else self.decode(inner, self.sharding.inner)

    def decode(self, data: Bytes, shape: Shape) -> Array:
        """Return one (inner) chunk as an array of `shape`, in memory that this thread's next decode reuses."""
        size = math.prod(shape) * self.dtype.itemsize
        raw: Bytes = data
        for position, name in enumerate(reversed(self.compressors)):
            is_last = position == len(self.compressors) - 1 and not self.filters
            raw = _DECODERS[name](raw, Expected(size, size) if is_last else Expected(0, 2 * size + 65_536))
        try:
            for filter_ in reversed(self.filters):
                raw = np.ascontiguousarray(filter_.decode(raw)).view(np.uint8).data
        except (RuntimeError, ValueError, TypeError) as error:
            raise DecodeError(f"does not decode: {error}") from error
        if len(raw) != size:
            raise DecodeError(f"decodes to {len(raw)} bytes, the metadata says {size} for {shape} of {self.dtype}")
        stored = np.frombuffer(raw, dtype=self.dtype).reshape([shape[axis] for axis in self.axes])
        return stored.transpose(np.argsort(self.axes))


def _inner_chunks(data: memoryview, shape: Shape, sharding: Sharding) -> Iterator[tuple[Shape, memoryview | None]]:
    grid = tuple(n // i for n, i in zip(shape, sharding.inner, strict=True))
    size = 16 * math.prod(grid)
    stored = size + (4 if sharding.index_crc else 0)
    if len(data) < stored:
        raise DecodeError(f"is a shard of {len(data)} bytes, shorter than its index of {stored}")
    index = data[-stored:] if sharding.index_at_end else data[:stored]
    if sharding.index_crc and crc32c_of(bytes(index[:size])) != struct.unpack("<I", index[size:])[0]:
        raise DecodeError("has a shard index that does not match its CRC-32C")
    entries = np.frombuffer(index[:size], dtype="<u8").reshape(*grid, 2)
    for place in itertools.product(*map(range, grid)):
        start, length = (int(n) for n in entries[place])
        origin = tuple(p * i for p, i in zip(place, sharding.inner, strict=True))
        if start == length == _ABSENT:
            yield origin, None
        elif start + length > len(data):
            raise DecodeError(f"has an inner chunk at {start}+{length}, past the shard's {len(data)} bytes")
        else:
            yield origin, data[start : start + length]


@dataclass(frozen=True)
class Expected:
    """Bounds of a decoded length in bytes, both included."""

    least: int
    most: int

    def check(self, length: int) -> None:
        """Raise `DecodeError` for a length out of bounds, before anything of that length is allocated."""
        if not self.least <= length <= self.most:
            raise DecodeError(f"claims to decode to {length} bytes, the metadata says {self.most}")


def _blosc(data: Bytes, expected: Expected) -> Bytes:
    if len(data) < 16:
        raise DecodeError(f"is {len(data)} bytes, too short for a Blosc header")
    declared, stored = struct.unpack_from("<I4xI", data, 4)
    expected.check(declared)
    if stored != len(data):
        raise DecodeError(f"is {len(data)} bytes, its Blosc header says {stored}")
    return _numcodecs_decode(numcodecs.Blosc(), data, declared)


def _zstd(data: Bytes, expected: Expected) -> Bytes:
    """Decode one or several frames, skippable ones among them.

    numcodecs accepts a buffer that is too large, so it is first given an empty one: its error names the size that the
    frames' headers give together. Without a size there, it refuses any buffer that the content does not fill.
    """
    codec, size = numcodecs.Zstd(), expected.most
    try:
        codec.decode(data, out=bytearray())
    except ValueError as error:
        if claimed := re.search(r"expected at least (\d+)", str(error)):
            size = int(claimed[1])
            expected.check(size)
    except RuntimeError:  # no size, or no zstd, which the next step finds
        pass
    return _numcodecs_decode(codec, data, size)


def _lz4(data: Bytes, expected: Expected) -> Bytes:
    if len(data) < 4:
        raise DecodeError(f"is {len(data)} bytes, too short for lz4")
    declared = int.from_bytes(data[:4], "little")
    expected.check(declared)
    return _numcodecs_decode(numcodecs.LZ4(), data, declared)


def _numcodecs_decode(codec: Any, data: Bytes, size: int) -> Bytes:
    out = _scratch.take(codec.codec_id, size)  # by codec: one of a chain never decodes onto its own input
    try:
        codec.decode(data, out=out)
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"does not decode: {error}") from error
    return out


def _by_file(open_: Callable[[BytesIO], Any]) -> Callable[[Bytes, Expected], Bytes]:
    """Return a decoder for a format whose streams may follow one another, which Python's own file readers join."""

    def decode(data: Bytes, expected: Expected) -> Bytes:
        try:
            with open_(BytesIO(data)) as file:
                decoded: bytes = file.read(expected.most + 1)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise DecodeError(f"does not decode: {error}") from error
        expected.check(len(decoded))
        return decoded

    return decode


def _zlib(data: Bytes, expected: Expected) -> Bytes:
    stream = isal_zlib.decompressobj()
    try:
        decoded: bytes = stream.decompress(data, expected.most + 1)
    except isal_zlib.error as error:  # type: ignore[misc]  # the stub says instance
        raise DecodeError(f"does not decode: {error}") from error
    expected.check(len(decoded))
    if not stream.eof or stream.unused_data:
        raise DecodeError("ends early" if not stream.eof else "has bytes after its end")
    return decoded


def _crc32c(data: Bytes, expected: Expected) -> Bytes:  # noqa: ARG001 - the signature of all decoders
    body, stored = memoryview(data)[:-4], bytes(memoryview(data)[-4:])
    if len(stored) < 4 or crc32c_of(bytes(body)) != struct.unpack("<I", stored)[0]:
        raise DecodeError("does not match its CRC-32C")
    return body


_DECODERS: Mapping[str, Callable[[Bytes, Expected], Bytes]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "gzip": _by_file(lambda data: gzip.GzipFile(fileobj=data)),
    "zlib": _zlib,
    "bz2": _by_file(bz2.BZ2File),
    "lzma": _by_file(lzma.LZMAFile),
    "crc32c": _crc32c,
}
_FILTERS = frozenset({"shuffle", "delta"})


def codec_of(where: str, array: Any, dtype: np.dtype[Any]) -> ChunkCodec:
    """Return the codec of a `zarr.Array`; `where` begins every message.

    Raises
    ------
    InvalidSourceError
        If it uses a codec outside the allow-list.
    """
    ndim = len(array.shape)
    if array.metadata.zarr_format == 2:
        filters = tuple(array.filters or ())
        _refuse_unknown(where, [f.codec_id for f in filters], _FILTERS)
        compressors = tuple(c.codec_id for c in array.compressors or ())
        _refuse_unknown(where, compressors, frozenset(_DECODERS))
        axes = tuple(range(ndim)) if array.order == "C" else tuple(reversed(range(ndim)))
        return ChunkCodec(compressors, filters, dtype, axes)
    return _codec_v3(where, array.metadata.codecs, ndim, dtype)


def _codec_v3(where: str, codecs: tuple[Any, ...], ndim: int, dtype: np.dtype[Any]) -> ChunkCodec:
    first = codecs[0]
    if type(first).__name__ != "ShardingCodec":
        return _chain_v3(where, codecs, ndim, dtype, None)
    _refuse_unknown(where, [_name_v3(c) for c in codecs[1:]], frozenset())
    index = [_name_v3(c) for c in first.index_codecs]
    _refuse_unknown(where, index, frozenset({"bytes", "crc32c"}))
    inner = tuple(int(n) for n in first.chunk_shape)
    location = first.to_dict()["configuration"]["index_location"]  # the attribute is an enum in some releases of zarr
    sharding = Sharding(inner, location == "end", "crc32c" in index)
    return _chain_v3(where, first.codecs, ndim, dtype, sharding)


def _chain_v3(
    where: str, codecs: tuple[Any, ...], ndim: int, dtype: np.dtype[Any], sharding: Sharding | None
) -> ChunkCodec:
    axes = tuple(range(ndim))
    compressors: list[str] = []
    for codec in codecs:
        name = _name_v3(codec)
        settings = codec.to_dict().get("configuration", {})
        if name == "transpose":
            axes = tuple(axes[i] for i in settings["order"])
        elif name == "bytes":
            dtype = dtype.newbyteorder(">" if settings.get("endian") == "big" else "<")
        else:
            compressors.append(name)
    _refuse_unknown(where, compressors, frozenset(_DECODERS) - {"zlib", "lz4", "bz2", "lzma"})
    return ChunkCodec(tuple(compressors), (), dtype, axes, sharding)


def _name_v3(codec: Any) -> str:
    return str(codec.to_dict()["name"])


def _refuse_unknown(where: str, names: Any, allowed: frozenset[str]) -> None:
    for name in names:
        if name not in allowed:
            listed = ", ".join(sorted(allowed)) or "none here"
            raise InvalidSourceError(f"{where} uses the codec {name!r}, which is not supported ({listed})")
