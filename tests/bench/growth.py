"""How time and memory grow with the size of a crop, and with the number of crops."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tests.bench.programs import BENCH_DIR, BUCKET_DIR, Run, add_tiny_crop, ours, run, warm
from tests.support.crops import CropSpec, crop_folder, full_size_spec, write_crop


class Served(Protocol):
    """A server of a folder of buckets."""

    endpoint: str


class Serve(Protocol):
    """Serves a folder of buckets for the time of the block."""

    def __call__(self, folder: Path) -> AbstractContextManager[Served]: ...


# Halved or doubled along an axis at a time: (raw, labels) in (Z, Y, X) voxels.
SIZES = {
    "1/8": ((150, 325, 325), (100, 250, 250)),
    "1/4": ((150, 325, 650), (100, 250, 500)),
    "1/2": ((150, 650, 650), (100, 500, 500)),
    "1": ((300, 650, 650), (200, 500, 500)),
    "2": ((600, 650, 650), (400, 500, 500)),
}


def sizes(serve: Serve, names: Sequence[str]) -> list[tuple[str, Run]]:
    """One run for each size; each crop is made anew in a bucket of its own."""
    found = []
    for name in names:
        raw, labels = SIZES[name]
        with tempfile.TemporaryDirectory(prefix="growth-", dir=BENCH_DIR) as folder:
            write_crop(Path(folder), replace(full_size_spec(), raw_shape=raw, labels_shape=labels))
            add_tiny_crop(Path(folder))
            with serve(Path(folder)) as server:
                warm(server.endpoint)
                found.append((name, run(ours(server.endpoint))))
    return found


def counts(serve: Serve, numbers: Sequence[int]) -> list[tuple[int, Run]]:
    """One run for each number of full-size crops."""
    with tempfile.TemporaryDirectory(prefix="growth-", dir=BENCH_DIR) as folder:
        copies(Path(folder), full_size_spec(), max(numbers))
        with serve(Path(folder)) as server:
            warm(server.endpoint)
            return [(number, run(ours(server.endpoint, range(number)))) for number in numbers]


def copies(folder: Path, spec: CropSpec, number: int) -> None:
    """A bucket with a crop under several numbers, and the tiny one; the objects are links."""
    add_tiny_crop(folder)
    for crop in range(number):
        target = crop_folder(folder, replace(spec, crop=crop))
        shutil.copytree(crop_folder(BUCKET_DIR, spec), target, copy_function=os.link)
