"""Consecutive labels in the reference's order, for any ids."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.segmentation import relabel_sequential

from prismcache.errors import InvalidSourceError
from prismcache_service.pipeline.codec import relabelling
from prismcache_service.pipeline.codec.relabelling import Runs, id_table, relabel, unique_ids

SHAPES = arrays.array_shapes(min_dims=3, max_dims=3, max_side=6)
HUGE = st.sampled_from([0, 1, 2, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]) | st.integers(
    0, 2**64 - 1
)


def relabelled(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    runs = Runs.of(labels)
    table = id_table([unique_ids(runs)])
    found = relabel(runs, table)
    np.testing.assert_array_equal(relabel(Runs.unpack(memoryview(runs.pack()), labels.shape), table), found)
    return found, table


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")  # scikit-image 0.26 with numpy 2.5
@given(arrays.arrays(np.int64, SHAPES, elements=st.integers(0, 50)))
@example(np.zeros((2, 2, 2), np.int64))
@example(np.full((2, 2, 2), 7, np.int64))
def test_small_ids_become_what_skimage_makes_of_them(labels: np.ndarray) -> None:
    found, table = relabelled(labels)
    expected, _, inverse = relabel_sequential(labels)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(table, np.asarray(inverse[np.arange(expected.max() + 1)], np.uint64))


@given(arrays.arrays(np.uint64, SHAPES, elements=HUGE))
@example(np.array([[[2**64 - 1, 0, 2**40]]], np.uint64))
def test_huge_ids_become_their_rank_and_come_back_bit_for_bit(labels: np.ndarray) -> None:
    found, table = relabelled(labels)
    ids, inverse = np.unique(labels, return_inverse=True)
    np.testing.assert_array_equal(found, inverse.reshape(labels.shape) + (0 if ids[0] == 0 else 1))
    np.testing.assert_array_equal(table[found], labels)
    assert (found.dtype, table.dtype, table[0]) == (np.uint32, np.uint64, 0)


@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2", "<u4", ">u4", "<u8", ">u8", "|i1", "<i4", ">i4", "<i8", ">i8"])
def test_every_integer_type_and_byte_order_gives_the_same(dtype: str) -> None:
    labels = np.array([[[100, 100, 0], [3, 0, 127]]], dtype)
    found, table = relabelled(labels)
    assert found.tolist() == [[[2, 2, 0], [1, 0, 3]]]
    assert table.tolist() == [0, 3, 100, 127]
    assert found.dtype == np.dtype("uint32")


@given(arrays.arrays(np.uint64, SHAPES, elements=HUGE), st.integers(0, 2))
def test_ids_found_part_by_part_are_those_of_the_whole(labels: np.ndarray, axis: int) -> None:
    parts = [unique_ids(Runs.of(part)) for part in np.array_split(labels, 3, axis) if part.size]
    np.testing.assert_array_equal(id_table(parts), id_table([unique_ids(Runs.of(labels))]))


@given(arrays.arrays(np.uint64, SHAPES, elements=HUGE), st.permutations([0, 1, 2]))
def test_views_that_are_not_contiguous_count_by_their_voxels(labels: np.ndarray, axes: list[int]) -> None:
    view = labels.transpose(axes)[::-1]
    runs = Runs.of(view)
    np.testing.assert_array_equal(unique_ids(runs), np.unique(view))
    table = id_table([unique_ids(Runs.of(labels))])
    np.testing.assert_array_equal(table[relabel(runs, table)], view)


def test_a_fill_value_broadcast_to_a_chunk_is_one_id() -> None:
    chunk = np.broadcast_to(np.array(9, "<u8"), (4, 5, 6))
    found, table = relabelled(chunk)
    assert table.tolist() == [0, 9]
    assert found.shape == (4, 5, 6)
    assert (found == 1).all()


@pytest.mark.parametrize("dtype", ["|i1", "<i4", ">i8"])
def test_a_negative_id_is_refused_by_its_value(dtype: str) -> None:
    with pytest.raises(InvalidSourceError, match=r"(?m)negative id -5$"):
        Runs.of(np.array([[[3, 0, -5, -1]]], dtype))


def test_more_ids_than_labels_can_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relabelling, "_MAX_IDS", 3)
    assert len(id_table([np.array([7, 8, 9], np.uint64)])) == 4
    with pytest.raises(InvalidSourceError, match="4 ids, more than uint32 can number"):
        id_table([np.array([7, 8], np.uint64), np.array([9, 10], np.uint64)])


def test_huge_ids_cost_no_more_memory_than_small_ones() -> None:
    labels = np.repeat(np.array([2**64 - 1, 2**40, 5], np.uint64), 1000).reshape(3, 10, 100)
    tracemalloc.start()
    try:
        relabelled(labels)
        assert tracemalloc.get_traced_memory()[1] < 20 * labels.nbytes
    finally:
        tracemalloc.stop()
