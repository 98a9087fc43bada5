"""Which patch comes next, and which channels and shapes are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prismcache.errors import RequestError, UnknownChannelError
from prismcache.torch.patches import Grid, choose_channels, interleave, patches_to_cover, random_box, share

EXTENT = st.tuples(*[st.integers(1, 40)] * 3)


@given(EXTENT, EXTENT)
def test_a_grid_covers_the_crop_with_patches_that_stay_inside(shape, patch) -> None:
    patch = tuple(map(min, patch, shape))
    grid = Grid(tuple(slice(7, 7 + extent) for extent in shape), patch)
    covered = [np.zeros(7 + extent, bool) for extent in shape]
    for number in range(len(grid)):
        for axis, part in enumerate(grid.box(number)):
            assert 7 <= part.start < part.stop == part.start + patch[axis] <= 7 + shape[axis]
            covered[axis][part] = True
    assert all(axis[7:].all() for axis in covered)


@given(EXTENT, EXTENT, st.integers(0, 99))
def test_a_random_box_stays_inside(shape, patch, seed) -> None:
    patch = tuple(map(min, patch, shape))
    within = tuple(slice(3, 3 + extent) for extent in shape)
    for part, extent, size in zip(random_box(np.random.default_rng(seed), within, patch), shape, patch, strict=True):
        assert 3 <= part.start <= 3 + extent - size
        assert part.stop - part.start == size


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_interleaved_crops_come_as_often_as_asked_and_evenly(counts) -> None:
    order = interleave(counts)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    for crop, count in enumerate(counts):
        places = np.flatnonzero(order == crop)
        assert count < 2 or np.diff(places).max() <= 2 * len(order) / count + len(counts)


def test_lengths_are_those_of_torch_em() -> None:
    assert patches_to_cover((200, 500, 500), (32, 256, 256)) == 24
    assert share(5, 3) == [2, 2, 1]


def test_channels_that_no_crop_shares_or_that_are_named_twice_are_refused() -> None:
    with pytest.raises(UnknownChannelError, match="no channel in common"):
        choose_channels("common", {"a": (0,), "b": (1,)})
    with pytest.raises(RequestError, match="name a channel twice"):
        choose_channels([0, 0], {"a": (0,)})
    assert choose_channels((3, 1), {"a": range(4), "b": range(5)}) == (3, 1)
    assert choose_channels(np.int64(2), {"a": range(4)}) == (2,)
