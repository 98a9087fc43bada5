"""`make bench-patches`: random patches of a full-size crop as tensors, ours against torch_em's dataset on its own file.

Raw of one channel and labels, (32, 256, 256) voxels, both as float32. torch_em reads a file of the same voxels as it
writes it itself. The limit is a slice of arrays in memory, cast. "Two workers" is a `DataLoader` with batches of one.
The files are in the page cache. The datasets take turns, so that what else the machine does meets all of them;
medians and ranges are printed. Each figure goes to standard error as soon as it is known.

``--chunks`` writes the same voxels in other chunk shapes and measures reading without a cache.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from prismcache import Crop, PrismClient
from prismcache.layout import LABELS, raw_dataset
from prismcache.torch import PrismDataset
from tests.bench.process import cpu_of_family
from tests.support.crops import CropSpec, crop_folder, full_size_spec, small_spec, write_crop
from tests.support.s3 import S3Server

_FOLDER = Path("build/bench")
_PATCH = (32, 256, 256)
_CHANNEL = 0
_SAMPLES = 100_000
_PLAIN = ("torch_em", "prismcache, none", "prismcache, mmap", "prismcache, ram", "slice of arrays in memory")
_FULL = (
    "torch_em, its transforms",
    "prismcache, none, torch_em's transforms",
    "prismcache, ram, torch_em's transforms",
)
_CONTEXT = (16, 46, 46)
_WIDE = ("prismcache, none, context", "prismcache, ram, context")
_WARM_UP = 4  # patches
_CHUNKS = (
    (16, 64, 64),
    (8, 64, 64),
    (16, 32, 64),
    (16, 32, 32),
    (8, 32, 32),
    (32, 64, 64),
    (16, 128, 128),
    (8, 128, 128),
)


@dataclass(frozen=True)
class Figure:
    """Patches a second, and CPU milliseconds a patch."""

    rate: float
    cpu_ms: float


Figures = dict[tuple[str, int], list[Figure]]
"""By the dataset's name and the number of workers."""


def main() -> None:
    """Print Markdown tables."""
    arguments = _parser().parse_args()
    warnings.simplefilter("ignore")  # of libraries, for each patch
    ours, theirs = _files(quick=arguments.quick)
    seconds = min(arguments.seconds, 1.0) if arguments.quick else arguments.seconds
    if arguments.chunks:
        _chunk_table(ours, arguments.runs, seconds)
        return
    names = [name for name in (*_PLAIN, *_FULL, *_WIDE) if arguments.only in name]
    datasets, ready = {}, {}
    for name in names:
        begin = time.perf_counter()
        datasets[name] = _dataset(name, ours, theirs)
        ready[name] = time.perf_counter() - begin
    found: Figures = {}
    for run, (name, workers) in itertools.product(range(arguments.runs), itertools.product(names, (0, 2))):
        figure = _measure(datasets[name], workers, seconds)
        found.setdefault((name, workers), []).append(figure)
        each = f"{name}, {workers} workers: {figure.rate:.1f} patches/s, {figure.cpu_ms:.1f} CPU ms"
        print(f"run {run + 1} of {arguments.runs}: {each}", file=sys.stderr, flush=True)
    _print_table(found, [name for name in names if name in _PLAIN], ready)
    _print_table(found, [name for name in names if name in _FULL], ready)
    _print_context(found, _patch_of(ours), _context_of(ours))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="medians of so many are printed")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each is measured")
    parser.add_argument("--only", default="", help="only datasets whose name has this text, such as transforms")
    parser.add_argument("--quick", action="store_true", help="a small crop and short runs: only to see that it works")
    parser.add_argument("--chunks", action="store_true", help="compare chunk shapes of the file instead")
    return parser


def _files(*, quick: bool) -> tuple[Path, Path]:
    """A crop's file as we make it and as torch_em does, made where they are missing."""
    root = _FOLDER / ("patches-quick" if quick else "patches")
    spec: CropSpec = small_spec(raw_shape=(70, 300, 300), labels_shape=(40, 280, 280)) if quick else full_size_spec()
    bucket = root / "bucket" if quick else _FOLDER / "bucket"
    if not crop_folder(bucket, spec).exists():
        print("writing the stand-in …", file=sys.stderr)
        write_crop(bucket, spec)
    with S3Server(bucket) as server, PrismClient(root, s3_endpoint_url=server.endpoint) as client:
        client.ensure("instance", [0], channels=[_CHANNEL], context="all", progress=False)
        ours = Path(client.ensure("instance", [0], channels=[_CHANNEL], progress=False)[0])
    theirs = root / "torch_em.h5"
    if not theirs.exists():
        with Crop(ours) as crop, h5py.File(theirs, "w") as file:
            for name in (raw_dataset(_CHANNEL), LABELS):
                file.create_dataset(name, data=crop.file[name][...], compression="gzip", chunks=True)
    return ours, theirs


def _measure(dataset: Dataset[Any], workers: int, seconds: float) -> Figure:
    patches = _batches(dataset, workers)
    for _ in range(_WARM_UP):
        next(patches)
    count, begin, before = 0, time.perf_counter(), cpu_of_family()
    while (wall := time.perf_counter() - begin) < seconds:
        next(patches)
        count += 1
    cpu = cpu_of_family() - before
    patches.close()  # ends the workers
    return Figure(count / wall, 1000 * cpu / count)


def _batches(dataset: Dataset[Any], workers: int) -> Generator[Any]:
    if workers:
        yield from DataLoader(dataset, batch_size=1, num_workers=workers)
    else:
        yield from (dataset[index] for index in range(_SAMPLES))


def _dataset(name: str, ours: Path, theirs: Path) -> Dataset[Any]:
    if name == "slice of arrays in memory":
        return _Slices(ours)
    kind, _, rest = name.partition(", ")
    shape = _patch_of(ours)
    if kind == "torch_em":
        return _torch_em(theirs, shape, plain=not rest)
    cache, _, transforms = rest.partition(", ")
    options: dict[str, Any] = {}
    if transforms == "context":
        options, ours = {"context": _context_of(ours)}, _with_context(ours)
    elif transforms:
        from torch_em.transform import get_augmentations, get_raw_transform

        options = {"raw_transform": get_raw_transform(), "transform": get_augmentations("anisotropic")}
    return PrismDataset(
        ours, patch_shape=shape, channels=_CHANNEL, n_samples=_SAMPLES, label_dtype=torch.float32, cache=cache,
        cache_folder=_FOLDER / "decoded", **options,
    )  # fmt: skip


def _torch_em(path: Path, shape: tuple[int, int, int], *, plain: bool) -> Dataset[Any]:
    import torch_em
    from torch_em.data import SegmentationDataset

    file, raw = str(path), raw_dataset(_CHANNEL)
    if plain:
        return SegmentationDataset(file, raw, file, LABELS, shape, n_samples=_SAMPLES)
    return torch_em.default_segmentation_dataset(
        file, raw, file, LABELS, shape, ndim=3, n_samples=_SAMPLES, is_seg_dataset=True,
        transform=torch_em.transform.get_augmentations("anisotropic"),
    )  # fmt: skip


class _Slices(Dataset[Any]):
    """What no dataset can beat: a box of arrays in memory, cast to tensors."""

    def __init__(self, path: Path) -> None:
        with Crop(path) as crop:
            self._raw, self._labels = crop.channel(_CHANNEL)[...], crop.labels[...]
        self._shape = _patch_of(path)

    def __len__(self) -> int:
        return _SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        extents = zip(self._raw.shape, self._shape, strict=True)
        starts = [np.random.randint(0, extent - size + 1) for extent, size in extents]  # noqa: NPY002 - as torch_em
        box = tuple(slice(start, start + size) for start, size in zip(starts, self._shape, strict=True))
        raw, labels = self._raw[box].astype(np.float32), self._labels[box].astype(np.float32)
        return torch.from_numpy(raw[None]), torch.from_numpy(labels[None])


def _patch_of(path: Path) -> tuple[int, int, int]:
    with Crop(path) as crop:
        z, y, x = (min(size, extent) for size, extent in zip(_PATCH, crop.shape, strict=True))
    return z, y, x


def _with_context(ours: Path) -> Path:
    return ours.with_name(ours.name.replace(".h5", ".ctx-all.h5"))


def _context_of(ours: Path) -> tuple[int, int, int]:
    with Crop(_with_context(ours)) as crop:
        z, y, x = (min(most, *sides) for most, sides in zip(_CONTEXT, zip(*crop.context, strict=True), strict=True))
    return z, y, x


def _print_context(found: Figures, patch: tuple[int, int, int], context: tuple[int, int, int]) -> None:
    print(f"\nWith {context} voxels of context around a patch; voxels are those of raw and labels.\n")
    print("| dataset | patches/s, two workers | million voxels | CPU ns a voxel, one process |\n|---|---|---|---|")
    labels = math.prod(patch)
    wide = math.prod(size + 2 * by for size, by in zip(patch, context, strict=True))
    for name in _WIDE:
        for case, voxels in ((name.removesuffix(", context"), 2 * labels), (name, wide + labels)):
            if (case, 0) in found:
                rate, cpu = _median(found[case, 2], "rate"), _median(found[case, 0], "cpu_ms")
                print(f"| {case} | {rate:.1f} | {voxels / 1e6:.1f} | {1e6 * cpu / voxels:.1f} |")


def _print_table(found: Figures, names: list[str], ready: dict[str, float]) -> None:
    """Print rates and CPU of datasets, the first of which is what the others are compared with."""
    if not names:
        return
    print(f"\nPatches a second of {_PATCH}, raw of one channel and labels as float32; medians (lowest–highest).\n")
    columns = ("patches/s", "×", "CPU ms", "×")
    heading = [f"{way}: {columns[0]} | {' | '.join(columns[1:])}" for way in ("one process", "two workers")]
    print(f"| dataset | {' | '.join(heading)} | ready s |")
    print("|---" * (2 + 2 * len(columns)) + "|")
    for name in names:
        cells = []
        for workers in (0, 2):
            ours, theirs = found[name, workers], found[names[0], workers]
            rate, cpu = _median(ours, "rate"), _median(ours, "cpu_ms")
            rates = [figure.rate for figure in ours]
            cells += [f"{rate:.1f} ({min(rates):.1f}–{max(rates):.1f})", f"{rate / _median(theirs, 'rate'):.2f}"]
            cells += [f"{cpu:.1f}", f"{_median(theirs, 'cpu_ms') / cpu:.2f}"]
        print(f"| {name} | {' | '.join(cells)} | {ready[name]:.2f} |")


def _median(figures: list[Figure], what: str) -> float:
    return statistics.median(getattr(figure, what) for figure in figures)


def _chunk_table(ours: Path, runs: int, seconds: float) -> None:
    print("| chunk | file MB | deflate CPU s | patches/s | CPU ms a patch |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=ours.parent.parent) as folder:
        for chunk in _CHUNKS:
            path = Path(folder) / f"crop_{'_'.join(map(str, chunk))}.h5"
            cpu = _rechunk(ours, path, chunk)
            dataset = _dataset("prismcache, none", path, path)
            figures = [_measure(dataset, 0, seconds) for _ in range(runs)]
            rate, used = (_median(figures, what) for what in ("rate", "cpu_ms"))
            print(f"| {chunk} | {path.stat().st_size / 1e6:.1f} | {cpu:.2f} | {rate:.1f} | {used:.1f} |", flush=True)


def _rechunk(source: Path, target: Path, chunk: tuple[int, int, int]) -> float:
    """Write the same crop in chunks of another shape, deflated as the pipeline does; CPU seconds of the deflating."""
    from prismcache_service.pipeline.codec.encode import encode_row

    cpu = 0.0
    with Crop(source) as crop, h5py.File(target, "w") as file:
        file.attrs.update(crop.file.attrs)
        crop.file.copy("labels_ids", file)
        for name in (raw_dataset(_CHANNEL), LABELS):
            voxels = crop.file[name][...]
            dataset = file.create_dataset(name, voxels.shape, voxels.dtype, chunks=chunk, compression="gzip")
            steps = [range(0, extent, size) for extent, size in zip(voxels.shape, chunk, strict=True)]
            for z, y in itertools.product(steps[0], steps[1]):
                begin = time.process_time()
                encoded = encode_row(voxels[z : z + chunk[0], y : y + chunk[1]], (z, y, 0), chunk)
                cpu += time.process_time() - begin
                for each in encoded:
                    dataset.id.write_direct_chunk(each.origin, each.data)
    return cpu


if __name__ == "__main__":
    main()
