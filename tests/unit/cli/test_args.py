"""Crops and channels as they are typed; `tests/unit/shared/test_arguments.py` has what Python callers may write."""

from __future__ import annotations

import pytest

from prismcache.numbers import parse_channels, parse_crops


@pytest.mark.parametrize(
    ("words", "crops"),
    [(["0", "5"], [0, 5]), (["5", "0-2,5"], [5, 0, 1, 2, 5]), (["3-3"], [3]), (["0, 3"], [0, 3]), (["all"], None)],
)
def test_crops(words, crops):
    assert parse_crops(words) == crops


@pytest.mark.parametrize(
    ("words", "message"),
    [
        *(([word], "names no crops") for word in ("", "x", "1.5", "-1", "1-", "-", "0--2", "0,,1", "ALL", "²", "1_0")),
        *((words, "'all' names every crop already") for words in (["all", "3"], ["0,all"], ["all", "all"])),
        (["4-0"], "'4-0' runs backwards; write 0-4"),
        (["1234567"], "names no crops"),
    ],
)
def test_words_that_name_no_crops_are_quoted(words, message):
    with pytest.raises(ValueError, match=message):
        parse_crops(words)


def test_channels():
    assert parse_channels("0,2-3") == [0, 2, 3]
    for wrong in ("", "all", "a"):
        with pytest.raises(ValueError, match="names no channels"):
            parse_channels(wrong)
