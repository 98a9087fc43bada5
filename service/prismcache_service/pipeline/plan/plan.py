"""Which objects are fetched and which voxels of the file they fill, decided before the first chunk moves. Pure.

The file is made block by block: a *block* is a run of whole HDF5 chunk rows that is filled in memory, deflated and
written. A *visit* is one object of the source and the blocks it fills. Blocks and visits are in one canonical order
that depends on the source's layout alone, never on timing or memory, so that equal input gives equal bytes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prismcache.errors import InvalidSourceError, MissingChunksError, UnknownChannelError
from prismcache.layout import LABELS, SourceObject, file_bytes_bound, raw_dataset
from prismcache.schema import NO_CONTEXT, Context
from prismcache_service.pipeline.plan.alignment import Alignment, align, align_beside
from prismcache_service.pipeline.plan.metadata import ArraySource, CropSource, Shape

# (Z, Y, X) of an HDF5 chunk: 64 KiB of raw fit a core's cache, and a training patch of (32, 256, 256) reads 2.3 times
# its own voxels (larger chunks: 3.4 and more).
CHUNK = (16, 64, 64)
# Blocks that one object can fill, and one more, take at most this many bytes. A constant: the order depends on it.
_WINDOW_BYTES = 64 << 20
_MAX_FILE_CHUNKS = 200_000  # ten times the published crops'; a plan takes memory for each


@dataclass(frozen=True)
class Box:
    """Half-open box of voxels, (C, Z, Y, X)."""

    start: Shape
    stop: Shape

    @property
    def shape(self) -> Shape:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    def overlap(self, other: Box) -> Box | None:
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None

    def moved(self, by: Shape) -> Box:
        return Box(*(tuple(a + d for a, d in zip(corner, by, strict=True)) for corner in (self.start, self.stop)))

    def slices(self) -> tuple[slice, ...]:
        return tuple(map(slice, self.start, self.stop))


@dataclass(frozen=True)
class Visit:
    """One object of the source: its box in the array and the blocks (by number) that it fills.

    `item` is None for a chunk that is absent from the listing: zarr's fill value. `again` marks a further visit to an
    object that an earlier one fetched.
    """

    key: str
    item: SourceObject | None
    box: Box
    blocks: tuple[int, ...]
    again: bool = False


@dataclass(frozen=True)
class ArrayPlan:
    """The blocks of one array, in the array's own voxels, and the visits that fill them, both in canonical order.

    `name` is that of the dataset, empty for raw, which has one for each channel; `dtype` is the file's. `region` is
    what the file holds of the array; `chunk` the HDF5 chunk's (Z, Y, X); `columns` counts the blocks of each column,
    which no visit leaves; `open_blocks` says how many blocks one visit can need at the same time.
    """

    source: ArraySource
    region: Box
    chunk: tuple[int, int, int]
    blocks: tuple[Box, ...]
    visits: tuple[Visit, ...]
    columns: tuple[int, ...]
    open_blocks: int
    dtype: np.dtype[Any]
    name: str = ""

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def block_bytes(self) -> int:
        return max(math.prod(block.shape) for block in self.blocks) * self.itemsize

    def dataset(self, channel: int) -> str:
        """Return the name of the dataset that holds a channel; arrays other than raw have one dataset."""
        return self.name or raw_dataset(channel)

    @property
    def absent(self) -> list[str]:
        """The keys of the chunks that are not listed, each once.

        Chunks of an array that holds 0 there are not counted, except those of raw: zarr leaves such chunks out by
        default. Where all of an array's are absent they are: its metadata may name other keys than the bucket has.
        """
        is_background = self.name and self.source.has_fill and self.source.fill_value == 0
        if is_background and any(visit.item for visit in self.visits):
            return []
        return [visit.key for visit in self.visits if visit.item is None and not visit.again]


@dataclass(frozen=True)
class PlacedArray:
    """A dataset of the file: what fills it, and the place of its first voxel, in nm and exact nm (Z,Y,X).

    `offset_nm` is None where `offset` is exact.
    """

    name: str
    array: ArrayPlan
    offset: Shape
    offset_nm: Sequence[float] | None


@dataclass(frozen=True)
class CropPlan:
    """Everything that is decided before the first chunk is fetched.

    `channels` are those of the file, ascending; `complete` says that they are all the crop has. `labels` is None in a
    crop without labels. `arrays` ride along, each with its place; `without` names those that the crop lacks.
    """

    channels: tuple[int, ...]
    complete: bool
    alignment: Alignment
    labels: ArrayPlan | None
    raw: ArrayPlan
    arrays: tuple[tuple[ArrayPlan, Alignment], ...] = ()
    without: tuple[str, ...] = ()

    @property
    def in_order(self) -> tuple[ArrayPlan, ...]:
        """All arrays, in the order in which they are fetched."""
        labels = () if self.labels is None else (self.labels,)
        return (*labels, self.raw, *(array for array, _ in self.arrays))

    def fetched(self) -> list[SourceObject]:
        """The objects to fetch, in order, each once."""
        visits = itertools.chain.from_iterable(array.visits for array in self.in_order)
        return [v.item for v in visits if v.item is not None and not v.again]

    def datasets(self) -> list[PlacedArray]:
        """Return the file's datasets, except the table of ids."""
        place = self.alignment
        found = [PlacedArray(raw_dataset(c), self.raw, self.raw_offset, self.raw_offset_nm) for c in self.channels]
        if self.labels is not None:
            found.append(PlacedArray(LABELS, self.labels, place.offset, place.offset_nm))
        return found + [PlacedArray(array.name, array, at.offset, at.offset_nm) for array, at in self.arrays]

    @property
    def blocks_before_labels(self) -> int:
        """How many blocks of raw come before those of labels in the file: half of its columns.

        Labels are numbered once all of them have been seen. In the middle of the file nothing waits for that: raw is
        under way already, and there is more of it to fetch while labels are deflated.
        """
        return sum(self.raw.columns[: -(-len(self.raw.columns) // 2)])

    def absent(self) -> list[str]:
        """Return the keys of the chunks that are not listed, labels first, each once; see `ArrayPlan.absent`."""
        return [key for array in self.in_order for key in array.absent]

    @property
    def missing_chunks(self) -> int:
        return len(self.absent())

    @property
    def notes(self) -> tuple[str, ...]:
        """Return sentences on what the source lacks, for the manifest and the user."""
        without = sum(not item.etag for item in self.fetched())
        unverified = (
            f"unverified: {without} objects have no ETag in the bucket's listing; only their lengths were checked"
        )
        lacking = f"the crop lacks {', '.join(self.without)}, which the catalog lists"
        return (*self.alignment.notes, *([lacking] if self.without else []), *([unverified] if without else []))

    @property
    def file_bytes_bound(self) -> int:
        """More bytes than the file can take."""
        beside = sum(math.prod(array.region.shape) * array.itemsize for array, _ in self.arrays)
        return file_bytes_bound(self.raw.region.shape[1:], len(self.channels)) + beside * 101 // 100

    @property
    def raw_offset(self) -> Shape:
        """Place of raw's first voxel in the file (nm; Z,Y,X): before that of the labels where there is context."""
        return tuple(int(n) for n in self._before_labels(self.alignment.offset, self.alignment.resolution))

    @property
    def raw_offset_nm(self) -> Sequence[float] | None:
        """The same as exact floats, where the alignment has them."""
        place = self.alignment
        if place.offset_nm is None or place.voxel_size_nm is None:
            return place.offset_nm
        return self._before_labels(place.offset_nm, place.voxel_size_nm)

    def _before_labels(self, place: Sequence[float], voxel_size: Sequence[float]) -> Sequence[float]:
        before = (a - b for a, b in zip(self.alignment.start, self.raw.region.start[1:], strict=True))
        return [o - n * r for o, n, r in zip(place, before, voxel_size, strict=True)]


def plan_crop(
    crop: CropSource, channels: Sequence[int] | None, *, strict: bool, context: Context = NO_CONTEXT
) -> CropPlan:
    """Decide what to fetch of a crop and how the file is laid out.

    Parameters
    ----------
    channels, strict
        Channels wanted, None for all; whether absent chunks are refused.
    context
        Voxels (Z, Y, X) that raw reaches beyond the labels on each side, or ``"all"``; a crop without labels always has
        all of raw. Raw ends where the source ends; nothing is padded.

    Raises
    ------
    UnknownChannelError
        If the crop lacks a wanted channel.
    InvalidSourceError
        If raw and labels cannot be aligned (`MisalignedError`) or carry unusable numbers, or chunks have other keys
        than the metadata says.
    MissingChunksError
        If a needed chunk is not listed, and `strict` or raw's fill value is null.
    """
    alignment = align(crop.folder, crop.raw, crop.labels)
    wanted = _wanted_channels(crop, channels)
    region = _raw_region(crop, alignment, context, len(wanted))
    raw = _plan_array(crop.raw, crop.objects, region, wanted, np.dtype(np.uint8), _WINDOW_BYTES)
    # All arrays share buffers: a block that is larger than raw's costs memory for nothing.
    block_bytes = max(raw.block_bytes, _WINDOW_BYTES // 6)

    def beside(name: str, source: ArraySource, dtype: np.dtype[Any]) -> ArrayPlan:
        region = Box((0, 0, 0, 0), (1, *source.shape))
        return _plan_array(source, crop.objects, region, (0,), dtype, block_bytes, name=name)

    labels = None if crop.labels is None else beside(LABELS, crop.labels, np.dtype(np.uint32))
    arrays = tuple(
        (beside(name, source, source.dtype_in_file), align_beside(crop.folder, crop.raw, source))
        for name, source in crop.arrays.items()
    )
    plan = CropPlan(wanted, len(wanted) == crop.raw.shape[0], alignment, labels, raw, arrays, crop.absent)
    for array in plan.in_order:
        _refuse_other_keys(crop.folder, crop.objects, array)
    _refuse_absent(crop, plan, strict=strict)
    return plan


def _raw_region(crop: CropSource, alignment: Alignment, context: Context, channels: int) -> Box:
    """Return the box of raw that the file holds: that of the labels, and the context around it."""
    extent = crop.raw.shape[1:]
    reach = extent if context == "all" else context
    start = (max(0, n - by) for n, by in zip(alignment.start, reach, strict=True))
    stop = (min(end, n + by) for end, n, by in zip(extent, alignment.stop, reach, strict=True))
    region = Box((0, *start), (crop.raw.shape[0], *stop))
    count = channels * math.prod(-(-n // c) for n, c in zip(region.shape[1:], CHUNK, strict=True))
    if count > _MAX_FILE_CHUNKS:
        raise InvalidSourceError(
            f"{crop.folder}: {channels} channels of {region.shape[1:]} voxels would be {count} chunks {CHUNK} "
            f"of the file, more than {_MAX_FILE_CHUNKS}"
        )
    return region


def _refuse_absent(crop: CropSource, plan: CropPlan, *, strict: bool) -> None:
    if strict and (absent := plan.absent()):
        raise MissingChunksError(f"{crop.folder}: {len(absent)} chunks are absent, the first is {absent[0]}")
    undefined = [] if crop.raw.has_fill else [visit.key for visit in plan.raw.visits if visit.item is None]
    if undefined:
        raise MissingChunksError(
            f"{crop.folder}: {undefined[0]} is absent, and raw's fill_value is null: zarr leaves its voxels undefined",
            remedy="Write the chunk, or a fill_value, into the source.",
        )


def _refuse_other_keys(folder: str, objects: Mapping[str, SourceObject], array: ArrayPlan) -> None:
    """Raise if the bucket has chunks of an array, and none by a key that the metadata gives: all would count as absent.

    zarr's older nested stores, for one, did not write their separator into the metadata.
    """
    if all(visit.item for visit in array.visits):
        return
    source = array.source
    numbers = re.escape(source.separator).join([r"\d+"] * len(source.chunks))
    own = re.compile(re.escape(f"{source.name}/{source.key_prefix}") + numbers)
    any_ = re.compile(re.escape(f"{source.name}/") + r"(c[./])?\d+([./]\d+)*")
    found = [key for key in objects if any_.fullmatch(key)]
    if found and not any(map(own.fullmatch, found)):
        raise InvalidSourceError(
            f"{folder}: {source.name} has chunks such as {found[0]}, and its metadata names them as in "
            f"{array.visits[0].key}"
        )


def _wanted_channels(crop: CropSource, channels: Sequence[int] | None) -> tuple[int, ...]:
    count = crop.raw.shape[0]
    wanted = tuple(range(count)) if channels is None else tuple(sorted(set(channels)))
    if wanted[-1] >= count or wanted[0] < 0:
        lacking = [c for c in wanted if not 0 <= c < count]
        raise UnknownChannelError(f"{crop.folder} has channels 0-{count - 1}, not {', '.join(map(str, lacking))}")
    return wanted


def _plan_array(
    source: ArraySource,
    objects: Mapping[str, SourceObject],
    region: Box,
    channels: tuple[int, ...],
    dtype: np.dtype[Any],
    block_bytes: int,
    *,
    name: str = "",
) -> ArrayPlan:
    chunks = source.chunks if len(source.chunks) == 4 else (1, *source.chunks)
    z, y, x = map(min, CHUNK, region.shape[1:])
    chunk = z, y, x
    spans = 1 + -(-min(chunks[1], region.shape[1]) // chunk[0])  # block rows that one source chunk can meet
    block_bytes = min(block_bytes, _WINDOW_BYTES // (spans + 1))
    bands = _bands(region, channels, chunks[0], chunk, block_bytes // dtype.itemsize)
    blocks: list[Box] = []
    visits: list[Visit] = []
    columns: list[int] = []
    seen: set[str] = set()
    for group, top, bottom in bands:
        rows = _rows(region, group, top, bottom, chunk[0])
        begin, height = rows[0].start[1], rows[0].shape[1]
        # The source chunks that meet the band, Z before Y before X within a channel group.
        axes = zip(rows[0].start, rows[-1].stop, chunks, strict=True)
        for index in itertools.product(*(range(a // n, -(-b // n)) for a, b, n in axes)):
            key = source.key(index if len(source.chunks) == 4 else index[1:])
            corner = tuple(i * n for i, n in zip(index, chunks, strict=True))
            box = Box(corner, tuple(c + n for c, n in zip(corner, chunks, strict=True)))
            met = met_tiles(box.start[1] - begin, box.stop[1] - begin, height, len(rows))
            numbers = tuple(len(blocks) + row for row in met)
            visits.append(Visit(key, objects.get(key), box, numbers, again=key in seen))
            seen.add(key)
        blocks.extend(rows)
        columns.append(len(rows))
    width = max(len(v.blocks) for v in visits)
    return ArrayPlan(source, region, chunk, tuple(blocks), tuple(visits), tuple(columns), width, dtype, name)


def _bands(
    region: Box, channels: tuple[int, ...], group_size: int, chunk: tuple[int, int, int], block_voxels: int
) -> Iterator[tuple[tuple[int, int], int, int]]:
    """(channels half-open, Y start, Y stop) of columns of blocks, each small enough: normally all of Y and a group.

    A group is a run of wanted channels that lie in one source chunk. Where a row of blocks over all of Y is too
    large, Y is cut at HDF5 chunks, and then the group's channels.
    """
    row_voxels = chunk[0] * chunk[1] * region.shape[3]
    deep = max(1, block_voxels // row_voxels)  # (channel, chunk row) pairs that a block can hold
    y_rows = -(-region.shape[2] // chunk[1])
    for first, last in _channel_groups(channels, group_size):
        thick = min(last - first, deep)
        height = max(1, min(y_rows, deep // thick)) * chunk[1]
        for c in range(first, last, thick):
            for y in range(region.start[2], region.stop[2], height):
                yield (c, min(c + thick, last)), y, min(y + height, region.stop[2])


def _channel_groups(channels: tuple[int, ...], group_size: int) -> Iterator[tuple[int, int]]:
    """Runs of consecutive channels that share a source chunk, half-open."""
    run: list[int] = []
    for channel in channels:
        if run and (channel != run[-1] + 1 or channel // group_size != run[0] // group_size):
            yield run[0], run[-1] + 1
            run = []
        run.append(channel)
    yield run[0], run[-1] + 1


def _rows(region: Box, group: tuple[int, int], top: int, bottom: int, height: int) -> list[Box]:
    return [
        Box(
            (group[0], z, top, region.start[3]),
            (group[1], min(z + height, region.stop[1]), bottom, region.stop[3]),
        )
        for z in range(region.start[1], region.stop[1], height)
    ]


def met_tiles(start: int, stop: int, size: int, count: int) -> range:
    """Which of `count` tiles of `size` from 0 on a range meets. Reckoned, not searched: there may be thousands."""
    return range(max(0, start // size), min(count, -(-stop // size)))
