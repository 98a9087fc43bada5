"""Chunks of the zarr face that no file holds: made of chunks of the cached file when they are read. Pure; needs numpy.

Viewers want voxels in other pieces than a training program does: Neuroglancer mixes only channels that lie in one
chunk, and shows only ids that lie in the array; a page that shows one slice wants that slice and no more.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prismcache.crop.chunks import ChunkTable, Span
from prismcache.errors import CropCorruptError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Made:
    """A chunk that is made of others: where they lie in the file (None: never written), and what is done with them."""

    spans: tuple[Span | None, ...]
    make: Callable[[Sequence[bytes | None]], bytes]


def of_all_channels(tables: Sequence[ChunkTable], place: Sequence[int]) -> Made | None:
    """Return the chunk at (0, z, y, x) with all channels, (C, Z, Y, X) uint8, raw bytes; None if never written."""
    spans = tuple(table.span(place[1:]) for table in tables) if place[0] == 0 else ()
    empty = bytes(math.prod(tables[0].chunk))
    return _made(spans, lambda parts: b"".join(empty if part is None else _inflated(part) for part in parts))


def of_original_ids(table: ChunkTable, ids: NDArray[np.uint64], place: Sequence[int]) -> Made | None:
    """Return the chunk at (z, y, x) with the source's ids for labels, uint64, zlib; None if it was never written.

    Parameters
    ----------
    ids
        (n+1,), the id in the source of each label.
    """

    def make(parts: Sequence[bytes | None]) -> bytes:
        try:
            return zlib.compress(ids[_voxels(table, parts[0] or b"")].astype("<u8").tobytes(), 1)
        except IndexError as error:
            raise CropCorruptError("a label is larger than the table of original ids") from error

    return _made((table.span(place),), make)


def of_one_slice(table: ChunkTable, place: Sequence[int], *, axis: int, deflated: bool) -> Made | None:
    """Return the chunk that is one whole slice of a dataset; None if there is no such slice, or nothing was written.

    Parameters
    ----------
    place
        (z, y, x): the slice's number along `axis`, 0 along the others.
    axis
        The axis (0, 1, 2 for Z, Y, X) that the slice lies across.
    deflated
        Whether the slice is made a zlib stream.
    """
    if len(place) != 3 or place[axis] >= table.shape[axis] or any(place[:axis]) or any(place[axis + 1 :]):
        return None
    layer, within = divmod(place[axis], table.chunk[axis])
    ranges = [[layer] if other == axis else range(extent) for other, extent in enumerate(table.sizes.shape)]
    met = list(itertools.product(*ranges))

    def make(parts: Sequence[bytes | None]) -> bytes:
        import numpy as np

        size = [1 if other == axis else extent for other, extent in enumerate(table.chunk)]
        whole = np.zeros([len(several) * extent for several, extent in zip(ranges, size, strict=True)], table.dtype)
        for index, part in zip(met, parts, strict=True):
            if part is not None:
                target = [slice(at * extent, (at + 1) * extent) for at, extent in zip(index, size, strict=True)]
                target[axis] = slice(1)
                whole[tuple(target)] = _voxels(table, part).take([within], axis)
        cut = whole[tuple(map(slice, table.shape))].tobytes()
        return zlib.compress(cut, 1) if deflated else cut

    return _made(tuple(table.span(index) for index in met), make)


def _made(spans: tuple[Span | None, ...], make: Callable[[Sequence[bytes | None]], bytes]) -> Made | None:
    return Made(spans, make) if any(spans) else None


def _voxels(table: ChunkTable, part: bytes) -> NDArray[Any]:
    import numpy as np

    try:
        return np.frombuffer(_inflated(part), table.dtype).reshape(table.chunk)
    except ValueError as error:
        raise CropCorruptError(f"a chunk does not inflate to {table.chunk} voxels") from error


def _inflated(part: bytes) -> bytes:
    library = _zlib()
    try:
        found: bytes = library.decompress(part)
    except library.error as error:
        raise CropCorruptError(f"a chunk cannot be inflated: {error}") from error
    return found


@functools.cache
def _zlib() -> Any:
    """Return ISA-L's zlib where it is installed (as with the service), since it takes half the time, else Python's."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    return isal_zlib
