"""Crops of other splits than instance and semantic: synapses as published, and a lab's own, with a catalog for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from tests.support.crops import BUCKET, PREFIX, RESOLUTION

Array = np.ndarray[Any, np.dtype[Any]]
Shape3 = tuple[int, int, int]

RAW_OFFSET = (4000, 1680, 840)
"""nm (Z, Y, X)."""
LAB_BUCKET = "lab-data"
LAB_CATALOG = """\
# A lab's own catalog.
[splits.mito]
title = "mitochondria, by hand"
bucket = "lab-data"
prefix = "training"
folder = "mito"
raw = "volumes/image"
labels = "volumes/mito"
arrays = ["volumes/mask"]
classes = true
products = ["unlabelled", "facts"]
expansion = 4
resolution = [400, 168, 168]
offset = [800, 336, 168]
same_tissue = { 0 = "instance/0" }
"""


def synapse_arrays(seed: int = 0) -> dict[str, tuple[Array, Shape3]]:
    """Arrays of the synapse crop by name, each with its first voxel in raw (Z, Y, X)."""
    random = np.random.default_rng(seed)
    inner, start = (20, 44, 40), (6, 10, 12)
    output = random.integers(0, 2**64, inner, np.uint64, endpoint=False)
    output[:, :, ::3] = 0
    return {
        "ls_2channels_globalnorm": (random.integers(0, 256, (2, 32, 70, 66), np.uint8), (0, 0, 0)),
        "psd95_output": (output, start),
        "psd95_mask": (random.integers(0, 2, inner, np.uint8), start),
        "psd95_weights": (random.random(inner, np.float32), start),
        "psd95_underseg": (random.integers(0, 9, (10, 20, 20), np.uint16), (8, 12, 14)),
    }


def write_synapses(bucket_dir: Path, arrays: Mapping[str, tuple[Array, Shape3]], crop: int = 0) -> Path:
    """Write a synapse crop as published, below `bucket_dir`; return its folder."""
    folder = bucket_dir / BUCKET / PREFIX / "synapses" / "excitatory" / f"crop_{crop}.zarr"
    for name, (voxels, start) in arrays.items():
        attributes = {"offset": world(start), "resolution": list(RESOLUTION)}
        write_array(folder, f"volumes/{name}", voxels, attributes)
    return folder


def lab_arrays(seed: int = 0) -> dict[str, Array]:
    """Arrays of a lab's crop, all at one place: they have no attributes."""
    random = np.random.default_rng(seed)
    shape = (18, 40, 36)
    labels = random.choice(np.array([0, 0, 3, 7, 2**40], np.int64), shape)
    return {
        "image": random.integers(0, 256, (3, *shape), np.uint8),
        "mito": labels,
        "mask": random.random(shape) < 0.5,
    }


def write_lab_crop(bucket_dir: Path, arrays: Mapping[str, Array], crop: int = 0, folder: str = "mito") -> Path:
    """Write a crop of a lab's own split, without attributes, below `bucket_dir`; return its folder."""
    place = bucket_dir / LAB_BUCKET / "training" / folder / f"crop_{crop}.zarr"
    for name, voxels in arrays.items():
        write_array(place, f"volumes/{name}", voxels, {})
    return place


def write_array(folder: Path, name: str, voxels: Array, attributes: Mapping[str, Any]) -> None:
    """Write a zarr v2 array with chunks that do not divide it."""
    chunks = tuple(max(1, n // 2 - 1) for n in voxels.shape)
    array = zarr.create_array(
        LocalStore(folder / name), shape=voxels.shape, dtype=voxels.dtype, chunks=chunks, zarr_format=2,
        attributes=dict(attributes),
    )  # fmt: skip
    array[...] = voxels


def world(start: Shape3) -> list[int]:
    """The world position of a voxel of raw, nm (Z, Y, X)."""
    return [first + n * size for first, n, size in zip(RAW_OFFSET, start, RESOLUTION, strict=True)]
