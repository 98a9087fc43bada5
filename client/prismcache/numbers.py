"""Numbers as people write and read them: crops and channels as typed, sizes, rates, durations; and names of splits.

Imports no pydantic, unlike `prismcache.arguments`, since the command line reads such words as it starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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


EXPANSION = 5.0
"""How many times larger the imaged tissue is than in the brain: PRISM expands it about five times."""

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def format_bytes(count: float) -> str:
    """`count` bytes in decimal units, as disks and networks are sold.

    Examples
    --------
    >>> format_bytes(999), format_bytes(1_640_000_000)
    ('999 B', '1.6 GB')
    """
    if count < 1000:
        return f"{count:.0f} B"
    power = 1
    while count >= 999.5 * 1000**power and power < len(_UNITS):
        power += 1
    number = count / 1000**power
    return f"{number:.1f} {_UNITS[power - 1]}" if number < 99.95 else f"{number:.0f} {_UNITS[power - 1]}"


def format_rate(count: float, seconds: float) -> str:
    """`count` bytes in `seconds`, per second.

    Examples
    --------
    >>> format_rate(3_000_000, 2)
    '1.5 MB/s'
    """
    return f"{format_bytes(count / max(seconds, 1e-3))}/s"


def format_duration(seconds: float) -> str:
    """Seconds, or minutes or hours where these say more.

    Examples
    --------
    >>> format_duration(4.25), format_duration(75), format_duration(7500)
    ('4.2 s', '1:15 min', '2:05 h')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def format_shape(shape: Sequence[int]) -> str:
    """Return the extents of an array for a person.

    Examples
    --------
    >>> format_shape((200, 500, 500))
    '200 × 500 × 500'
    """
    return " × ".join(map(str, shape))


def format_voxel_size(voxel_size: Sequence[float], expansion: float = EXPANSION) -> str:
    """Return the size of a voxel for a person, in the expanded tissue and in the brain.

    Parameters
    ----------
    voxel_size
        (Z, Y, X) in nm of the expanded tissue.
    expansion
        How many times larger the expanded tissue is.

    Examples
    --------
    >>> format_voxel_size((400, 168, 168))
    '400 × 168 × 168 nm expanded, ≈ 80 × 34 × 34 nm in tissue'
    """
    expanded = " × ".join(f"{size:g}" for size in voxel_size)
    tissue = " × ".join(f"{size / expansion:.0f}" for size in voxel_size)
    return f"{expanded} nm expanded, ≈ {tissue} nm in tissue"
