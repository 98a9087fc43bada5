"""Crop files whose raw reaches beyond the labels, written directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from prismcache.layout import AXIS_NAMES, UNITS

VOXEL_SIZE = (400, 168, 168)
ORIGIN = (4000, 0, 168)
"""World position of raw's first voxel, nm (Z, Y, X)."""


def write_context_crop(
    path: Path, raw: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], before: tuple[int, int, int]
) -> Path:
    """Write instance crop 3 with raw (C, Z, Y, X) whose context is `before` voxels (Z, Y, X) before the labels."""
    ids, numbers = np.unique(np.append(labels, 0), return_inverse=True)
    with h5py.File(path, "w") as file:
        file.attrs.update({"crop_id": 3, "split": "instance", "source": "test", "source_fingerprint": "test"})
        file.attrs.update({"missing_chunks": 0, "format_version": 2, "prismcache_version": "test"})
        consecutive = numbers[:-1].reshape(labels.shape).astype(np.uint32)
        places = {f"raw/ch_{channel:02d}": (values, (0, 0, 0)) for channel, values in enumerate(raw)}
        for name, (values, first) in (places | {"labels": (consecutive, before)}).items():
            dataset = file.create_dataset(name, data=values, chunks=(4, 8, 8), compression="gzip")
            offset = [start + n * size for start, n, size in zip(ORIGIN, first, VOXEL_SIZE, strict=True)]
            dataset.attrs.update({"offset": offset, "voxel_size": VOXEL_SIZE, "resolution": VOXEL_SIZE})
            dataset.attrs.update({"axis_names": AXIS_NAMES, "units": UNITS})
        file["labels_ids"] = ids.astype(np.uint64)
    return path
