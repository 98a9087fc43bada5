"""Small crop files in the published format, to test users' code. The first file imports h5py and numpy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismcache.disk import stamp_of, write_atomically
from prismcache.errors import RequestError
from prismcache.layout import (
    AXIS_NAMES,
    FORMAT_VERSION,
    LABELS,
    LABELS_IDS,
    UNITS,
    Manifest,
    crop_path,
    manifest_path,
    raw_dataset,
)
from prismcache.schema import CropFile, Split

if TYPE_CHECKING:
    import h5py
    import numpy as np
    from numpy.typing import NDArray

SHAPE = (3, 8, 24, 24)
"""(C, Z, Y, X) of a made-up crop."""

VOXEL_SIZE = (400, 168, 168)
SOURCE = "memory"


@dataclass(frozen=True)
class CropArrays:
    """One crop's arrays: `raw` (C, Z, Y, X) uint8, `labels` (Z, Y, X) of any unsigned ids."""

    raw: NDArray[np.uint8]
    labels: NDArray[np.uint64]

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(range(len(self.raw)))


def crop_arrays(split: Split, crop: int, given: Any) -> CropArrays:
    """Return the arrays of a crop.

    Parameters
    ----------
    split, crop
        Decide the made-up arrays.
    given
        A mapping with ``raw`` and ``labels``, or None or ... for small made-up arrays, always the same.

    Raises
    ------
    RequestError
        If the shapes do not fit each other.
    """
    import numpy as np

    if given is None or given is ...:
        return _made_up(split, crop)
    if not isinstance(given, Mapping) or not {"raw", "labels"} <= given.keys():
        raise RequestError(f"crop {split.value}/{crop}: give a mapping with 'raw' (C,Z,Y,X) and 'labels' (Z,Y,X)")
    raw, labels = np.asarray(given["raw"], dtype=np.uint8), np.asarray(given["labels"]).astype(np.uint64)
    if raw.ndim != 4 or raw.shape[1:] != labels.shape:
        raise RequestError(f"crop {split.value}/{crop}: raw {raw.shape} and labels {labels.shape} do not fit")
    return CropArrays(raw, labels)


def write_crop(
    root: Path, split: Split, crop: int, arrays: CropArrays, channels: tuple[int, ...] | None = None
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
    """
    import h5py

    path = root / crop_path(split, crop, channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with h5py.File(temporary, "w", locking=False) as file:
        _fill(file, split, crop, arrays, arrays.channels if channels is None else channels)
    temporary.replace(path)
    manifest = _manifest(path, split, crop, arrays, channels)
    place = root / manifest_path(split, crop, channels)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, manifest.model_dump_json().encode())
    return CropFile(
        split=split,
        crop=crop,
        channels=manifest.channels,
        path=str(path),
        size=manifest.size,
        sha256=manifest.sha256,
        source_fingerprint=manifest.source_fingerprint,
    )


def _fill(file: h5py.File, split: Split, crop: int, arrays: CropArrays, channels: tuple[int, ...]) -> None:
    import numpy as np

    ids, labels = np.unique(np.append(arrays.labels, np.uint64(0)), return_inverse=True)
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
    datasets = {raw_dataset(channel): arrays.raw[channel] for channel in channels}
    datasets[LABELS] = labels[:-1].reshape(arrays.labels.shape).astype(np.uint32)
    for name, values in datasets.items():
        dataset = file.create_dataset(name, data=values, chunks=True, compression="gzip", compression_opts=1)
        dataset.attrs.update({"offset": (0, 0, 0), "resolution": VOXEL_SIZE, "voxel_size": VOXEL_SIZE})
        dataset.attrs.update({"axis_names": AXIS_NAMES, "units": UNITS})
    file.create_dataset(LABELS_IDS, data=ids.astype(np.uint64))


def _manifest(path: Path, split: Split, crop: int, arrays: CropArrays, channels: tuple[int, ...] | None) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        split=split,
        crop=crop,
        channels=arrays.channels if channels is None else channels,
        complete=channels is None,
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
    )


def _made_up(split: Split, crop: int) -> CropArrays:
    """Noise with a few cuboid objects, whose ids have gaps as published ones do."""
    import numpy as np

    random = np.random.default_rng([list(Split).index(split), crop])
    labels = np.zeros(SHAPE[1:], np.uint64)
    for number in range(1, 5):
        z, y, x = (int(random.integers(0, size // 2)) for size in SHAPE[1:])
        labels[z : z + 4, y : y + 10, x : x + 10] = 1000 * number + crop
    return CropArrays(random.integers(0, 256, SHAPE, np.uint8), labels)
