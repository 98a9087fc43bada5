"""How far a crop is, and what has been moved for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prismcache.schema import Progress

Report = Callable[[Progress], None]


@dataclass
class Moved:
    """Bytes that have gone through each stage of the stream so far.

    Attributes
    ----------
    fetched
        Of objects, as stored.
    decoded
        Of voxels in blocks, before deflate.
    deflated, written
        Of HDF5 chunks.
    """

    fetched: int = 0
    decoded: int = 0
    deflated: int = 0
    written: int = 0
