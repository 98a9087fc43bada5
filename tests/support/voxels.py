"""Voxels that behave like PRISM's: noisy raw that hardly compresses, labels in runs of some ten voxels.

A periodic tile is made once per process and read at another shift for every seed and channel, so that any region of
an array of any size costs no more than a copy. The tile's period is larger than the published chunks and not a
multiple of them: no two chunks are equal and no chunk repeats itself.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Shape3 = tuple[int, int, int]

SEMANTIC_CLASSES = (1, 3, 5, 6, 10, 11, 2, 7)
SMALL_TILE: Shape3 = (48, 160, 160)
LARGE_TILE: Shape3 = (48, 320, 320)
SEGMENT: Shape3 = (12, 32, 40)
"""Mean extent (Z, Y, X) of one labelled segment, in voxels; divides both tiles."""

_TILE_SEED = 20_250_926


@dataclass(frozen=True)
class RawVoxels:
    """Raw of any extent, (C, Z, Y, X) uint8, known by its seed alone.

    Attributes
    ----------
    seed
        Numbers that identify the tissue.
    tile
        Period (Z, Y, X) in voxels.
    """

    seed: tuple[int, ...]
    tile: Shape3

    def block(self, channels: range, start: Sequence[int], stop: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Voxels of `channels` within the half-open box `start`…`stop` (Z, Y, X): (C, Z, Y, X) uint8."""
        tile = _raw_tile(self.tile)
        extent = [b - a for a, b in zip(start, stop, strict=True)]
        block = np.empty((len(channels), *extent), np.uint8)
        for target, channel in zip(block, channels, strict=True):
            shift = _shift((*self.seed, 1, channel), self.tile)
            for piece in _pieces(start, stop, shift, self.tile):
                target[piece.target] = tile[piece.source]
        return block


@dataclass(frozen=True)
class LabelVoxels:
    """Labels of any extent, (Z, Y, X), known by their seed alone.

    Attributes
    ----------
    seed
        Numbers that identify the tissue.
    tile
        Period (Z, Y, X) in voxels.
    dtype
        Integer dtype of the labels, in any byte order.
    semantic
        Class ids (`SEMANTIC_CLASSES`) instead of arbitrary instance ids.
    largest_id
        Bound of the instance ids; None for all that `dtype` holds.
    """

    seed: tuple[int, ...]
    tile: Shape3
    dtype: np.dtype[np.generic]
    semantic: bool
    largest_id: int | None = None

    def block(self, start: Sequence[int], stop: Sequence[int]) -> npt.NDArray[np.generic]:
        """Labels within the half-open box `start`…`stop` (Z, Y, X)."""
        tile = _segment_tile(self.tile)
        block = np.empty([b - a for a, b in zip(start, stop, strict=True)], self.dtype)
        shift = _shift((*self.seed, 2), self.tile)
        for piece in _pieces(start, stop, shift, self.tile):
            block[piece.target] = self._ids(int(tile.max()), piece.period)[tile[piece.source]]
        return block

    def _ids(self, segments: int, period: Sequence[int]) -> npt.NDArray[np.generic]:
        """Ids of a tile's segments, (segments + 1,); the background's is 0."""
        random = np.random.default_rng((*self.seed, 3, *period))
        if self.semantic:
            ids = random.choice(np.array(SEMANTIC_CLASSES, np.uint64), segments)
        else:
            largest = self.largest_id or int(np.iinfo(self.dtype).max)  # type: ignore[type-var]  # an integer type here
            ids = _instance_ids(random, segments, largest)
        return np.concatenate([np.zeros(1, np.uint64), ids]).astype(self.dtype)


@dataclass(frozen=True)
class _Piece:
    """Part of a box that lies within one period of the tile."""

    target: tuple[slice, ...]
    source: tuple[slice, ...]
    period: tuple[int, ...]


def tile_for(shape: Sequence[int]) -> Shape3:
    """The smaller tile that holds a (Z, Y, X) `shape` without repeating, or the large one."""
    fits = all(extent <= period for extent, period in zip(shape, SMALL_TILE, strict=True))
    return SMALL_TILE if fits else LARGE_TILE


def _shift(seed: tuple[int, ...], tile: Shape3) -> tuple[int, ...]:
    return tuple(int(s) for s in np.random.default_rng(seed).integers(0, tile))


def _pieces(start: Sequence[int], stop: Sequence[int], shift: Sequence[int], tile: Shape3) -> Iterator[_Piece]:
    axes = [list(_axis_pieces(a + s, b + s, t)) for a, b, s, t in zip(start, stop, shift, tile, strict=True)]
    for parts in itertools.product(*axes):
        target, source, period = zip(*parts, strict=True)
        yield _Piece(target, source, period)


def _axis_pieces(start: int, stop: int, period: int) -> Iterator[tuple[slice, slice, int]]:
    low = start
    while low < stop:
        turn, at = divmod(low, period)
        high = min(stop, (turn + 1) * period)
        yield slice(low - start, high - start), slice(at, at + high - low), turn
        low = high


def _smooth_noise(random: np.random.Generator, tile: Shape3, sigma: Shape3) -> npt.NDArray[np.float32]:
    """Periodic smooth noise (Z, Y, X) of mean 0 and standard deviation 1."""
    noise = ndimage.gaussian_filter(random.standard_normal(tile, dtype=np.float32), sigma, mode="wrap", truncate=2.5)
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


@functools.lru_cache(maxsize=2)
def _raw_tile(tile: Shape3) -> npt.NDArray[np.uint8]:
    """Photon counts: bright processes on a dim ground, with Poisson noise; (Z, Y, X) uint8."""
    random = np.random.default_rng(_TILE_SEED)
    brightness = np.maximum(11 * np.exp(1.1 * _smooth_noise(random, tile, (2, 4, 4))) - 4.5, 0)
    return np.asarray(random.poisson(brightness).clip(0, 255), np.uint8)


@functools.lru_cache(maxsize=2)
def _segment_tile(tile: Shape3) -> npt.NDArray[np.uint16]:
    """Segments 1…n of about `SEGMENT` voxels with wavy borders, a background 0 between them; (Z, Y, X) uint16."""
    random = np.random.default_rng(_TILE_SEED + 1)
    segment = np.zeros(tile, np.int64)
    ground = np.zeros(tile, bool)
    for axis, (extent, size) in enumerate(zip(tile, SEGMENT, strict=True)):
        along = np.arange(extent).reshape([-1 if a == axis else 1 for a in range(3)])
        position = along / size + 0.2 * _smooth_noise(random, tile, (6, 10, 10))
        whole = np.floor(position)
        ground |= position - whole < 0.06
        count = extent // size
        segment = segment * count + whole.astype(np.int64) % count
    return np.where(ground, 0, segment + 1).astype(np.uint16)


def _instance_ids(random: np.random.Generator, count: int, largest: int) -> npt.NDArray[np.uint64]:
    """`count` ids from 1 to `largest` of very different size: a few near 1, beyond 2**40 and close to `largest`."""
    ids = random.integers(1, largest, count, dtype=np.uint64, endpoint=True)
    kind = random.integers(0, 4, count)
    small, huge = ids % np.uint64(min(5000, largest)) + np.uint64(1), np.uint64(largest) - ids % np.uint64(100)
    large = np.uint64(2**40) + ids % np.uint64(2**40) if largest > 2**41 else ids
    return np.choose(kind, [small, huge, large, ids])
