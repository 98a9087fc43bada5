"""What is fetched and what it fills, for any shapes, chunks, shifts and channels."""

from __future__ import annotations

import dataclasses
import itertools
import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prismcache.errors import MisalignedError, MissingChunksError, UnknownChannelError
from prismcache_service.pipeline.plan import plan as planning
from prismcache_service.pipeline.plan.metadata import CropSource
from prismcache_service.pipeline.plan.plan import ArrayPlan, Box, CropPlan, plan_crop
from tests.support.chunking import grid_indices
from tests.support.crop_sources import crop_source, published_crop

FULL_WINDOW = 64 << 20


@dataclasses.dataclass(frozen=True)
class Case:
    """A crop, the channels asked for, and the window (bytes) that decides how blocks are cut."""

    crop: CropSource
    channels: tuple[int, ...] | None
    window: int

    def plan(self) -> CropPlan:
        with patch.object(planning, "_WINDOW_BYTES", self.window):
            return plan_crop(self.crop, self.channels, strict=False)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    channels = draw(st.integers(1, 6))
    labels = tuple(draw(st.integers(1, most)) for most in (40, 150, 70))
    shift = tuple(draw(st.integers(0, 20)) for _ in range(3))
    after = tuple(draw(st.integers(0, 9)) for _ in range(3))
    raw = tuple(a + n + b for a, n, b in zip(shift, labels, after, strict=True))
    raw_chunks = (draw(st.integers(1, channels)), *(draw(st.integers(max(1, n // 4), n + 2)) for n in raw))
    labels_chunks = tuple(draw(st.integers(max(1, n // 4), n + 2)) for n in labels)
    wanted = draw(st.none() | st.sets(st.integers(0, channels - 1), min_size=1).map(tuple))
    return Case(
        crop_source((channels, *raw), raw_chunks, labels, labels_chunks, shift=shift),
        wanted,
        draw(st.sampled_from([1, 200_000, 2_000_000, FULL_WINDOW])),
    )


def case(channels: tuple[int, ...] | None = None, window: int = FULL_WINDOW) -> Case:
    crop = crop_source((4, 30, 140, 80), (3, 8, 33, 25), (20, 130, 66), (7, 25, 30), shift=(4, 5, 6))
    return Case(crop, channels, window)


def filled(array: ArrayPlan) -> np.ndarray:
    """How often each voxel of the region is filled, (C, Z, Y, X)."""
    counts = np.zeros(array.region.shape, np.int64)
    for visit in array.visits:
        for number in visit.blocks:
            part = visit.box.overlap(array.blocks[number])
            assert part is not None, "a visit names a block that it does not meet"
            counts[part.moved(tuple(-a for a in array.region.start)).slices()] += 1
    return counts


def needed_keys(array: ArrayPlan, channels: tuple[int, ...]) -> set[str]:
    """Keys of the chunks that share a voxel with the wanted channels of the region, found one by one."""
    found = set()
    for index in grid_indices(array.source.shape, array.source.chunks):
        start = [i * n for i, n in zip(index, array.source.chunks, strict=True)]
        spans = [range(a, a + n) for a, n in zip(start, array.source.chunks, strict=True)]
        lead = spans.pop(0) if len(spans) == 4 else range(1)
        inside = all(
            s.start < b and s.stop > a
            for s, a, b in zip(spans, array.region.start[1:], array.region.stop[1:], strict=True)
        )
        if inside and any(c in lead for c in channels):
            found.add(array.source.key(index))
    return found


@given(cases())
@example(case())
@example(case(channels=(3, 0), window=1))
def test_every_voxel_of_the_region_is_filled_exactly_once(case: Case) -> None:
    plan = case.plan()
    assert (filled(plan.labels) == 1).all()
    counts = filled(plan.raw)
    for channel in range(counts.shape[0]):
        assert (counts[channel] == (1 if channel in plan.channels else 0)).all()


@given(cases())
@example(case(window=1))
def test_every_needed_chunk_is_fetched_once_and_no_other(case: Case) -> None:
    plan = case.plan()
    keys = [item.key for item in plan.fetched()]
    assert len(keys) == len(set(keys))
    assert set(keys) == needed_keys(plan.labels, (0,)) | needed_keys(plan.raw, plan.channels)


@given(cases())
@example(case(window=1))
def test_a_further_visit_follows_the_one_that_fetches(case: Case) -> None:
    for array in (case.plan().labels, case.plan().raw):
        seen = set()
        for visit in array.visits:
            assert visit.again == (visit.key in seen)
            seen.add(visit.key)


@given(cases())
@example(case(window=1))
def test_blocks_are_whole_hdf5_chunks_each_of_them_once(case: Case) -> None:
    plan = case.plan()
    for array, channels in ((plan.labels, (0,)), (plan.raw, plan.channels)):
        written = []
        for block in array.blocks:
            origin = [a - r for a, r in zip(block.start[1:], array.region.start[1:], strict=True)]
            assert [a % n for a, n in zip(origin, array.chunk, strict=True)] == [0, 0, 0]
            assert block.shape[1] <= array.chunk[0]
            assert block.start[3] == array.region.start[3]
            assert block.stop[3] == array.region.stop[3]
            rows = range(origin[1], origin[1] + block.shape[2], array.chunk[1])
            written += [(c, origin[0], y) for c in range(block.start[0], block.stop[0]) for y in rows]
        z, y, _ = array.region.shape[1:]
        expected = itertools.product(channels, range(0, z, array.chunk[0]), range(0, y, array.chunk[1]))
        assert sorted(written) == sorted(expected)


@given(cases())
@example(case(window=1))
def test_visits_need_blocks_in_order_and_no_more_than_said(case: Case) -> None:
    for array in (case.plan().labels, case.plan().raw):
        assert array.open_blocks == max(len(visit.blocks) for visit in array.visits)
        first = [visit.blocks[0] for visit in array.visits]
        for visit in array.visits:
            assert visit.blocks == tuple(range(visit.blocks[0], visit.blocks[-1] + 1))
        # Nothing can starve: every block's visits come before those of any later column of blocks.
        assert all(a <= b + array.open_blocks for a, b in itertools.pairwise(first))


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_depends_on_the_layout_alone(case: Case, random) -> None:
    keys = list(case.crop.objects)
    random.shuffle(keys)
    shuffled = {
        key: case.crop.objects[key].model_copy(update={"size": random.randint(1, 99), "etag": "e"}) for key in keys
    }
    other = dataclasses.replace(case, crop=dataclasses.replace(case.crop, objects=shuffled)).plan()
    plan = case.plan()
    for array, again in ((plan.labels, other.labels), (plan.raw, other.raw)):
        assert array.blocks == again.blocks
        assert [(v.key, v.blocks, v.again) for v in array.visits] == [(v.key, v.blocks, v.again) for v in again.visits]


@given(cases())
@example(case(window=1))
def test_the_blocks_that_one_object_fills_fit_the_window_or_are_as_thin_as_can_be(case: Case) -> None:
    for array in (case.plan().labels, case.plan().raw):
        if (array.open_blocks + 1) * array.block_bytes > case.window:
            assert all(block.shape[0] == 1 and block.shape[2] <= array.chunk[1] for block in array.blocks)


@pytest.mark.parametrize(("channels", "raw"), [(None, 576), ((0,), 96), ((4,), 96), ((0, 1, 2), 96), ((2, 3), 192)])
def test_published_crop_0_needs_this_many_objects(channels: tuple[int, ...] | None, raw: int) -> None:
    crop = published_crop()
    assert sum(key.startswith("raw/") for key in crop.objects) == 768
    plan = plan_crop(crop, channels, strict=True)
    keys = [item.key for item in plan.fetched()]
    assert sum(key.startswith("raw/") for key in keys) == raw
    assert sum(key.startswith("labels/") for key in keys) == 256
    assert not [visit for visit in plan.raw.visits if visit.again]
    assert (plan.raw.open_blocks + 1) * plan.raw.block_bytes <= FULL_WINDOW


def test_labels_are_fetched_first_as_all_of_them_are_needed_for_the_first_number() -> None:
    keys = [item.key.split("/")[0] for item in plan_crop(published_crop(), None, strict=False).fetched()]
    assert keys == ["labels"] * 256 + ["raw"] * 576


@given(cases())
def test_labels_stand_between_two_columns_that_no_visit_leaves(case: Case) -> None:
    plan = case.plan()
    ends = list(itertools.accumulate(plan.raw.columns))
    assert ends[-1] == len(plan.raw.blocks)
    assert plan.blocks_before_labels in ends
    for visit in plan.raw.visits:
        first, last = visit.blocks[0], visit.blocks[-1]
        assert not any(first < end <= last for end in ends)


def test_half_of_the_published_crop_comes_before_its_labels() -> None:
    plan = plan_crop(published_crop(), None, strict=False)
    assert plan.blocks_before_labels == len(plan.raw.blocks) // 2
    assert plan_crop(published_crop(), [0], strict=False).blocks_before_labels == 13


def test_channels_are_ascending_each_once_and_complete_only_when_all_are_there() -> None:
    plan = case(channels=(3, 1, 3)).plan()
    assert (plan.channels, plan.complete) == ((1, 3), False)
    assert case(channels=(3, 2, 1, 0)).plan().complete
    assert case().plan().complete


@pytest.mark.parametrize(("channels", "named"), [((4,), "4"), ((0, 18, 7), "7, 18"), ((-1, 2), "-1")])
def test_a_channel_that_the_crop_lacks_is_named(channels: tuple[int, ...], named: str) -> None:
    with pytest.raises(UnknownChannelError, match=rf"(?m)crop_0.zarr has channels 0-3, not {named}$"):
        case(channels=channels).plan()


def test_absent_chunks_are_counted_once_and_only_where_they_are_needed() -> None:
    needed, elsewhere = "raw/0.2.2.2", "raw/0.0.0.0"
    crop = published_crop(absent=[needed, elsewhere, "labels/0.0.0"])
    plan = plan_crop(crop, None, strict=False)
    assert plan.absent() == [needed]  # labels of their fill value 0 are background
    assert [v.key for v in (*plan.labels.visits, *plan.raw.visits) if v.item is None] == ["labels/0.0.0", needed]
    assert len(plan.fetched()) == 576 + 256 - 2


def test_an_absent_chunk_that_is_visited_twice_counts_once() -> None:
    crop = crop_source((1, 16, 200, 64), (1, 16, 200, 64), (16, 200, 64), (16, 200, 64), absent=["raw/0.0.0.0"])
    plan = Case(crop, None, window=1).plan()
    assert [visit.again for visit in plan.raw.visits] == [False, True, True, True]
    assert plan.missing_chunks == 1


def test_strict_refuses_absent_chunks_with_their_number_and_the_first() -> None:
    crop = published_crop(absent=["raw/0.2.2.2", "raw/1.2.2.2"])
    with pytest.raises(MissingChunksError, match=r"crop_0.zarr: 2 chunks are absent, the first is raw/0\.2\.2\.2"):
        plan_crop(crop, None, strict=True)
    assert plan_crop(published_crop(absent=["raw/0.0.0.0"]), None, strict=True).missing_chunks == 0
    assert plan_crop(crop, (9,), strict=True).missing_chunks == 0


def test_labels_that_leave_raw_are_refused_before_anything_is_planned() -> None:
    crop = crop_source((1, 20, 20, 20), (1, 20, 20, 20), (20, 20, 20), (20, 20, 20), shift=(0, 1, 0))
    with pytest.raises(MisalignedError, match=r"crop_0\.zarr: labels"):
        plan_crop(crop, None, strict=False)


def test_hdf5_chunks_are_no_larger_than_the_array() -> None:
    crop = crop_source((1, 5, 70, 9), (1, 5, 70, 9), (5, 70, 9), (5, 70, 9))
    assert plan_crop(crop, None, strict=False).raw.chunk == (5, 64, 9)


def test_the_bound_on_the_file_covers_voxels_that_do_not_deflate() -> None:
    plan = case().plan()
    voxels = math.prod((20, 130, 66))
    assert plan.file_bytes_bound > (4 + 4) * voxels * 1.005
    assert case(channels=(1,)).plan().file_bytes_bound < plan.file_bytes_bound


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Box((1, 1), (3, 9)), Box((1, 1), (2, 3))),
        (Box((0, 0), (2, 3)), Box((0, 0), (2, 3))),
        (Box((2, 0), (5, 5)), None),
        (Box((0, 3), (1, 4)), None),
    ],
)
def test_boxes_overlap_in_the_box_that_both_hold(other: Box, expected: Box | None) -> None:
    box = Box((0, 0), (2, 3))
    assert box.overlap(other) == expected
    assert other.overlap(box) == expected


def test_a_moved_box_keeps_its_shape() -> None:
    box = Box((1, 2), (3, 5)).moved((-1, 4))
    assert box == Box((0, 6), (2, 9))
    assert box.shape == (2, 3)
    assert box.slices() == (slice(0, 2), slice(6, 9))
