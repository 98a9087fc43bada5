"""`make bench-products`: what context and products of a full-size crop cost, beside E11's algorithm taken literally.

Context is fetched over loopback and over a slowed link, as in `make bench`. Products are made by a worker that runs
already, from a cached crop; semantic ones from a crop of the same labels' shape with one channel, which they do not
read. E11's algorithm works on whole arrays in memory, in one thread: growing and eroding are timed on some slices, the
means on some labels, and both are multiplied by how many there are.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
_PRODUCTS = {
    "unlabelled": "instance",
    "avg_barcodes": "instance",
    "facts": "instance",
    "fgbg": "semantic",
    "border_mask": "semantic",
}
_MBIT, _DELAY_S = 1000, 0.03
_SLICES, _LABELS = 5, 5
_MAKE = """
import json, sys, time
from pathlib import Path
from prismcache import PrismClient
from prismcache.schema import Product, Split
from prismcache_service.cache import CropCache, CropName
from tests.bench.process import cpu_of_family
root, split, product = sys.argv[1:]
cache = CropCache(Path(root))
with PrismClient(root) as client:
    for crop in (13, 0):  # a tiny one first, so that the worker runs
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
    for spec in (full_size_spec(), _SEMANTIC, tiny_spec(TINY_CROP, "semantic")):
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
                found["labels' box"].append(run(ours(endpoint)))
                found["all"].append(run(ours(endpoint, context="all")))
        for name, each in found.items():
            seconds, cpu = (statistics.median(getattr(one, what) for one in each) for what in ("seconds", "cpu"))
            peak, size = max(one.usage.peak_process for one in each) / 1e6, each[0].bytes_made / 1e6
            ratio = f"{seconds / _wire_s(name):.3f}" if where == "link" else ""
            print(f"| {name} | {where} | {seconds:.2f} | {ratio} | {cpu:.1f} | {peak:.0f} | {size:.0f} |", flush=True)


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
        for split in ("instance", "semantic"):
            client.ensure(split, [TINY_CROP, 0], progress=False)
        path = Path(client.ensure("instance", 0, progress=False)[0])
    print("\n| product | s | CPU s | peak MB, largest process | file MB |\n|---|---|---|---|---|")
    barcodes_s = 0.0
    for product, split in _PRODUCTS.items():
        found = [_made(root, split, product) for _ in range(runs)]
        seconds, cpu, peak, size = (statistics.median(each) for each in zip(*found, strict=True))
        barcodes_s = seconds if product == "avg_barcodes" else barcodes_s
        print(f"| `{product}` | {seconds:.2f} | {cpu:.1f} | {peak / 1e6:.0f} | {size / 1e6:.1f} |", flush=True)
    literal = _literal_barcodes_s(path)
    print(f"\nE11's algorithm, literally, would take {literal:.0f} s for `avg_barcodes`: {literal / barcodes_s:.0f} ×.")


def _made(root: Path, split: str, product: str) -> tuple[float, float, float, float]:
    usage = measure([sys.executable, "-c", _MAKE, str(root), split, product])
    found = json.loads(usage.output.splitlines()[-1])
    return found["seconds"], found["cpu"], usage.peak_process, found["size"]


def _literal_barcodes_s(path: Path) -> float:
    """Seconds for a whole crop, from some slices and some labels."""
    cross = ndimage.generate_binary_structure(2, 1)
    with Crop(path) as crop:
        labels = crop.labels[...]
        raw = np.stack([crop.channel(channel)[...] for channel in crop.channels])
        count = len(crop.labels_ids) - 1
    began = time.perf_counter()
    for z in random.Random(0).sample(range(len(labels)), _SLICES):
        plane, kept = expand_labels(labels[z], 1), np.zeros_like(labels[z])
        for label in np.unique(plane[plane > 0]):
            kept[ndimage.binary_erosion(plane == label, cross, border_value=1)] = label
    slices_s = (time.perf_counter() - began) / _SLICES * len(labels)
    began, found = time.perf_counter(), np.zeros_like(raw)
    for label in random.Random(0).sample(range(1, count + 1), _LABELS):
        mask = labels == label
        for channel, target in zip(raw, found, strict=True):
            target[mask] = (channel[mask] / np.float32(255)).mean() * 255
    return slices_s + (time.perf_counter() - began) / _LABELS * count


if __name__ == "__main__":
    main()
