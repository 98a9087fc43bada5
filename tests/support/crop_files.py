"""Write a crop's file through the product's own writer, from arrays in memory; also with a disk that is full.

``python -m tests.support.crop_files FOLDER`` makes a small file in FOLDER again and again, each time with less room,
and prints what happened each time: a process of its own, as HDF5 may crash when a write fails.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from prismcache.errors import PrismError
from prismcache.layout import LABELS, raw_dataset
from prismcache_service.pipeline.codec.encode import encode_row
from prismcache_service.pipeline.plan.plan import ArrayPlan, CropPlan, plan_crop
from prismcache_service.pipeline.write.hdf5 import CropWriter, check_file
from tests.support.crop_sources import crop_source
from tests.support.voxels import Shape3

Array = np.ndarray[Any, np.dtype[Any]]

ATTRIBUTES = {"crop_id": 7, "split": "instance", "num_channels": 2, "source": "s3://bucket/ü"}


def file_plan(shape: Shape3 = (20, 70, 66), channels: int = 2) -> CropPlan:
    """The plan of a crop of that (Z, Y, X) shape, with borders that fill no whole HDF5 chunk."""
    return plan_crop(crop_source((channels, *shape), (1, *shape), shape, shape), None, strict=False)


def noise(plan: CropPlan, seed: int = 0) -> tuple[Array, Array]:
    """Raw (C, Z, Y, X) uint8 and labels (Z, Y, X) uint32 that hardly deflate."""
    random = np.random.default_rng(seed)
    assert plan.labels is not None
    shape = plan.labels.region.shape[1:]
    raw = random.integers(0, 256, (len(plan.channels), *shape), np.uint8)
    return raw, random.integers(0, 2**32, shape, np.uint32)


def write_crop_file(path: Path, plan: CropPlan, raw: Array, labels: Array, mode: int = 0o644) -> None:
    """Make a finished, checked file of `raw` and `labels` (as `noise` gives them)."""
    assert plan.labels is not None
    table = np.arange(5, dtype=np.uint64) * np.uint64(2**60)
    with CropWriter(path, plan, ATTRIBUTES, mode) as writer:
        for name, chunks in _encoded(plan.raw, raw, raw_dataset):
            writer.write(name, chunks)
        for name, chunks in _encoded(plan.labels, labels[None], lambda _: LABELS):
            writer.write(name, chunks)
        writer.write_ids(table)
        writer.close_file()
    check_file(path, writer.shapes)


def _encoded(array: ArrayPlan, voxels: Array, name: Callable[[int], str]) -> Iterator[tuple[str, list[Any]]]:
    chunk = array.chunk
    for block in array.blocks:
        _, z, y0, _ = (a - b for a, b in zip(block.start, array.region.start, strict=True))
        for channel in range(block.start[0], block.stop[0]):
            for y in range(y0, y0 + block.shape[2], chunk[1]):
                row = voxels[channel, z : z + chunk[0], y : y + chunk[1]]
                yield name(channel), encode_row(row, (z, y, 0), chunk)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes: writes fail as on a full disk (EFBIG), for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def failing_operation(number: int) -> Iterator[list[str]]:
    """The operation on a file with this number (from 1), and all after it, fail: no space. Yields what was called."""
    called: list[str] = []

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def operation(*arguments: Any) -> Any:
            called.append(name)
            if len(called) >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        return operation

    with ExitStack() as patches:
        for name in ("write", "pwrite", "writev", "pwritev", "ftruncate", "fsync", "fdatasync", "posix_fallocate"):
            patches.enter_context(patch.object(os, name, failing(name)))
        yield called


def _outcome(folder: Path, plan: CropPlan, voxels: tuple[Array, Array]) -> str:
    path = folder / "crop_7.h5"
    path.unlink(missing_ok=True)
    try:
        write_crop_file(path, plan, *voxels)
    except PrismError as error:
        return error.code
    return "made"


def main(folder: Path) -> None:
    """Fail at every operation, and at every size, of one small file; print a line for each."""
    plan = file_plan((5, 20, 66), channels=2)
    voxels = noise(plan)
    assert _outcome(folder, plan, voxels) == "made"
    size = (folder / "crop_7.h5").stat().st_size
    with failing_operation(10**9) as called:
        _outcome(folder, plan, voxels)
    sys.stdout.write(f"operations {len(called)} size {size}\n")
    for number in range(1, len(called) + 2):
        with failing_operation(number):
            found = _outcome(folder, plan, voxels)
        sys.stdout.write(f"operation {number} {found}\n")
    for limit in [*range(0, size, 251), size - 1, size]:
        with file_size_limit(limit):
            found = _outcome(folder, plan, voxels)
        sys.stdout.write(f"limit {limit} {found}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
