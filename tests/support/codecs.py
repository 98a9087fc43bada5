"""How an array's chunks are stored: compressors, chunk shapes, byte order, for zarr v2 and v3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numcodecs
import zarr.codecs

from tests.support.chunking import chunk_key, grid_indices, grid_shape, guess_chunks

CompressorName = Literal["blosc", "zlib", "zstd", "gzip", "lz4", "bz2", "lzma", "none"]
BloscCodec = Literal["blosclz", "lz4", "lz4hc", "zlib", "zstd"]
Shuffle = Literal["noshuffle", "shuffle", "bitshuffle", "autoshuffle"]

_SHUFFLE_NUMBER = {"autoshuffle": -1, "noshuffle": 0, "shuffle": 1, "bitshuffle": 2}


@dataclass(frozen=True)
class Compressor:
    """A chunk compressor; the default is zarr v2's own: Blosc with lz4, level 5, byte shuffle.

    Attributes
    ----------
    name
        Kind; ``none`` stores chunks as they are. zarr v3 itself knows only ``blosc``, ``zstd`` and ``gzip``.
    level
        Compression level; ignored by ``none``, ``lz4`` and ``lzma``.
    cname, shuffle
        For Blosc: the codec inside, and how bytes are reordered before it.
    """

    name: CompressorName = "blosc"
    level: int = 5
    cname: BloscCodec = "lz4"
    shuffle: Shuffle = "shuffle"

    def v2(self) -> Any:
        """The numcodecs codec, or None to store chunks as they are."""
        match self.name:
            case "none":
                return None
            case "blosc":
                return numcodecs.Blosc(self.cname, self.level, _SHUFFLE_NUMBER[self.shuffle])
            case "lz4" | "lzma":
                return numcodecs.get_codec({"id": self.name})
            case _:
                return numcodecs.get_codec({"id": self.name, "level": self.level})

    def v3(self, itemsize: int) -> list[Any]:
        """The zarr v3 bytes-to-bytes codecs, for elements of `itemsize` bytes.

        Raises
        ------
        ValueError
            If the zarr v3 specification lacks this compressor.
        """
        match self.name:
            case "none":
                return []
            case "blosc" if self.shuffle != "autoshuffle":
                return [
                    zarr.codecs.BloscCodec(
                        typesize=itemsize, cname=self.cname, clevel=self.level, shuffle=self.shuffle, blocksize=0
                    )
                ]
            case "zstd":
                return [zarr.codecs.ZstdCodec(level=self.level)]
            case "gzip":
                return [zarr.codecs.GzipCodec(level=self.level)]
        raise ValueError(f"zarr v3 has no compressor {self}")


@dataclass(frozen=True)
class ArrayLayout:
    """How one array lies in the bucket.

    Attributes
    ----------
    dtype
        numpy dtype with its byte order, e.g. ``<u8`` or ``>u8``.
    chunks
        Chunk shape; None takes zarr v2's automatic chunking.
    shards
        zarr v3: shape of the stored objects, a multiple of `chunks`; None stores each chunk by itself.
    zarr_format, separator, order
        2 or 3; between the numbers of a chunk key; C or F order of the elements within a chunk.
    compressor, delta, checksum
        Compressor; zarr v2: a delta filter before it; zarr v3: a CRC-32C after it.
    fill_value
        Value of chunks that are absent; None is zarr v2's "undefined".
    absent
        Grid indices of stored objects that are deleted after writing.
    attributes
        Names of the attributes to write, of ``offset`` and ``resolution``.
    """

    dtype: str = "|u1"
    chunks: tuple[int, ...] | None = None
    shards: tuple[int, ...] | None = None
    zarr_format: Literal[2, 3] = 2
    separator: Literal[".", "/"] = "."
    order: Literal["C", "F"] = "C"
    compressor: Compressor = Compressor()
    delta: bool = False
    checksum: bool = False
    fill_value: int | None = 0
    absent: tuple[tuple[int, ...], ...] = ()
    attributes: tuple[Literal["offset", "resolution"], ...] = ("offset",)

    def chunk_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of a chunk in an array of `shape`."""
        return self.chunks or guess_chunks(shape, self.itemsize)

    def object_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Voxels that one stored object covers: a shard where there are shards, else a chunk."""
        return self.shards or self.chunk_shape(shape)

    def object_grid(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Number of stored objects along each axis, absent ones included."""
        return grid_shape(shape, self.object_shape(shape))

    def object_keys(self, shape: Sequence[int]) -> list[str]:
        """Keys of the objects that remain, below the array."""
        kept = (index for index in grid_indices(shape, self.object_shape(shape)) if index not in self.absent)
        return [chunk_key(index, self.zarr_format, self.separator) for index in kept]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(self.dtype[-1])

    def creation(self, shape: Sequence[int]) -> dict[str, Any]:
        """Arguments of ``zarr.create_array`` for an array of `shape`, without store and attributes."""
        arguments = self._creation_v2() if self.zarr_format == 2 else self._creation_v3(len(shape))
        return arguments | {
            "shape": tuple(shape),
            "dtype": self.dtype,
            "chunks": self.chunk_shape(shape),
            "shards": self.shards,
            "zarr_format": self.zarr_format,
            # zarr 3 leaves out chunks that hold nothing but the fill value; zarr 2, which wrote PRISM, did not.
            "config": {"write_empty_chunks": True},
        }

    def _creation_v2(self) -> dict[str, Any]:
        return {
            "fill_value": self.fill_value,
            "order": self.order,
            "filters": [numcodecs.Delta(self.dtype)] if self.delta else None,
            "compressors": self.compressor.v2(),
            "chunk_key_encoding": {"name": "v2", "separator": self.separator},
        }

    def _creation_v3(self, ndim: int) -> dict[str, Any]:
        endian: Literal["big", "little"] = "big" if self.dtype.startswith(">") else "little"
        transpose = [zarr.codecs.TransposeCodec(order=tuple(reversed(range(ndim))))] if self.order == "F" else []
        checksum = [zarr.codecs.Crc32cCodec()] if self.checksum else []
        return {
            "fill_value": self.fill_value or 0,
            "filters": transpose,
            "serializer": zarr.codecs.BytesCodec(endian=endian),
            "compressors": [*self.compressor.v3(self.itemsize), *checksum],
            "chunk_key_encoding": {"name": "default", "separator": self.separator},
        }
