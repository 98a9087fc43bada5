"""The file contract: where a cached crop lies, what its HDF5 file holds, and its manifest.

``<root>/<split>/crop_<id>.h5`` holds every channel; ``crop_<id>.ch00-02_05.h5`` only channels 0, 1, 2 and 5.
With context, raw reaches beyond the labels: ``crop_<id>.ctx16-46-46.h5`` by at most 16 voxels in Z and 46 in Y and X on
each side, ``crop_<id>.ctx-all.h5`` as far as the source has raw; ``crop_<id>.ch00-02.ctx-all.h5`` has both. Products
are ``crop_<id>.<product>.h5``, facts are ``crop_<id>.facts.json``.

=================  ==================================================================================
object             content
=================  ==================================================================================
attributes         ``crop_id``, ``split``, ``num_channels``, ``format_version``, ``prismcache_version``,
                   ``source``, ``source_fingerprint``, ``missing_chunks``
``raw/ch_NN``      (Z, Y, X) uint8; NN is the channel's number in the source
``labels``         (Z, Y, X) uint32, consecutive: the n ids of the source in ascending order become 1…n, 0 stays 0
``labels_ids``     (n+1,) uint64: ``labels_ids[labels]`` are the source's ids; entry 0 is 0
on 3-D datasets    integers ``offset``, ``resolution``, ``voxel_size`` (nm; Z,Y,X), ``axis_names``, ``units``; with
                   context, raw has an ``offset`` and a shape of its own. Where nm are not whole, these are rounded
                   and floats ``offset_nm`` and ``voxel_size_nm`` are beside; where the source has no voxel size,
                   ``units`` are "voxel", ``offset`` is 0 and ``voxel_size`` 1
=================  ==================================================================================

After HDF5's last byte follows a checksum of everything except the chunks: see `prismcache.crop.seal`.

Paths, attributes, ``raw/ch_NN`` and ``labels`` are those of torch_em's ``e11bio`` loader, so that it reads our files.
"""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path, PurePath, PurePosixPath
from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from prismcache.schema import NO_CONTEXT, CacheState, Context, CropFile, Product, Split

FORMAT_VERSION = 2
STATE_FOLDER = ".prismcache"
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
AXIS_NAMES = ("z", "y", "x")
UNITS = ("nm", "nm", "nm")
VOXEL_UNITS = ("voxel", "voxel", "voxel")  # of a file whose source gives no voxel size

LABELS = "labels"
LABELS_IDS = "labels_ids"

_MAX_CHANNEL = 9_999  # as `schema.ChannelId`
_NUMBER = r"(?:0|[1-9]\d{0,5})"
_FILE_NAME = re.compile(
    rf"crop_(?P<crop>{_NUMBER})(?:"
    rf"(?:\.ch(?P<channels>[\d_-]+))?(?:\.ctx(?P<context>-all|{_NUMBER}-{_NUMBER}-{_NUMBER}))?\.h5"
    rf"|\.(?P<product>{'|'.join(p for p in Product if p not in (Product.CROP, Product.FACTS))})\.h5"
    r"|\.(?P<facts>facts)\.json)",
    re.ASCII,
)


class FileName(NamedTuple):
    """What a file name in the cache says: which crop, which channels (None: all), what context, which product."""

    crop: int
    channels: tuple[int, ...] | None = None
    context: Context = NO_CONTEXT
    product: Product = Product.CROP


def raw_dataset(channel: int) -> str:
    """Name of a channel's dataset, e.g. ``raw/ch_03``."""
    return f"raw/ch_{channel:02d}"


def product_datasets(product: Product, channels: Iterable[int]) -> tuple[str, ...]:
    """Return the names of the datasets in a product's file; ``avg_barcodes`` has one for each channel."""
    if product is Product.AVG_BARCODES:
        return tuple(f"avg_barcodes/ch_{channel:02d}" for channel in channels)
    return (product.value,)


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


def crop_file_name(
    crop: int,
    channels: Sequence[int] | None = None,
    context: Context = NO_CONTEXT,
    product: Product = Product.CROP,
) -> str:
    """Return the name of a crop's file, or of a product made from the whole crop.

    Parameters
    ----------
    crop
        The crop's number.
    channels
        The channels in the file; None for all.
    context
        Voxels (Z, Y, X) that raw reaches beyond the labels on each side, or ``"all"``.
    product
        What the file holds; products other than ``crop`` have neither channels nor context in their names.

    Raises
    ------
    ValueError
        If channels or context are given for a product other than ``crop``.
    """
    if product is not Product.CROP:
        if channels is not None or context != NO_CONTEXT:
            raise ValueError(f"product {product.value!r} is made from the whole crop, without channels or context")
        return f"crop_{crop}.{product.value}.{'json' if product is Product.FACTS else 'h5'}"
    subset = "" if channels is None else f".ch{format_channels(channels)}"
    reach = "" if context == NO_CONTEXT else ".ctx-all" if context == "all" else f".ctx{'-'.join(map(str, context))}"
    return f"crop_{crop}{subset}{reach}.h5"


def parse_file_name(name: str) -> FileName | None:
    """Return what a name given by `crop_file_name` says; None for any other name."""
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        return None
    try:
        channels = None if match["channels"] is None else parse_channels(match["channels"])
    except ValueError:
        return None
    context: Context = NO_CONTEXT
    if match["context"] == "-all":
        context = "all"
    elif match["context"] is not None:
        z, y, x = map(int, match["context"].split("-"))
        context = z, y, x
    found = FileName(int(match["crop"]), channels, context, Product(match["product"] or match["facts"] or "crop"))
    return found if crop_file_name(*found) == name else None  # .ctx0-0-0 is no file's name


def parse_manifest_name(name: str) -> FileName | None:
    """Return what the name of a file's manifest says; None for any other name."""
    return parse_file_name(name) or parse_file_name(f"{name.removesuffix('.json')}.h5")


def covers(held: Context, wanted: Context) -> bool:
    """Return whether a file with the context `held` serves a request for `wanted`.

    More context serves a request for less, but no context is only served by raw of the labels' shape.
    """
    if NO_CONTEXT in (held, wanted):
        return held == wanted
    if held == "all" or wanted == "all":
        return held == "all"
    return all(a >= b for a, b in zip(held, wanted, strict=True))


def parse_crop_file_name(name: str) -> tuple[int, tuple[int, ...] | None] | None:
    """Return (crop, channels or None for all) of a crop's file without context; None for any other name."""
    found = parse_file_name(name)
    is_plain = found is not None and found.context == NO_CONTEXT and found.product is Product.CROP
    return (found.crop, found.channels) if found is not None and is_plain else None


def file_bytes_bound(shape: Sequence[int], channels: int) -> int:
    """Return more bytes than the file of a crop of (Z, Y, X) voxels can take: deflate of noise adds less than 1 %."""
    return math.prod(shape) * (channels + 4) * 101 // 100 + (4 << 20)


def cache_state(files: Iterable[CropFile], *, is_making: bool) -> CacheState:
    """What there is of a crop, from its files and whether an unfinished job lacks it."""
    names = [parse_crop_file_name(PurePath(file.path).name) for file in files]
    if any(name is not None and name[1] is None for name in names):
        return CacheState.CACHED
    if is_making:
        return CacheState.MAKING
    return CacheState.PARTIAL if names else CacheState.ABSENT


def crop_path(
    split: Split,
    crop: int,
    channels: Sequence[int] | None = None,
    context: Context = NO_CONTEXT,
    product: Product = Product.CROP,
) -> PurePosixPath:
    """Return the path of a crop's file below the root; parameters and errors are those of `crop_file_name`."""
    return PurePosixPath(split.value, crop_file_name(crop, channels, context, product))


def manifest_path(
    split: Split,
    crop: int,
    channels: Sequence[int] | None = None,
    context: Context = NO_CONTEXT,
    product: Product = Product.CROP,
) -> PurePosixPath:
    """Return the path of a file's manifest below the root; parameters and errors are those of `crop_file_name`."""
    name = PurePosixPath(crop_file_name(crop, channels, context, product)).with_suffix(".json")
    return PurePosixPath(STATE_FOLDER, "manifests", split.value, name)


def claim_path(split: Split) -> PurePosixPath:
    """Return the path, below the root, of the entry of a lab's own split that the folder's files are made from."""
    return PurePosixPath(STATE_FOLDER, "splits", f"{split.value}.json")


def sources_path(
    split: Split,
    crop: int,
    channels: Sequence[int] | None = None,
    context: Context = NO_CONTEXT,
    product: Product = Product.CROP,
) -> PurePosixPath:
    """Return the path, below the root, of the list of source objects that a file was made from (`SourceList`)."""
    return manifest_path(split, crop, channels, context, product).with_suffix(".sources.json")


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
    """The record beside a published file (JSON). A crop is cached only when both are there and agree.

    `crop_sha256` is that of the crop's file that a product was made from; empty for crops. `definition` is that of the
    split's entry in a lab's own catalog (`splits.SplitEntry.definition`); empty for the published splits.
    """

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
    notes: tuple[str, ...] = ()
    context: Context = NO_CONTEXT
    product: Product = Product.CROP
    crop_sha256: str = ""
    definition: str = ""

    def file_at(self, path: PurePath) -> CropFile:
        """Return the file that this manifest describes as clients know it, at `path`."""
        return CropFile(
            split=self.split,
            crop=self.crop,
            channels=self.channels,
            path=str(path),
            size=self.size,
            sha256=self.sha256,
            missing_chunks=self.missing_chunks,
            source_fingerprint=self.source_fingerprint,
            notes=self.notes,
            context=self.context,
            product=self.product,
        )


def manifest_of(path: Path) -> Manifest | None:
    """Return the manifest of a file in a cache folder; None if it does not exist or cannot be read."""
    parsed = parse_file_name(path.name)
    try:
        split = Split(path.parent.name)
        place = path.parent.parent / manifest_path(split, *parsed) if parsed is not None else None
        return None if place is None else Manifest.model_validate_json(place.read_bytes())
    except (OSError, ValueError):
        return None
