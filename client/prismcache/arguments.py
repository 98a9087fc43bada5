"""Read what a caller asks for: splits, crops and channels as people and numpy write them.

Pure: no catalog is looked at. Whether a crop or channel exists is for the backend to say.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import SupportsIndex, TypeAlias, TypeGuard, cast

from prismcache.errors import RequestError, UnknownChannelError, UnknownCropError, UnknownSplitError
from prismcache.numbers import parse_channels
from prismcache.schema import JobRequest, Split

Numbers: TypeAlias = SupportsIndex | Iterable[SupportsIndex]
"""One number or several; numpy's integers and integer arrays are meant too."""

MAX_CROP = 999_999
MAX_CHANNEL = 9_999
MAX_COUNT = 1000


def as_split(value: str | Split) -> Split:
    """The split that `value` names.

    Raises
    ------
    UnknownSplitError
        If there is no such split; names those that exist.

    Examples
    --------
    >>> as_split("semantic")
    <Split.SEMANTIC: 'semantic'>
    """
    try:
        return Split(value)
    except ValueError:
        known = " and ".join(repr(split.value) for split in Split)
        raise UnknownSplitError(f"there is no split {value!r}; the splits are {known}") from None


def as_crops(value: Numbers | None) -> tuple[int, ...] | None:
    """Crop numbers as asked, order and duplicates kept; None stays None, which means all.

    Raises
    ------
    UnknownCropError
        If a number is negative or larger than any crop's.
    RequestError
        If something is no integer (True is not crop 1), or there are more than 1000.

    Examples
    --------
    >>> as_crops([5, 0, 5])
    (5, 0, 5)
    >>> as_crops(3)
    (3,)
    """
    if value is None:
        return None
    crops = _integers(value, "crop")
    for crop in crops:
        if not 0 <= crop <= MAX_CROP:
            raise UnknownCropError(f"there is no crop {crop}; crops are numbered from 0")
    return crops


def as_channels(value: Numbers | str | None) -> tuple[int, ...] | None:
    """Channel numbers, ascending, each once; None stays None, which means all.

    Raises
    ------
    UnknownChannelError
        If a number is negative or larger than any channel's.
    RequestError
        If something is no integer, or there is none at all.

    Examples
    --------
    >>> as_channels([2, 0, 2])
    (0, 2)
    >>> as_channels("0-2,5")
    (0, 1, 2, 5)
    """
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = parse_channels(value)
        except ValueError as error:
            raise RequestError(str(error)) from None
    channels = tuple(sorted(set(_integers(value, "channel"))))
    if not channels:
        raise RequestError(
            "no channel is asked for", remedy="Name at least one, or leave channels out for all of them."
        )
    for channel in channels:
        if not 0 <= channel <= MAX_CHANNEL:
            raise UnknownChannelError(f"there is no channel {channel}; channels are numbered from 0")
    return channels


def job_request(
    split: str | Split, crops: tuple[int, ...] | None, channels: Numbers | str | None, *, strict: bool
) -> JobRequest:
    """The request for `crops` (each once, as the order and duplicates are the caller's own affair)."""
    unique = None if crops is None else tuple(dict.fromkeys(crops))
    return JobRequest(split=as_split(split), crops=unique, channels=as_channels(channels), strict=strict)


def _integers(value: Numbers, noun: str) -> tuple[int, ...]:
    if isinstance(value, str | bytes):
        raise RequestError(f"{noun}s must be integers, not {value!r}")
    items = [value] if _is_index(value) or not isinstance(value, Iterable) else value
    found = tuple(_integer(item, noun) for item in items)
    if len(set(found)) > MAX_COUNT:
        raise RequestError(f"{len(set(found))} {noun}s are asked for at once; at most {MAX_COUNT} can be")
    return found


def _is_index(value: object) -> TypeGuard[SupportsIndex]:
    """Whether Python would take `value` as an index. A numpy array of one dimension has ``__index__`` but refuses."""
    try:
        operator.index(cast("SupportsIndex", value))
    except TypeError:
        return False
    return True


def _integer(value: object, noun: str) -> int:
    """`value` as int; bool is refused, although Python counts it among the integers."""
    if isinstance(value, bool) or not _is_index(value):
        raise RequestError(f"a {noun} must be an integer, not {value!r}")
    return operator.index(value)
