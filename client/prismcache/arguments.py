"""Read the arguments of a request: splits, crops and channels as people and numpy write them.

Pure: nothing here looks at a catalog. The backend raises for a crop or channel that does not exist.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import SupportsIndex, TypeAlias, TypeGuard, TypeVar, cast

from pydantic import ValidationError

from prismcache.errors import RequestError, UnknownChannelError, UnknownCropError
from prismcache.numbers import MAX_CROP, parse_channels, parse_crops
from prismcache.schema import Context, JobRequest, Product, Split

T = TypeVar("T")

Numbers: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | str
"""One number or several; also numpy's integers and arrays of integers, and text such as ``"0-4,7"``."""

MAX_CHANNEL = 9_999
MAX_CONTEXT = 99_999
MAX_COUNT = 1000


def as_split(value: str | Split) -> Split:
    """Return the split that `value` names; the backend raises `UnknownSplitError` for one that its catalog lacks.

    Raises
    ------
    UnknownSplitError
        If no split can have this name; the message names the published ones.

    Examples
    --------
    >>> as_split("semantic")
    <Split.SEMANTIC: 'semantic'>
    """
    try:
        return Split(value)
    except ValueError:
        from prismcache.catalog import published  # here, since most programs need no catalog

        raise published().unknown(value) from None


def as_crops(value: Numbers | None) -> tuple[int, ...] | None:
    """Return crop numbers as asked, order and duplicates kept; None, which means all crops, for None and ``"all"``.

    Raises
    ------
    UnknownCropError
        If a number is negative or larger than any crop's.
    RequestError
        If a value is not an integer (True is not crop 1), or there are more than 1000.

    Examples
    --------
    >>> as_crops([5, 0, 5])
    (5, 0, 5)
    >>> as_crops("0-2,7")
    (0, 1, 2, 7)
    """
    if isinstance(value, str):
        value = _typed(lambda text: parse_crops([text]), value)
    if value is None:
        return None
    crops = _integers(value, "crop")
    for crop in crops:
        if not 0 <= crop <= MAX_CROP:
            raise UnknownCropError(f"there is no crop {crop}; crops are numbered from 0")
    return crops


def as_channels(value: Numbers | None) -> tuple[int, ...] | None:
    """Return channel numbers, ascending, each once; None, which means all channels, for None.

    Raises
    ------
    UnknownChannelError
        If a number is negative or larger than any channel's.
    RequestError
        If a value is not an integer, or no channel is given.

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
        value = _typed(parse_channels, value)
    channels = tuple(sorted(set(_integers(value, "channel"))))
    if not channels:
        raise RequestError(
            "no channel is asked for", remedy="Name at least one, or leave channels out for all of them."
        )
    for channel in channels:
        if not 0 <= channel <= MAX_CHANNEL:
            raise UnknownChannelError(f"there is no channel {channel}; channels are numbered from 0")
    return channels


def as_context(value: Numbers | str) -> Context:
    """Return a context: (Z, Y, X) voxels for one number, three numbers or text such as "16,46,46"; or "all".

    Raises
    ------
    RequestError
        If the value has another form, or a number is negative or above 99 999.

    Examples
    --------
    >>> as_context(16), as_context("16,46,46"), as_context("all")
    ((16, 16, 16), (16, 46, 46), 'all')
    """
    if isinstance(value, str) and value == "all":
        return "all"
    numbers: tuple[int, ...] = ()
    if isinstance(value, str):
        parts = value.split(",")
        if all(part.strip().isascii() and part.strip().isdigit() for part in parts):
            numbers = tuple(int(part) for part in parts)
    else:
        numbers = tuple(_integers(value, "voxel"))
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != len("ZYX") or not all(0 <= n <= MAX_CONTEXT for n in numbers):
        raise RequestError(
            f"context must be voxels in Z, Y and X, from 0 to {MAX_CONTEXT}, or 'all', not {value!r}",
            remedy="Write for example 16, (16, 46, 46) or 'all'.",
        )
    z, y, x = numbers
    return z, y, x


def job_request(
    split: str | Split,
    crops: tuple[int, ...] | None,
    channels: Numbers | None,
    *,
    strict: bool,
    context: Numbers | str = 0,
    product: str | Product = Product.CROP,
) -> JobRequest:
    """Return the request for `crops`, each once; the client keeps the order and the duplicates.

    Raises
    ------
    RequestError
        If an argument is invalid, or a product is asked for that a published split does not have.
    """
    try:
        wanted = Product(product)
    except ValueError:
        raise RequestError(f"there is no product {product!r}; there are {', '.join(Product)}") from None
    if wanted is not Product.CROP:
        from prismcache.catalog import published

        entry = published().get(as_split(split))
        if entry is not None:
            entry.check_product(wanted)
    try:
        return JobRequest(
            split=as_split(split),
            crops=None if crops is None else tuple(dict.fromkeys(crops)),
            channels=as_channels(channels),
            strict=strict,
            context=as_context(context),
            product=wanted,
        )
    except ValidationError as error:  # what is checked above cannot be it
        raise RequestError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _typed(parse: Callable[[str], T], text: str) -> T:
    """Return what `text` names; raise `RequestError` if it names nothing."""
    try:
        return parse(text)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _integers(value: SupportsIndex | Iterable[SupportsIndex], noun: str) -> tuple[int, ...]:
    if isinstance(value, bytes):
        raise RequestError(f"{noun}s must be integers, not {value!r}")
    found: set[int] = set()
    numbers: list[int] = []
    for item in [value] if _is_index(value) or not isinstance(value, Iterable) else value:
        if isinstance(item, bool) or not _is_index(item):  # bool is an integer in Python
            raise RequestError(f"a {noun} must be an integer, not {item!r}")
        numbers.append(operator.index(item))
        found.add(numbers[-1])
        if len(found) > MAX_COUNT:  # told at once: the items may have no end
            raise RequestError(f"more than {MAX_COUNT} {noun}s are asked for at once")
    return tuple(numbers)


def _is_index(value: object) -> TypeGuard[SupportsIndex]:
    """Return whether Python takes `value` as an index. A numpy array of one dimension has ``__index__`` but raises."""
    try:
        operator.index(cast("SupportsIndex", value))
    except TypeError:
        return False
    return True
