"""Bytes, rates and durations as people read them."""

from __future__ import annotations

from collections.abc import Sequence

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
