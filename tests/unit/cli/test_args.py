"""Crops and channels as they are typed."""

from __future__ import annotations

import pytest

from prismcache.numbers import parse_channels, parse_crops


@pytest.mark.parametrize(
    ("words", "crops"),
    [
        (["0", "5"], [0, 5]),
        (["0-4"], [0, 1, 2, 3, 4]),
        (["0,3"], [0, 3]),
        (["5", "0-2,5"], [5, 0, 1, 2, 5]),
        (["3-3"], [3]),
        (["0, 3"], [0, 3]),
        (["all"], None),
    ],
)
def test_crops(words, crops):
    assert parse_crops(words) == crops


@pytest.mark.parametrize("word", ["", "x", "1.5", "-1", "1-", "-", "0--2", "0,,1", "ALL", "²", "1234567", "1_0"])
def test_what_names_no_crops_is_quoted(word):
    with pytest.raises(ValueError, match="names no crops"):
        parse_crops([word])


def test_ranges_run_forwards():
    with pytest.raises(ValueError, match="'4-0' runs backwards; write 0-4"):
        parse_crops(["4-0"])


@pytest.mark.parametrize("words", [["all", "3"], ["0,all"], ["all", "all"]])
def test_all_stands_alone(words):
    with pytest.raises(ValueError, match="'all' names every crop already"):
        parse_crops(words)


def test_channels():
    assert parse_channels("0,3") == [0, 3]
    assert parse_channels("0-2") == [0, 1, 2]
    for wrong in ("", "all", "a"):
        with pytest.raises(ValueError, match="names no channels"):
            parse_channels(wrong)
