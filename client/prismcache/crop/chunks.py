"""Where a dataset's deflated chunks lie in a cached file, so that they can be read, or passed on, without HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py
    import numpy as np


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a cached file: `offset` of the first and `size`, both in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class ChunkTable:
    """Where the chunks of a dataset lie. Each is a zlib stream (RFC 1950) of the whole chunk, in C order.

    Attributes
    ----------
    shape, chunk
        Shape of the dataset and of a chunk, (Z, Y, X) in voxels.
    dtype
        Of the voxels.
    offsets, sizes
        (z, y, x) int64, first byte in the file and length of each chunk; length 0 is a chunk that was never written.
    """

    shape: tuple[int, int, int]
    chunk: tuple[int, int, int]
    dtype: np.dtype[Any]
    offsets: np.ndarray[Any, np.dtype[np.int64]]
    sizes: np.ndarray[Any, np.dtype[np.int64]]

    def span(self, place: Sequence[int]) -> Span | None:
        """Return where the chunk at (z, y, x) of the grid lies; None if it was never written, or is not in the grid."""
        grid = self.sizes.shape
        if len(place) != 3 or any(number >= extent for number, extent in zip(place, grid, strict=True)):
            return None
        size = int(self.sizes[tuple(place)])
        return Span(int(self.offsets[tuple(place)]), size) if size else None

    def pairs(self) -> bytes:
        """Return (chunks, 2) uint64, little-endian: offset and size of each chunk, in C order of the grid."""
        import numpy as np

        return np.stack([self.offsets, self.sizes], axis=-1).astype("<u8").tobytes()


def chunk_table(dataset: h5py.Dataset) -> ChunkTable | None:
    """Return where the chunks of a dataset lie, or None if it is not (Z, Y, X) in gzip chunks and nothing else."""
    import numpy as np

    plain = dataset.shuffle or dataset.fletcher32 or dataset.scaleoffset is not None
    if dataset.chunks is None or dataset.ndim != 3 or dataset.compression != "gzip" or plain or dataset.fillvalue != 0:
        return None
    chunk = dataset.chunks
    grid = tuple(-(-extent // size) for extent, size in zip(dataset.shape, chunk, strict=True))
    offsets, sizes = np.zeros(grid, np.int64), np.zeros(grid, np.int64)
    masks: set[int] = set()

    def note(info: Any) -> None:
        index = tuple(first // size for first, size in zip(info.chunk_offset, chunk, strict=True))
        offsets[index], sizes[index] = info.byte_offset, info.size
        masks.add(info.filter_mask)

    dataset.id.chunk_iter(note)
    return ChunkTable(dataset.shape, chunk, dataset.dtype, offsets, sizes) if masks <= {0} else None
