"""Read crops and channels as they are typed: ``0 5``, ``0-4``, ``0,3``, ``all``; and what names splits can have.

Imports no pydantic, unlike `prismcache.arguments`, since the command line reads these words as it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ALL = "all"
MAX_CROP = 999_999
"""The largest number that a crop can have."""
SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
"""A split's name is that of a folder, and a part of URLs."""
_PART = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?", re.ASCII)


def parse_crops(words: Iterable[str]) -> list[int] | None:
    """Return the crops that the words name, in their order, duplicates kept; None for ``all``.

    Raises
    ------
    ValueError
        If a word names no crops, a range runs backwards, or ``all`` stands beside numbers.

    Examples
    --------
    >>> parse_crops(["5", "0-2,4"])
    [5, 0, 1, 2, 4]
    >>> parse_crops(["all"]) is None
    True
    """
    parts = _parts(words)
    if ALL not in parts:
        return [number for part in parts for number in _numbers(part, "crops")]
    if len(parts) > 1:
        raise ValueError("'all' names every crop already; leave the other crops out")
    return None


def parse_channels(text: str) -> list[int]:
    """Return the channels that the text names.

    Raises
    ------
    ValueError
        If the text names none.

    Examples
    --------
    >>> parse_channels("0,3-5")
    [0, 3, 4, 5]
    """
    return [number for part in _parts([text]) for number in _numbers(part, "channels")]


def _parts(words: Iterable[str]) -> list[str]:
    return [part.strip() for word in words for part in word.split(",")]


def _numbers(part: str, noun: str) -> range:
    match = _PART.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} names no {noun}; write numbers and ranges, such as 0 or 0-4 or 0,3")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise ValueError(f"the range {part!r} runs backwards; write {last}-{first}")
    return range(first, last + 1)
