"""`make bench-patches`: random patches of a full-size crop as tensors, ours against torch_em's dataset on its own file.

Raw of one channel and labels, (32, 256, 256) voxels, both as float32. torch_em reads a file of the same voxels as it
writes it itself. The limit is a slice of arrays in memory, cast. Each figure is a process of its own; "two workers"
is a `DataLoader` with batches of one. The files are in the page cache.

``--chunks`` writes the same voxels in other chunk shapes and measures reading without a cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
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
_PLAIN = ("torch_em", "prismcache, none", "prismcache, mmap", "prismcache, ram", "slice of arrays in memory")
_FULL = (
    "torch_em, its transforms",
    "prismcache, none, torch_em's transforms",
    "prismcache, ram, torch_em's transforms",
)
_CONTEXT = (16, 46, 46)
_WIDE = ("prismcache, none, context", "prismcache, ram, context")
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


def main() -> None:
    """Print a Markdown table of medians."""
    arguments = _parser().parse_args()
    if arguments.case:
        print(json.dumps(_measure(arguments.case, arguments)))
        return
    ours, theirs = _files(quick=arguments.quick)
    if arguments.chunks:
        _chunk_table(ours, arguments)
        return
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(arguments.runs):
        for name, workers in itertools.product((*_PLAIN, *_FULL, *_WIDE), (0, 2)):
            found.setdefault((name, workers), []).append(_run(name, workers, ours, theirs, arguments))
    _print_table(found)
    _print_context(found, _patch_of(ours), _context_of(ours))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="medians of so many are printed")
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each is measured")
    parser.add_argument("--quick", action="store_true", help="a small crop, one short run: only to see that it works")
    parser.add_argument("--chunks", action="store_true", help="compare chunk shapes of the file instead")
    for hidden in ("--case", "--ours", "--theirs", "--sidecars"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
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


def _run(name: str, workers: int, ours: Path, theirs: Path, arguments: argparse.Namespace) -> dict[str, float]:
    seconds = 1.0 if arguments.quick else arguments.seconds
    sidecars = ours.parent.parent / "decoded"
    command = [sys.executable, "-m", "tests.bench.patches", "--case", name, "--workers", str(workers)]
    command += ["--ours", str(ours), "--theirs", str(theirs), "--sidecars", str(sidecars), "--seconds", str(seconds)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    if "torch_em" in name:
        import torch_em.transform  # noqa: F401 - takes seconds, which are not the dataset's
    begin = time.perf_counter()
    dataset = _dataset(name, Path(arguments.ours), Path(arguments.theirs), Path(arguments.sidecars))
    ready = time.perf_counter() - begin
    patches = _batches(dataset, arguments.workers)
    for _ in range(4):
        _, labels = next(patches)
        assert labels.shape[-3:] == _patch_of(Path(arguments.ours))
    count, begin, before = 0, time.perf_counter(), cpu_of_family()
    while time.perf_counter() - begin < arguments.seconds:
        next(patches)
        count += 1
    wall, cpu = time.perf_counter() - begin, cpu_of_family() - before
    return {"rate": count / wall, "cpu_ms": 1000 * cpu / count, "ready_s": ready}


def _batches(dataset: Dataset[Any], workers: int) -> Iterator[Any]:
    while True:
        if workers:
            yield from DataLoader(dataset, batch_size=1, num_workers=workers)
        else:
            yield from (dataset[index] for index in range(len(dataset)))


def _dataset(name: str, ours: Path, theirs: Path, sidecars: Path) -> Dataset[Any]:
    samples = 100_000
    if name == "slice of arrays in memory":
        return _Slices(ours, samples)
    kind, _, rest = name.partition(", ")
    shape = _patch_of(ours)
    if kind == "torch_em":
        return _torch_em(theirs, shape, samples, plain=not rest)
    cache, _, transforms = rest.partition(", ")
    options: dict[str, Any] = {}
    if transforms == "context":
        options, ours = {"context": _context_of(ours)}, _with_context(ours)
    elif transforms:
        from torch_em.transform import get_augmentations, get_raw_transform

        options = {"raw_transform": get_raw_transform(), "transform": get_augmentations("anisotropic")}
    return PrismDataset(
        ours, patch_shape=shape, channels=_CHANNEL, n_samples=samples, label_dtype=torch.float32, cache=cache,
        cache_folder=sidecars, **options,
    )  # fmt: skip


def _torch_em(path: Path, shape: tuple[int, int, int], samples: int, *, plain: bool) -> Dataset[Any]:
    import torch_em
    from torch_em.data import SegmentationDataset

    file, raw = str(path), raw_dataset(_CHANNEL)
    if plain:
        return SegmentationDataset(file, raw, file, LABELS, shape, n_samples=samples)
    return torch_em.default_segmentation_dataset(
        file, raw, file, LABELS, shape, ndim=3, n_samples=samples, is_seg_dataset=True,
        transform=torch_em.transform.get_augmentations("anisotropic"),
    )  # fmt: skip


class _Slices(Dataset[Any]):
    """What no dataset can beat: a box of arrays in memory, cast to tensors."""

    def __init__(self, path: Path, samples: int) -> None:
        with Crop(path) as crop:
            self._raw, self._labels = crop.channel(_CHANNEL)[...], crop.labels[...]
        self._shape, self._samples = _patch_of(path), samples

    def __len__(self) -> int:
        return self._samples

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


def _print_context(
    found: dict[tuple[str, int], list[dict[str, float]]], patch: tuple[int, int, int], context: tuple[int, int, int]
) -> None:
    print(f"\nWith {context} voxels of context around a patch; voxels are those of raw and labels.\n")
    print("| dataset | patches/s, two workers | million voxels | CPU ns a voxel, one process |\n|---|---|---|---|")
    labels = math.prod(patch)
    wide = math.prod(size + 2 * by for size, by in zip(patch, context, strict=True))
    for name in _WIDE:
        for case, voxels in ((name.removesuffix(", context"), 2 * labels), (name, wide + labels)):
            rate = statistics.median(run["rate"] for run in found[case, 2])
            cpu = statistics.median(run["cpu_ms"] for run in found[case, 0])
            print(f"| {case} | {rate:.1f} | {voxels / 1e6:.1f} | {1e6 * cpu / voxels:.1f} |")


def _print_table(found: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    def median(name: str, workers: int, what: str) -> float:
        return statistics.median(run[what] for run in found[name, workers])

    print(f"Patches a second of {_PATCH}, raw of one channel and labels as float32; medians.\n")
    columns = ("patches/s", "× torch_em", "× limit", "CPU ms", "CPU × torch_em")
    heading = [f"{way}: {columns[0]} | {' | '.join(columns[1:])}" for way in ("one process", "two workers")]
    print(f"| dataset | {' | '.join(heading)} | ready s |")
    print("|---" * (2 + 2 * len(columns)) + "|")
    for name in (*_PLAIN, *_FULL):
        reference = _FULL[0] if name in _FULL else _PLAIN[0]
        cells = []
        for workers in (0, 2):
            rate, cpu = median(name, workers, "rate"), median(name, workers, "cpu_ms")
            cells += [f"{rate:.1f}", f"{rate / median(reference, workers, 'rate'):.1f}"]
            cells += [f"{rate / median(_PLAIN[-1], workers, 'rate'):.2f}"]
            cells += [f"{cpu:.1f}", f"{median(reference, workers, 'cpu_ms') / cpu:.1f}"]
        print(f"| {name} | {' | '.join(cells)} | {median(name, 0, 'ready_s'):.2f} |")


def _chunk_table(ours: Path, arguments: argparse.Namespace) -> None:
    print("| chunk | file MB | deflate CPU s | patches/s | CPU ms a patch |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=ours.parent.parent) as folder:
        for chunk in _CHUNKS:
            path = Path(folder) / "crop.h5"
            cpu = _rechunk(ours, path, chunk)
            runs = [_run("prismcache, none", 0, path, path, arguments) for _ in range(arguments.runs)]
            rate, used = (statistics.median(run[what] for run in runs) for what in ("rate", "cpu_ms"))
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
