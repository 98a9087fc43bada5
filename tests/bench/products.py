"""`make bench-products`: what context and products of a full-size crop cost, beside E11's algorithm taken literally.

Context is fetched over loopback and over a slowed link, as in `make bench`. Products are made by a worker that runs
already, from a cached crop; semantic ones from a crop of the same labels' shape with one channel, which they do not
read. E11's algorithm for `avg_barcodes` works on whole arrays in memory, in one thread, and visits the whole crop for
each label: it takes hours for a full-size crop, and is timed once on an eighth of one, where ours is timed as well.
Medians (lowest–highest) are printed, and each run to standard error as soon as it has ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from scipy import ndimage
from skimage.segmentation import expand_labels

from prismcache import Crop, PrismClient
from tests.bench.limits import read_plan
from tests.bench.link import Link, lacking
from tests.bench.process import measure
from tests.bench.programs import BENCH_DIR, BUCKET_DIR, TINY_CROP, Run, add_tiny_crop, ours, run, warm
from tests.support.cache_root import tiny_spec
from tests.support.crops import crop_folder, full_size_spec, write_crop
from tests.support.s3 import S3Server

_SEMANTIC = full_size_spec(split="semantic", channels=1)
_EIGHTH = full_size_spec(crop=1, raw_shape=(100, 250, 250), labels_shape=(100, 250, 250))
_PRODUCTS = (
    ("unlabelled", "instance", 0),
    ("avg_barcodes", "instance", 0),
    ("facts", "instance", 0),
    ("fgbg", "semantic", 0),
    ("border_mask", "semantic", 0),
    ("avg_barcodes", "instance", _EIGHTH.crop),
)
_MBIT, _DELAY_S = 1000, 0.03
_MAKE = """
import json, sys, time
from pathlib import Path
from prismcache import PrismClient
from prismcache.schema import Product, Split
from prismcache_service.cache import CropCache, CropName
from tests.bench.process import cpu_of_family
root, split, product, wanted = sys.argv[1:]
cache = CropCache(Path(root))
with PrismClient(root) as client:
    for crop in (13, int(wanted)):  # a tiny one first, so that the worker runs
        cache.remove(CropName(Split(split), crop, product=Product(product)))
        began, cpu = time.perf_counter(), cpu_of_family()
        (path,) = client.ensure(split, crop, product=product, progress=False)
    found = {"seconds": time.perf_counter() - began, "cpu": cpu_of_family() - cpu, "size": Path(path).stat().st_size}
    print(json.dumps(found))
"""


def main() -> None:
    """Print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="medians of so many are printed")
    parser.add_argument("--only", choices=("context", "products"), help="one of the two tables")
    arguments = parser.parse_args()
    for spec in (full_size_spec(), _SEMANTIC, _EIGHTH, tiny_spec(TINY_CROP, "semantic")):
        if not crop_folder(BUCKET_DIR, spec).exists():
            print(f"writing {spec.prefix} …", file=sys.stderr)
            write_crop(BUCKET_DIR, spec)
    add_tiny_crop(BUCKET_DIR)
    if arguments.only != "products":
        _context(arguments.runs)
    if arguments.only != "context":
        _products(arguments.runs)


def _context(runs: int) -> None:
    missing = lacking()
    if missing:
        print(f"no link: this machine lacks {missing}", file=sys.stderr)
    print("\n| raw | where | s | the wire's time × | CPU s | peak MB, largest process | file MB |")
    print("|---|---|---|---|---|---|---|")
    for where in ("loopback",) if missing else ("loopback", "link"):
        with _server(where, has_link=not missing) as endpoint:
            warm(endpoint)
            found: dict[str, list[Run]] = {"labels' box": [], "all": []}
            for _ in range(runs):
                for name, options in (("labels' box", {}), ("all", {"context": "all"})):
                    found[name].append(run(ours(endpoint, **options)))
                    print(f"{name}, {where}: {found[name][-1].seconds:.2f} s", file=sys.stderr, flush=True)
        for name, each in found.items():
            seconds = statistics.median(one.seconds for one in each)
            peak, size = max(one.usage.peak_process for one in each) / 1e6, each[0].bytes_made / 1e6
            ratio = f"{seconds / _wire_s(name):.3f}" if where == "link" else ""
            cells = (name, where, _spread([one.seconds for one in each]), ratio, _spread([one.cpu for one in each]))
            print(f"| {' | '.join(cells)} | {peak:.0f} | {size:.0f} |", flush=True)


def _wire_s(name: str) -> float:
    plan = read_plan(full_size_spec(), context="all" if name == "all" else (0, 0, 0))[1]
    return 8 * sum(item.size for item in plan.fetched()) / (_MBIT * 1e6)


@contextmanager
def _server(where: str, *, has_link: bool) -> Iterator[str]:
    if where == "link":
        with Link(BUCKET_DIR, mbit_per_s=_MBIT, delay=_DELAY_S, tls=True) as link:
            yield link.endpoint
    else:
        with (Link if has_link else S3Server)(BUCKET_DIR) as server:
            yield server.endpoint


def _products(runs: int) -> None:
    root = (BENCH_DIR / "products").absolute()
    with S3Server(BUCKET_DIR) as server, PrismClient(root, s3_endpoint_url=server.endpoint) as client:
        client.ensure("semantic", [TINY_CROP, 0], progress=False)
        path = Path(client.ensure("instance", [TINY_CROP, 0, _EIGHTH.crop], progress=False)[-1])
    found: dict[tuple[str, str, int], list[tuple[float, float, float, float]]] = {}
    for _, each in itertools.product(range(runs), _PRODUCTS):
        found.setdefault(each, []).append(_made(root, *each))
        print(f"{' '.join(map(str, each))}: {found[each][-1][0]:.2f} s", file=sys.stderr, flush=True)
    print("\n| product | of | s | CPU s | peak MB, largest process | file MB |\n|---|---|---|---|---|---|")
    for (product, split, crop), figures in found.items():
        seconds, cpu, peaks, sizes = zip(*figures, strict=True)
        of = "an eighth" if crop else f"full-size, {split}"
        cells = (f"`{product}`", of, _spread(seconds), _spread(cpu))
        print(f"| {' | '.join(cells)} | {max(peaks) / 1e6:.0f} | {sizes[0] / 1e6:.1f} |", flush=True)
    literal = _literal_barcodes_s(path, path.with_name(f"crop_{_EIGHTH.crop}.avg_barcodes.h5"))
    ours_s = statistics.median(seconds for seconds, *_ in found[_PRODUCTS[-1]])
    print(f"\nE11's algorithm, literally, takes {literal:.0f} s for the eighth: {literal / ours_s:.0f} ×.")


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def _made(root: Path, product: str, split: str, crop: int) -> tuple[float, float, float, float]:
    usage = measure([sys.executable, "-c", _MAKE, str(root), split, product, str(crop)])
    found = json.loads(usage.output.splitlines()[-1])
    return found["seconds"], found["cpu"], usage.peak_process, found["size"]


def _literal_barcodes_s(path: Path, ours: Path) -> float:
    """Seconds for a crop whose arrays are in memory; the result is compared with our product's file."""
    cross = ndimage.generate_binary_structure(2, 1)
    with Crop(path) as crop:
        labels = crop.labels[...]
        raw = np.stack([crop.channel(channel)[...] for channel in crop.channels])
    print(f"E11's algorithm on {labels.shape} voxels with {labels.max()} labels …", file=sys.stderr, flush=True)
    began = time.perf_counter()
    kept, found = np.zeros_like(labels), np.zeros_like(raw)
    for plane, target in zip(labels, kept, strict=True):
        grown = expand_labels(plane, 1)
        for label in np.unique(grown[grown > 0]):
            target[ndimage.binary_erosion(grown == label, cross, border_value=1)] = label
    for label in np.unique(kept[kept > 0]):
        mask = kept == label
        for channel, target in zip(raw, found, strict=True):
            target[mask] = (channel[mask] / np.float32(255)).mean() * 255
    seconds = time.perf_counter() - began
    with h5py.File(ours) as file:
        for channel, each in zip(found, file["avg_barcodes"].values(), strict=True):
            assert np.abs(each[...] - channel.astype(int)).max() <= 1
    return seconds


if __name__ == "__main__":
    main()
