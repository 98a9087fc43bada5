"""Where the labels lie in raw, or a refusal that names the numbers."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache.errors import InvalidSourceError, MisalignedError
from prismcache_service.pipeline.plan.alignment import Alignment, align
from tests.support.crop_sources import RESOLUTION, Vector, array_source

WHERE = "instance/crop_3.zarr"
RAW_SHAPE, LABELS_SHAPE = (2, 30, 100, 90), (20, 60, 50)


def aligned(
    raw_offset: Vector = (8000.0, 33600.0, 16800.0),
    labels_offset: Vector = (10000.0, 36960.0, 20160.0),
    *,
    raw_resolution: Vector = RESOLUTION,
    labels_resolution: Vector = RESOLUTION,
    raw_shape: tuple[int, int, int, int] = RAW_SHAPE,
    labels_shape: tuple[int, int, int] = LABELS_SHAPE,
) -> Alignment:
    raw = array_source("raw", raw_shape, raw_shape, offset=raw_offset, resolution=raw_resolution)
    labels = array_source("labels", labels_shape, labels_shape, offset=labels_offset, resolution=labels_resolution)
    return align(WHERE, raw, labels)


def test_the_labels_box_in_raw_and_in_the_world() -> None:
    assert aligned() == Alignment((5, 20, 20), (25, 80, 70), (10000, 36960, 20160), (400, 168, 168))


@given(
    shift=st.tuples(*(st.integers(0, 40),) * 3),
    margin=st.tuples(*(st.integers(0, 9),) * 3),
    origin=st.tuples(*(st.integers(-(10**9), 10**9),) * 3),
    resolution=st.tuples(*(st.integers(1, 1000),) * 3),
)
def test_any_whole_shift_within_raw_is_found(shift, margin, origin, resolution) -> None:
    raw_shape = tuple(s + n + m for s, n, m in zip(shift, LABELS_SHAPE, margin, strict=True))
    offset = tuple(o + s * r for o, s, r in zip(origin, shift, resolution, strict=True))
    found = aligned(origin, offset, raw_resolution=resolution, labels_resolution=None, raw_shape=(1, *raw_shape))
    assert found.start == shift
    assert found.stop == tuple(s + n for s, n in zip(shift, LABELS_SHAPE, strict=True))
    assert (found.offset, found.resolution) == (offset, resolution)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [-1, -25, 41, 10**6])
def test_labels_that_leave_raw_on_any_side_are_refused_with_the_numbers(axis: int, voxels: int) -> None:
    offset = [8000.0, 33600.0, 16800.0]
    offset[axis] += voxels * RESOLUTION[axis]
    with pytest.raises(MisalignedError) as caught:
        aligned(labels_offset=(offset[0], offset[1], offset[2]))
    for number in (WHERE, LABELS_SHAPE, tuple(offset), RAW_SHAPE[1:], (8000.0, 33600.0, 16800.0), RESOLUTION, voxels):
        assert str(number) in str(caught.value)


@pytest.mark.parametrize("margin", [0, 1])
def test_labels_may_touch_the_end_of_raw_and_no_more(margin: int) -> None:
    def attempt() -> Alignment:
        return aligned((0.0, 0.0, 0.0), (0.0, 0.0, (40 + margin) * RESOLUTION[2]))

    if margin == 0:
        assert attempt().stop[2] == RAW_SHAPE[3]
    else:
        with pytest.raises(MisalignedError, match=re.escape("voxels (0, 0, 41) to (20, 60, 91)")):
            attempt()


@pytest.mark.parametrize("fraction", [0.5, 0.25, -0.4, 0.02])
def test_a_shift_that_is_not_whole_is_refused_with_the_numbers(fraction: float) -> None:
    offset = (10000.0, 36960.0, 16800.0 + (20 + fraction) * 168)
    with pytest.raises(MisalignedError, match=re.escape(str(offset)) + r".*not whole") as caught:
        aligned(labels_offset=offset)
    said = re.search(r"shifted by \((.*?)\) voxels", str(caught.value))
    assert said is not None
    assert [float(v) for v in said[1].split(", ")] == pytest.approx([5, 20, 20 + fraction])


def test_rounding_noise_of_floats_is_no_fraction_of_a_voxel() -> None:
    assert aligned((0.0, 0.0, -1e-9), (1200.0, 168.0, 504.0)).start == (3, 1, 3)


def test_different_resolutions_are_refused_with_both() -> None:
    with pytest.raises(MisalignedError, match=r"\(400.0, 168.0, 168.0\).*\(400.0, 168.0, 167.0\)"):
        aligned(labels_resolution=(400.0, 168.0, 167.0))


@pytest.mark.parametrize(("raw", "labels"), [(RESOLUTION, None), (None, RESOLUTION)])
def test_a_resolution_that_only_one_array_carries_is_both_arrays(raw: Vector, labels: Vector) -> None:
    assert aligned(raw_resolution=raw, labels_resolution=labels) == aligned()


def test_without_a_voxel_size_places_are_in_voxels_which_is_said() -> None:
    found = aligned((2.0, 2.0, 2.5), (2.0, 2.0, 2.5), raw_resolution=None, labels_resolution=None)
    assert (found.start, found.offset, found.resolution) == ((0, 0, 0), (0, 0, 0), (1, 1, 1))
    assert (found.has_voxel_size, found.offset_nm, found.voxel_size_nm) == (False, (2.0, 2.0, 2.5), None)
    assert "no voxel size" in " ".join(found.notes)


def test_without_a_voxel_size_a_shift_is_unknown() -> None:
    with pytest.raises(MisalignedError, match=r"neither has a resolution"):
        aligned((2.0, 2.0, 2.0), (4.0, 5.0, 6.0), raw_resolution=None, labels_resolution=None)


@pytest.mark.parametrize("missing", ["raw", "labels", "raw and labels"])
def test_a_missing_offset_is_refused_where_the_shapes_differ(missing: str) -> None:
    offsets = {name: None if name in missing else (0.0, 0.0, 0.0) for name in ("raw", "labels")}
    with pytest.raises(MisalignedError, match=f"offset of {missing} is missing") as caught:
        aligned(offsets["raw"], offsets["labels"])
    assert str(RAW_SHAPE[1:]) in str(caught.value)
    assert str(LABELS_SHAPE) in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "labels", "expected"),
    [
        (None, None, (0, 0, 0)),
        ((400.0, 168.0, 0.0), None, (400, 168, 0)),
        (None, (400.0, 168.0, 0.0), (400, 168, 0)),
    ],
)
def test_a_missing_offset_is_no_shift_where_the_shapes_agree(raw: Vector, labels: Vector, expected: tuple) -> None:
    found = aligned(raw, labels, raw_shape=(2, *LABELS_SHAPE))
    assert (found.start, found.stop, found.offset) == ((0, 0, 0), LABELS_SHAPE, expected)


FRACTIONAL = (281.6, 35.2, 35.2)


@pytest.mark.parametrize(
    ("offset", "size", "whole"),
    [
        ((0.5, 0.0, 0.0), RESOLUTION, ((0, 0, 0), (400, 168, 168))),
        ((2816.0, 0.0, 0.0), FRACTIONAL, ((2816, 0, 0), (282, 35, 35))),
    ],
)
def test_what_is_not_in_whole_nm_is_rounded_with_the_exact_values_beside(offset, size, whole) -> None:
    found = aligned(offset, offset, raw_resolution=size, labels_resolution=size)
    assert (found.offset, found.resolution) == whole
    assert (found.offset_nm, found.voxel_size_nm) == (offset, size)
    assert len(found.notes) == 1
    assert str(size) in found.notes[0]


def test_a_shift_counts_exact_voxels() -> None:
    shift = tuple(n * size for n, size in zip((3, 20, 40), FRACTIONAL, strict=True))
    assert aligned((0.0, 0.0, 0.0), shift, raw_resolution=FRACTIONAL, labels_resolution=None).start == (3, 20, 40)


def test_voxels_below_half_a_nm_are_refused() -> None:
    with pytest.raises(InvalidSourceError, match="less than half a nm"):
        aligned(raw_resolution=(0.4, 1.0, 1.0), labels_resolution=None, raw_offset=None, labels_offset=None,
                raw_shape=(2, *LABELS_SHAPE))  # fmt: skip


def test_the_alignment_does_not_depend_on_chunks() -> None:
    raw = array_source("raw", RAW_SHAPE, (1, 7, 8, 9), offset=(0.0, 0.0, 0.0))
    labels = array_source("labels", LABELS_SHAPE, (3, 4, 5), offset=(400.0, 0.0, 168.0))
    other = dataclasses.replace(raw, chunks=RAW_SHAPE), dataclasses.replace(labels, chunks=LABELS_SHAPE)
    assert align(WHERE, raw, labels) == align(WHERE, *other)
