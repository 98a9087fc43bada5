"""`make bench-crop`: one full-size crop from a local S3 server, ours against torch_em's own loader.

The stand-in is (18, 300, 650, 650) raw and (200, 500, 500) labels in the published layout: 1,024 objects. Every run
is a whole process with an empty cache folder. The server's listing is asked once before, so that its one-time MD5 of
the objects is not counted for anybody.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.bench.process import Usage, measure
from tests.support.crops import crop_folder, full_size_spec, write_crop
from tests.support.s3 import S3Server

_BUCKET = Path("build/bench/bucket")
_REFERENCE_PYTHON = Path(".venv-torch/bin/python")
_OURS = """
import sys
from prismcache import PrismClient
with PrismClient(root=sys.argv[2], s3_endpoint_url=sys.argv[1], {arguments}) as client:
    client.ensure("instance", [0], {channels} progress=False)
"""
# The reference reads the real bucket's name through s3fs; only the endpoint is told to it.
_REFERENCE = """
import sys, s3fs
plain = s3fs.S3FileSystem.__init__
def to_stand_in(self, *arguments, **keywords):
    keywords["endpoint_url"] = sys.argv[1]
    plain(self, *arguments, **keywords)
s3fs.S3FileSystem.__init__ = to_stand_in
from torch_em.data.datasets.light_microscopy.e11bio import get_e11bio_data
get_e11bio_data(sys.argv[2], "instance", [0], download=True)
"""


def main() -> None:
    """Print a Markdown table of the runs' medians."""
    arguments = _parser().parse_args()
    spec = full_size_spec()
    if not crop_folder(_BUCKET, spec).exists():
        print("writing the full-size stand-in (2 GB) …", file=sys.stderr)
        write_crop(_BUCKET, spec)
    with S3Server(_BUCKET, dir_cache_seconds=86_400) as server:
        ours = _OURS.format(arguments=f"memory_limit={arguments.memory_limit!r}", channels="")
        one = _OURS.format(arguments="", channels="channels=[0],")
        endpoint = server.endpoint
        _warm(endpoint)
        rows = {"prismcache": _runs([sys.executable, "-c", ours, endpoint], arguments.runs)}
        rows["prismcache, channels=[0]"] = _runs([sys.executable, "-c", one, endpoint], arguments.runs)
        if arguments.reference and _REFERENCE_PYTHON.exists():
            rows["torch_em"] = _runs([str(_REFERENCE_PYTHON), "-c", _REFERENCE, endpoint], arguments.runs)
    _print_table(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each program; medians are printed")
    parser.add_argument("--memory-limit", default="400MB", help="PRISMCACHE_MEMORY_LIMIT of our runs")
    parser.add_argument("--reference", action="store_true", help="run torch_em too (after `make test-torch`)")
    return parser


def _warm(endpoint: str) -> None:
    listing = "import sys; from prismcache import PrismClient\n"
    listing += "with PrismClient(root=sys.argv[2], s3_endpoint_url=sys.argv[1]) as client: client.catalog()"
    _run([sys.executable, "-c", listing, endpoint])


def _runs(command: list[str], count: int) -> list[tuple[Usage, dict[str, int]]]:
    return [_run(command) for _ in range(count)]


def _run(command: list[str]) -> tuple[Usage, dict[str, int]]:
    root = Path(tempfile.mkdtemp(prefix="bench-", dir=_BUCKET.parent))
    try:
        usage = measure([*command, str(root)])
        return usage, _made(root)
    finally:
        shutil.rmtree(root)


def _made(root: Path) -> dict[str, int]:
    files = list(root.glob("*/*.h5"))
    found = {"file_bytes": sum(file.stat().st_size for file in files)}
    for sources in root.glob(".prismcache/manifests/*/*.sources.json"):
        found["listed"] = len(json.loads(sources.read_text())["objects"])
    return found


def _print_table(rows: dict[str, list[tuple[Usage, dict[str, int]]]]) -> None:
    print("| program | wall s | CPU s | peak MB (largest process) | peak MB (all) | file MB |")
    print("|---|---|---|---|---|---|")
    for name, runs in rows.items():
        usages = [usage for usage, _ in runs]
        walls = [usage.wall for usage in usages]
        print(
            f"| {name} | {statistics.median(walls):.2f} ({min(walls):.2f}–{max(walls):.2f}) "
            f"| {statistics.median(u.cpu for u in usages):.2f} "
            f"| {statistics.median(u.peak_process for u in usages) / 1e6:.0f} "
            f"| {statistics.median(u.peak_sum for u in usages) / 1e6:.0f} "
            f"| {runs[0][1]['file_bytes'] / 1e6:.0f} |"
        )


if __name__ == "__main__":
    main()
