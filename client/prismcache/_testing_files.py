"""Small crop files in the published format. The first file imports h5py and numpy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismcache.backend import service_part
from prismcache.catalog import published
from prismcache.disk import sha256_of, stamp_of, write_atomically
from prismcache.errors import CropNotCachedError, PrismError, RequestError, UnknownChannelError, UnknownCropError
from prismcache.layout import (
    AXIS_NAMES,
    FORMAT_VERSION,
    LABELS,
    LABELS_IDS,
    UNITS,
    FileName,
    Manifest,
    cache_state,
    covers,
    crop_path,
    manifest_path,
    raw_dataset,
)
from prismcache.schema import (
    NO_CONTEXT,
    ArrayInfo,
    Context,
    CropFile,
    CropInfo,
    JobRequest,
    Product,
    Split,
    Verdict,
    VerifyResult,
)
from prismcache.splits import SplitEntry, Splits

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from numpy.typing import NDArray

SHAPE = (3, 8, 24, 24)
"""(C, Z, Y, X) of a made-up crop, without its context."""
REACH = (2, 8, 8)
"""Voxels (Z, Y, X) that a made-up crop's raw reaches beyond its labels on each side."""

VOXEL_SIZE = (400, 168, 168)
SOURCE = "memory"


@dataclass(frozen=True)
class CropArrays:
    """One crop's arrays: `raw` (C, Z, Y, X) uint8 and `labels` (Z, Y, X) of any unsigned ids, of one box.

    `wide` is raw with its context, and has the labels' box in its middle; None if there is no context. `labels` is None
    in a split without labels. `others` are further arrays by name, (Z, Y, X), each in the middle of all of raw. `entry`
    is what the catalog says of the split.
    """

    raw: NDArray[np.uint8]
    labels: NDArray[np.uint64] | None
    wide: NDArray[np.uint8] | None = None
    others: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    entry: SplitEntry = SplitEntry("")  # noqa: RUF009 - it is frozen

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(range(len(self.raw)))

    @property
    def raw_shape(self) -> tuple[int, int, int, int]:
        """(C, Z, Y, X) of raw with its context."""
        c, z, y, x = (self.raw if self.wide is None else self.wide).shape
        return c, z, y, x

    @property
    def reach(self) -> tuple[int, ...]:
        """Voxels (Z, Y, X) that raw reaches beyond the labels on each side; 0 in a split without labels."""
        return (0, 0, 0) if self.labels is None else self.start(self.labels.shape)

    def start(self, shape: Sequence[int]) -> tuple[int, ...]:
        """First voxel of raw that an array of a shape (Z, Y, X) covers."""
        return tuple((n - m) // 2 for n, m in zip(self.raw_shape[1:], shape, strict=True))

    @property
    def offset(self) -> tuple[int, int, int]:
        """(Z, Y, X) of the labels, else of raw, in nm: raw begins at 0."""
        return _nm(self.reach)


def _nm(voxels: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (n * size for n, size in zip(voxels, VOXEL_SIZE, strict=True))
    return z, y, x


def crop_arrays(split: Split, crop: int, given: Any, entry: SplitEntry | None = None) -> CropArrays:
    """Return the arrays of a crop.

    Parameters
    ----------
    split, crop
        Decide the made-up arrays.
    given
        A mapping with ``raw``, ``labels`` and the names of further arrays, or None or ... for small made-up arrays,
        always the same.
    entry
        The catalog's entry of the split; default: the published one.

    Raises
    ------
    RequestError
        If an array is missing, unknown, or cannot lie in the middle of raw.
    """
    import numpy as np

    entry = entry or published().entry(split)
    if given is None or given is ...:
        return _made_up(entry, crop)
    needed = {"raw", "labels"} if entry.labels else {"raw"}
    known = needed | set(entry.datasets)
    if not isinstance(given, Mapping) or not needed <= given.keys() <= known:
        others = ", ".join(map(repr, sorted(known - {"raw"})))
        raise RequestError(f"crop {split.value}/{crop}: give a mapping with 'raw' (C,Z,Y,X) and {others} (Z,Y,X)")
    found = {name: np.asarray(array) for name, array in given.items()}
    raw = found.pop("raw").astype(np.uint8)
    for name, array in found.items():
        more = [n - m for n, m in zip(raw.shape[1:], array.shape, strict=False)]
        if raw.ndim != 4 or array.ndim != 3 or any(n < 0 or n % 2 for n in more):
            raise RequestError(
                f"crop {split.value}/{crop}: raw {raw.shape} and {name} {array.shape} do not fit",
                remedy=f"raw reaches as far beyond {name} on one side as on the other, or has its shape.",
            )
    labels = found.pop("labels").astype(np.uint64) if entry.labels else None
    return _with_context(entry, raw, labels, found)


def _with_context(
    entry: SplitEntry, wide: NDArray[np.uint8], labels: NDArray[np.uint64] | None, others: Mapping[str, NDArray[Any]]
) -> CropArrays:
    if labels is None:
        return CropArrays(wide, None, None, others, entry)
    starts = [(n - m) // 2 for n, m in zip(wide.shape[1:], labels.shape, strict=True)]
    inner = tuple(slice(start, start + n) for start, n in zip(starts, labels.shape, strict=True))
    return CropArrays(wide[:, *inner], labels, wide, others, entry)


def write_crop(
    root: Path,
    split: Split,
    crop: int,
    arrays: CropArrays,
    channels: tuple[int, ...] | None = None,
    context: Context = NO_CONTEXT,
) -> CropFile:
    """Write a crop's file and manifest below `root`, as the service publishes them; the same bytes each time.

    Parameters
    ----------
    root
        The cache folder.
    split, crop
        Which crop it is.
    arrays
        All of its channels.
    channels
        Only these; None is all.
    context
        How far raw reaches beyond the labels, as far as `arrays` have it.
    """
    import h5py

    from prismcache.crop.seal import seal_of

    path = root / crop_path(split, crop, channels, context)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with h5py.File(temporary, "w", locking=False) as file:
        _fill(file, split, crop, arrays, arrays.channels if channels is None else channels, context)
        if arrays.entry.definition:
            file.attrs["catalog"] = arrays.entry.to_json()
    with temporary.open("ab") as stream:
        stream.write(seal_of(temporary))
    temporary.replace(path)
    return _publish(root, split, FileName(crop, channels, context), arrays)


def write_product(root: Path, split: Split, crop: int, arrays: CropArrays, product: Product) -> CropFile:
    """Make a product of a crop that `write_crop` wrote, as a worker does; needs ``prismcache[service]``.

    Raises
    ------
    MissingExtraError
        If the service's modules are not installed.
    """
    make = service_part("prismcache_service.pipeline.products", "make_product", "making of products")
    crop_file = root / crop_path(split, crop)
    path = root / crop_path(split, crop, product=product)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    crop_sha256 = sha256_of(crop_file)
    make(crop_file, crop_sha256, product, temporary, mode=0o644, memory_limit=1 << 30)
    temporary.replace(path)
    return _publish(root, split, FileName(crop, product=product), arrays, crop_sha256)


def _fill(
    file: h5py.File, split: Split, crop: int, arrays: CropArrays, channels: tuple[int, ...], context: Context
) -> None:
    import numpy as np

    file.attrs.update(
        {
            "crop_id": crop,
            "split": split.value,
            "num_channels": len(arrays.raw),
            "format_version": FORMAT_VERSION,
            "prismcache_version": SOURCE,
            "source": SOURCE,
            "source_fingerprint": SOURCE,
            "missing_chunks": 0,
        }
    )
    wanted = arrays.reach if context == "all" else context
    reach = [min(have, want) for have, want in zip(arrays.reach, wanted, strict=True)]
    box = tuple(slice(a - b, n - a + b) for a, b, n in zip(arrays.reach, reach, arrays.raw_shape[1:], strict=True))
    raw = arrays.raw if arrays.wide is None else arrays.wide
    raw_offset = _nm([start - n for start, n in zip(arrays.reach, reach, strict=True)])
    datasets = {raw_dataset(channel): (raw[channel][box], raw_offset) for channel in channels}
    datasets |= {name: (voxels, _nm(arrays.start(voxels.shape))) for name, voxels in arrays.others.items()}
    if arrays.labels is not None:
        ids, labels = np.unique(np.append(arrays.labels, np.uint64(0)), return_inverse=True)
        datasets[LABELS] = labels[:-1].reshape(arrays.labels.shape).astype(np.uint32), arrays.offset
        file.create_dataset(LABELS_IDS, data=ids.astype(np.uint64))
    for name, (values, offset) in datasets.items():
        dataset = file.create_dataset(name, data=values, chunks=True, compression="gzip", compression_opts=1)
        dataset.attrs.update({"offset": offset, "resolution": VOXEL_SIZE, "voxel_size": VOXEL_SIZE})
        dataset.attrs.update({"axis_names": AXIS_NAMES, "units": UNITS})


def _publish(root: Path, split: Split, name: FileName, arrays: CropArrays, crop_sha256: str = "") -> CropFile:
    path, place = root / crop_path(split, *name), root / manifest_path(split, *name)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        split=split,
        crop=name.crop,
        channels=arrays.channels if name.channels is None else name.channels,
        complete=name.channels is None,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        size=path.stat().st_size,
        stamp=stamp_of(path.stat()),
        source=SOURCE,
        endpoint="",
        source_fingerprint=SOURCE,
        missing_chunks=0,
        recipe=SOURCE,
        prismcache_version=SOURCE,
        libraries={},
        created_at="1970-01-01T00:00:00Z",
        context=name.context,
        product=name.product,
        crop_sha256=crop_sha256,
        definition=arrays.entry.definition,
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, manifest.model_dump_json().encode())
    return manifest.file_at(path)


def _made_up(entry: SplitEntry, crop: int) -> CropArrays:
    """Noise with a few cuboid objects, whose ids have gaps as published ones do; further arrays are noise, too."""
    import numpy as np

    random = np.random.default_rng([*entry.name.encode(), crop])
    labels = np.zeros(SHAPE[1:], np.uint64)
    for number in range(1, 5):
        z, y, x = (int(random.integers(0, size // 2)) for size in SHAPE[1:])
        labels[z : z + 4, y : y + 10, x : x + 10] = 1000 * number + crop
    wide = [size + 2 * by for size, by in zip(SHAPE[1:], REACH, strict=True)]
    raw = random.integers(0, 256, (SHAPE[0], *wide), np.uint8)
    others = {name: random.integers(0, 256, SHAPE[1:], np.uint8) for name in entry.datasets}
    return _with_context(entry, raw, labels if entry.labels else None, others)


class Files:
    """What is published, and the cache folder. To be used by one thread at a time."""

    def __init__(self, root: Path, crops: Mapping[tuple[Split, int], Any], splits: Splits | None = None) -> None:
        self.root, self.splits = root, splits or published()
        self.published = {(Split(split), crop): given for (split, crop), given in sorted(crops.items())}
        self.failing: dict[tuple[Split, int], PrismError | None] = {}
        self.files: dict[tuple[Split, FileName], CropFile] = {}
        self._arrays: dict[tuple[Split, int], CropArrays] = {}

    def arrays(self, split: Split, crop: int) -> CropArrays:
        if (split, crop) not in self.published:
            raise UnknownCropError(f"crop {crop} of split {split.value!r} is not published")
        if (split, crop) not in self._arrays:
            entry = self.splits.entry(split)
            self._arrays[split, crop] = crop_arrays(split, crop, self.published[split, crop], entry)
        return self._arrays[split, crop]

    def good(self, split: Split, wanted: FileName) -> CropFile | None:
        """Return a cached file with these channels and this context, or more, whose content is still right."""
        channels = set(wanted.channels or self.arrays(split, wanted.crop).channels)
        for (each, held), file in self.files.items():
            is_same = (each, held.crop, held.product) == (split, wanted.crop, wanted.product)
            if is_same and covers(held.context, wanted.context) and channels <= set(file.channels) and _is_right(file):
                return file
        return None

    def make(self, split: Split, wanted: FileName) -> CropFile:
        """Return a file that serves `wanted`, written if need be."""
        arrays = self.arrays(split, wanted.crop)
        for channel in wanted.channels or ():
            if channel not in arrays.channels:
                raise UnknownChannelError(f"crop {split.value}/{wanted.crop} has no channel {channel}")
        if wanted.channels == arrays.channels:
            wanted = wanted._replace(channels=None)
        found = self.good(split, wanted)
        if found is None and wanted.product is Product.CROP:
            found = write_crop(self.root, split, wanted.crop, arrays, wanted.channels, wanted.context)
        elif found is None:
            self.make(split, FileName(wanted.crop))
            found = write_product(self.root, split, wanted.crop, arrays, wanted.product)
        self.files[split, wanted] = found
        return found

    def describe(self, split: Split, crop: int) -> CropInfo:
        arrays = self.arrays(split, crop)
        files = tuple(file for key, file in self.files.items() if (key[0], key[1].crop) == (split, crop))
        inner = () if arrays.labels is None else (arrays.labels,)
        stored = (arrays.raw if arrays.wide is None else arrays.wide, *inner, *arrays.others.values())
        return CropInfo(
            split=split,
            crop=crop,
            state=cache_state(files, is_making=False),
            raw_shape=arrays.raw_shape,
            labels_shape=None if arrays.labels is None else arrays.labels.shape,
            offset=arrays.offset,
            voxel_size=VOXEL_SIZE,
            source_bytes=sum(array.nbytes for array in stored),
            source_objects=len(arrays.raw) + len(stored) - 1,
            files=files,
            arrays=tuple(
                ArrayInfo(
                    name=name, shape=voxels.shape, dtype=voxels.dtype.name, offset=_nm(arrays.start(voxels.shape))
                )
                for name, voxels in arrays.others.items()
            ),
            **self.splits.about(split, crop),
        )

    def verify(self, split: Split | None, crops: Sequence[int] | None, *, repair: bool) -> list[VerifyResult]:
        """Read cached files again; with `repair`, write damaged files again."""
        keys = [key for key in self.files if split in {None, key[0]} and (crops is None or key[1].crop in crops)]
        if absent := set(crops or ()) - {key[1].crop for key in keys}:
            raise CropNotCachedError(f"not cached: crops {', '.join(map(str, sorted(absent)))}")
        found = []
        for key in keys:
            file, verdict, reason = self.files[key], Verdict.OK, ""
            if not _is_right(file):
                verdict = Verdict.REPAIRED if repair else Verdict.CORRUPT
                reason = f"{file.path} is not what was published"
                if repair:
                    self.make(*key)
            result = VerifyResult(
                split=key[0], crop=key[1].crop, channels=file.channels, path=file.path, verdict=verdict, reason=reason
            )
            found.append(result)
        return found

    def remove(self, split: Split, crops: Sequence[int] | None) -> list[CropFile]:
        """Delete the cached files of these crops (None: of all); return the files."""
        keys = [key for key in self.files if key[0] == split and (crops is None or key[1].crop in crops)]
        for _, name in keys:
            (self.root / crop_path(split, *name)).unlink(missing_ok=True)
            (self.root / manifest_path(split, *name)).unlink(missing_ok=True)
        return [self.files.pop(key) for key in keys]


def _is_right(file: CropFile) -> bool:
    path = Path(file.path)
    return path.is_file() and sha256_of(path) == file.sha256


def file_name_of(request: JobRequest, crop: int) -> FileName:
    """Return the name of the file that a request needs of a crop."""
    return FileName(crop, request.channels, request.context, request.product)
