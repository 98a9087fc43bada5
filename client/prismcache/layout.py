"""The file contract: where a cached crop lies, what its HDF5 file holds, and its manifest.

``<root>/<split>/crop_<id>.h5`` holds every channel; ``crop_<id>.ch00-02_05.h5`` only channels 0, 1, 2 and 5.

=================  ==================================================================================
object             content
=================  ==================================================================================
attributes         ``crop_id``, ``split``, ``num_channels``, ``format_version``, ``prismcache_version``,
                   ``source``, ``source_fingerprint``, ``missing_chunks``
``raw/ch_NN``      (Z, Y, X) uint8; NN is the channel's number in the source
``labels``         (Z, Y, X) uint32, consecutive: the n ids of the source in ascending order become 1…n, 0 stays 0
``labels_ids``     (n+1,) uint64: ``labels_ids[labels]`` are the source's ids; entry 0 is 0
on 3-D datasets    integers ``offset``, ``resolution``, ``voxel_size`` (nm; Z,Y,X), ``axis_names``, ``units``
=================  ==================================================================================

Paths, attributes, ``raw/ch_NN`` and ``labels`` are those of torch_em's ``e11bio`` loader, so that it reads our files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import PurePath, PurePosixPath
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from prismcache.schema import CacheState, CropFile, Split

FORMAT_VERSION = 1
STATE_FOLDER = ".prismcache"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
AXIS_NAMES = ("z", "y", "x")
UNITS = ("nm", "nm", "nm")

LABELS = "labels"
LABELS_IDS = "labels_ids"

_MAX_CHANNEL = 9_999  # as `schema.ChannelId`
_FILE_NAME = re.compile(r"crop_(0|[1-9]\d{0,5})(?:\.ch([\d_-]+))?\.h5", re.ASCII)


def raw_dataset(channel: int) -> str:
    """Name of a channel's dataset, e.g. ``raw/ch_03``."""
    return f"raw/ch_{channel:02d}"


def format_channels(channels: Iterable[int]) -> str:
    """Ascending channels as a file name carries them: (0, 1, 2, 5) is ``00-02_05``."""
    chosen = set(channels)
    starts = [c for c in sorted(chosen) if c - 1 not in chosen]
    stops = [c for c in sorted(chosen) if c + 1 not in chosen]
    return "_".join(f"{a:02d}" if a == b else f"{a:02d}-{b:02d}" for a, b in zip(starts, stops, strict=True))


def parse_channels(text: str) -> tuple[int, ...]:
    """The inverse of `format_channels`.

    Raises
    ------
    ValueError
        If the text is not what `format_channels` writes.
    """
    found: list[int] = []
    for part in text.split("_"):
        first, _, last = part.partition("-")
        if int(last or first) > _MAX_CHANNEL:  # a strange file name must not cost memory
            raise ValueError(f"not a list of channels: {text!r}")
        found.extend(range(int(first), int(last or first) + 1))
    if any(a >= b for a, b in pairwise(found)) or format_channels(found) != text:
        raise ValueError(f"not a list of channels: {text!r}")
    return tuple(found)


def crop_file_name(crop: int, channels: Sequence[int] | None = None) -> str:
    """File name of a crop with all its channels (None) or with a subset."""
    subset = "" if channels is None else f".ch{format_channels(channels)}"
    return f"crop_{crop}{subset}.h5"


def parse_crop_file_name(name: str) -> tuple[int, tuple[int, ...] | None] | None:
    """(crop, channels or None for all) of a crop's file name; None for any other name."""
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        return None
    try:
        return int(match[1]), None if match[2] is None else parse_channels(match[2])
    except ValueError:
        return None


def cache_state(files: Iterable[CropFile], *, is_making: bool) -> CacheState:
    """What there is of a crop, from its files and whether an unfinished job lacks it."""
    names = [parse_crop_file_name(PurePath(file.path).name) for file in files]
    if any(name is not None and name[1] is None for name in names):
        return CacheState.CACHED
    if is_making:
        return CacheState.MAKING
    return CacheState.PARTIAL if names else CacheState.ABSENT


def crop_path(split: Split, crop: int, channels: Sequence[int] | None = None) -> PurePosixPath:
    """Path of a crop's file below the root."""
    return PurePosixPath(split.value, crop_file_name(crop, channels))


def manifest_path(split: Split, crop: int, channels: Sequence[int] | None = None) -> PurePosixPath:
    """Path of a crop file's manifest below the root."""
    name = crop_file_name(crop, channels).removesuffix(".h5") + ".json"
    return PurePosixPath(STATE_FOLDER, "manifests", split.value, name)


def sources_path(split: Split, crop: int, channels: Sequence[int] | None = None) -> PurePosixPath:
    """Path, below the root, of the list of source objects that a crop file was made from (`SourceList`)."""
    return manifest_path(split, crop, channels).with_suffix(".sources.json")


class _Record(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, defer_build=True)


class SourceObject(_Record):
    """One object of the source as it was listed: key below the crop's prefix, size in bytes, ETag without quotes."""

    key: str
    size: int
    etag: str


class FileStamp(_Record):
    """What the file system said of a file when its content was last known to be right.

    Never a proof: equal stamps spare a re-read, unequal ones cause it.
    """

    size: int
    mtime_ns: int
    ctime_ns: int


class SourceList(_Record):
    """The objects of a crop's folder as they were listed when the file was made, by key (JSON).

    Beside the manifest rather than in it: a hit reads the manifest, and a thousand ETags would be most of it.
    """

    source_fingerprint: str
    objects: tuple[SourceObject, ...]


class Manifest(_Record):
    """The record beside a published file (JSON). A crop is cached only when both are there and agree."""

    format_version: int
    split: Split
    crop: int
    channels: tuple[int, ...]
    complete: bool
    sha256: str
    size: int
    stamp: FileStamp
    source: str
    endpoint: str
    source_fingerprint: str
    missing_chunks: int
    recipe: str
    prismcache_version: str
    libraries: dict[str, str]
    created_at: str
