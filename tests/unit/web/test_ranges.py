"""Which bytes a request for a file asks for, by RFC 9110."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from prismcache import RequestError
from prismcache_service.web.handlers.dependencies import parse_channels
from prismcache_service.web.handlers.ranges import Part, decide

SIZE = 1000
ETAG = '"abc"'
WHOLE = Part(HTTPStatus.OK, 0, SIZE)


def _decide(is_get: bool = True, size: int = SIZE, **headers: str) -> Part:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return decide(Headers(named), is_get=is_get, size=size, etag=ETAG)


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-999", 0, 1000),
        ("bytes=10-", 10, 1000),
        ("bytes=-1", 999, 1000),
        ("bytes=-5000", 0, 1000),
        ("bytes=990-5000", 990, 1000),
        ("BYTES=1-2", 1, 3),
        ("bytes= 1-2 ,", 1, 3),
    ],
)
def test_one_range(wanted: str, start: int, stop: int) -> None:
    assert _decide(range=wanted) == Part(HTTPStatus.PARTIAL_CONTENT, start, stop)


@pytest.mark.parametrize("wanted", ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=0-0,2-2", "bytes=0-,-1"])
def test_ranges_that_cannot_be_had(wanted: str) -> None:
    assert _decide(range=wanted).status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


@pytest.mark.parametrize("wanted", ["bytes=0-0", "bytes=-1", "bytes=0-"])
def test_an_empty_file_has_no_range(wanted: str) -> None:
    assert _decide(size=0, range=wanted).status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


@pytest.mark.parametrize(
    "wanted",
    ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-4", "bytes=1", "chunks=0-1", "bytes=0-1,x", "bytes=1-2-3",
     "bytes=¹-²", "bytes=" + "9" * 40 + "-", "bytes=0x1-2", "bytes=+1-2"],
)  # fmt: skip
def test_what_is_malformed_is_ignored(wanted: str) -> None:
    assert _decide(range=wanted) == WHOLE


def test_head_knows_no_ranges() -> None:
    assert _decide(is_get=False, range="bytes=0-0") == WHOLE


@pytest.mark.parametrize(
    ("validator", "counts"),
    [(ETAG, True), ('"other"', False), (f"W/{ETAG}", False), ("Wed, 21 Oct 2015 07:28:00 GMT", False), ("", False)],
)
def test_if_range(validator: str, counts: bool) -> None:
    found = _decide(range="bytes=1-2", if_range=validator)

    assert found == (Part(HTTPStatus.PARTIAL_CONTENT, 1, 3) if counts else WHOLE)


@pytest.mark.parametrize(
    ("value", "strong", "weak"),
    [
        (ETAG, True, True),
        ("*", True, True),
        (f"W/{ETAG}", False, True),
        (f'"x", {ETAG}', True, True),
        (f'"x,y" , W/"z",{ETAG}', True, True),
        ('"x"', False, False),
        ("abc", False, False),
        ("", False, False),
    ],
)
def test_if_match_is_strong_and_if_none_match_weak(value: str, strong: bool, weak: bool) -> None:
    assert _decide(if_match=value).status == (HTTPStatus.OK if strong else HTTPStatus.PRECONDITION_FAILED)
    assert _decide(if_none_match=value).status == (HTTPStatus.NOT_MODIFIED if weak else HTTPStatus.OK)


def test_conditions_come_before_ranges() -> None:
    assert _decide(if_none_match=ETAG, range="bytes=5000-").status == HTTPStatus.NOT_MODIFIED
    assert _decide(if_match='"x"', if_none_match=ETAG).status == HTTPStatus.PRECONDITION_FAILED


@given(st.text(st.characters(codec="latin-1"), max_size=30), st.integers(0, 2000))
def test_any_header_gives_a_part_within_the_file(text: str, size: int) -> None:
    for wanted in (text, f"bytes={text}"):
        found = _decide(size=size, range=wanted)
        assert 0 <= found.start <= found.stop <= size


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 40))
def test_a_range_is_python_s_slice(first: int, last: int, size: int) -> None:
    found = _decide(size=size, range=f"bytes={first}-{last}")

    if first <= last and first < size:
        assert range(size)[found.start : found.stop] == range(size)[first : last + 1]
    else:
        assert found.status != HTTPStatus.PARTIAL_CONTENT


@pytest.mark.parametrize(
    ("text", "channels"), [(None, None), ("0", (0,)), ("5,0-2", (0, 1, 2, 5)), ("1,1-2,1", (1, 2)), ("007", (7,))]
)
def test_channels_of_a_url(text: str | None, channels: tuple[int, ...] | None) -> None:
    assert parse_channels(text) == channels


@pytest.mark.parametrize("text", ["2-1", "0-9999"])
def test_channels_that_are_none(text: str) -> None:
    with pytest.raises(RequestError, match="channels"):
        parse_channels(text)
