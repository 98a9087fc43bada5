"""Splits, crops and channels as callers write them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from prismcache.arguments import as_channels, as_context, as_crops, as_split
from prismcache.client.flow import plan_ensure
from prismcache.errors import RequestError, UnknownChannelError, UnknownCropError, UnknownSplitError
from prismcache.schema import Split


@pytest.mark.parametrize(
    ("given", "crops"),
    [
        (None, None),
        (3, (3,)),
        ([5, 0, 5], (5, 0, 5)),
        (range(3), (0, 1, 2)),
        ((n for n in (2, 1)), (2, 1)),
        ([], ()),
        (np.int64(4), (4,)),
        (np.array(4), (4,)),
        (np.array([4], dtype=np.uint8), (4,)),
        (np.arange(2), (0, 1)),
        ("1", (1,)),
        ("0-2, 7", (0, 1, 2, 7)),
        ("all", None),
    ],
)
def test_crops_are_integers_in_any_form(given, crops):
    assert as_crops(given) == crops


@pytest.mark.parametrize("given", [True, [True], np.bool_(1), b"1", ["1"], 1.0, [1.5], [None], object(), [[1]]])
def test_a_value_that_is_no_integer_is_refused(given):
    with pytest.raises(RequestError, match="integer") as caught:
        as_crops(given)
    assert type(caught.value) is RequestError


@pytest.mark.parametrize("text", ["", "first", "3-1", "all,1", "-1"])
def test_text_that_names_no_crops_is_refused(text):
    with pytest.raises(RequestError):
        as_crops(text)


@pytest.mark.parametrize("crop", [-1, 1_000_000, 2**70])
def test_numbers_that_no_crop_can_have_are_named(crop):
    with pytest.raises(UnknownCropError, match=f"no crop {crop};"):
        as_crops([0, crop])


def test_more_crops_than_a_request_may_hold_are_refused():
    assert len(as_crops(list(range(1000)) * 2) or ()) == 2000
    with pytest.raises(RequestError, match="more than 1000 crops"):
        as_crops(itertools.count())


@pytest.mark.parametrize(("given", "channels"), [(None, None), (2, (2,)), ([3, 1, 3], (1, 3)), ({0}, (0,))])
def test_channels_ascend_and_count_once(given, channels):
    assert as_channels(given) == channels


def test_a_context_may_be_an_array():
    assert as_context(np.array([1, 2, 3])) == (1, 2, 3)


def test_channels_that_cannot_be_meant_are_refused():
    with pytest.raises(RequestError, match="no channel is asked for"):
        as_channels([])
    with pytest.raises(UnknownChannelError, match="no channel -1;"):
        as_channels([-1])
    with pytest.raises(UnknownChannelError, match="no channel 10000;"):
        as_channels(10_000)


def test_a_split_is_a_name_or_a_member():
    assert as_split("instance") is as_split(Split.INSTANCE) is Split.INSTANCE
    assert as_split("mito") == Split("mito") == "mito"  # a lab's own catalog may have it
    for wrong in ("Instance", "", "../etc", "a" * 41, 3, None):
        with pytest.raises(UnknownSplitError, match=r"is not a split; the splits are 'instance', 'semantic'") as caught:
            as_split(wrong)
        assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("timeout", [-1, float("nan"), -0.1, "5"])
def test_a_timeout_is_not_negative(timeout):
    with pytest.raises(RequestError, match="timeout must be 0 or more"):
        plan_ensure("instance", 0, timeout=timeout)


def test_the_request_holds_each_crop_once():
    plan = plan_ensure("semantic", [5, 0, 5], channels=[2, 1], strict=True)
    assert plan.request.crops == (5, 0)
    assert plan.request.channels == (1, 2)
    assert plan.request.strict
    assert plan.crops == (5, 0, 5)
    assert plan.times_asked(5) == 2
