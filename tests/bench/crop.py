"""`make bench-crop`: one full-size crop from a local S3 server, ours against torch_em's own loader.

The stand-in is (18, 300, 650, 650) raw and (200, 500, 500) labels in the published layout: 1,024 objects. Every run
is a whole process with an empty cache folder. The server's listing is asked once before, so that its one-time MD5 of
the objects is not counted for anybody. torch_em runs where `make test-torch` has made its environment.

`--endpoint` measures against a server that runs already, e.g. one behind a slow link; `--link` says how many
megabytes a second that link carries, and adds the time that the bytes of the full crop alone take on it.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from prismcache_service.pipeline.metadata import read_crop
from prismcache_service.pipeline.plan import plan_crop
from tests.bench.process import Usage, measure
from tests.support.crops import CropSpec, crop_folder, full_size_spec, write_crop
from tests.support.folder_source import FolderSource
from tests.support.s3 import S3Server

_BUCKET = Path("build/bench/bucket")
_TORCH_EM = "torch_em, get_e11bio_data"
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
    with ExitStack() as running:
        endpoint = arguments.endpoint
        if endpoint is None:
            endpoint = running.enter_context(S3Server(_BUCKET, dir_cache_seconds=86_400)).endpoint
        _warm(endpoint)
        ours = _OURS.format(arguments=f"memory_limit={arguments.memory_limit!r}", channels="")
        one = _OURS.format(arguments="", channels="channels=[0],")
        programs = {
            "prismcache": [sys.executable, "-c", ours, endpoint],
            "prismcache, channels=[0]": [sys.executable, "-c", one, endpoint],
        }
        if arguments.reference and _REFERENCE_PYTHON.exists():
            programs[_TORCH_EM] = [str(_REFERENCE_PYTHON), "-W", "ignore", "-c", _REFERENCE, endpoint]
        rows: dict[str, list[tuple[Usage, int]]] = {name: [] for name in programs}
        for _ in range(arguments.runs):  # in turn, so that whatever else the machine does meets all of them
            for name, command in programs.items():
                rows[name].append(_run(command))
    _print_table(rows)
    if arguments.link:
        needed = asyncio.run(_bytes_needed(spec))
        seconds = needed / (arguments.link * 1e6)
        ours_took = statistics.median(usage.wall for usage, _ in rows["prismcache"])
        print(f"\n{needed / 1e6:.0f} MB take {seconds:.2f} s on that link; prismcache took {ours_took / seconds:.2f} x")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs of each program; medians are printed")
    parser.add_argument("--memory-limit", default="400MB", help="PRISMCACHE_MEMORY_LIMIT of our runs")
    parser.add_argument("--no-reference", dest="reference", action="store_false", help="leave torch_em out")
    parser.add_argument("--endpoint", help="an S3 server over the stand-in's bucket that runs already")
    parser.add_argument("--link", type=float, help="megabytes a second between here and the endpoint")
    return parser


def _warm(endpoint: str) -> None:
    listing = "import sys; from prismcache import PrismClient\n"
    listing += "with PrismClient(root=sys.argv[2], s3_endpoint_url=sys.argv[1]) as client: client.catalog()"
    _run([sys.executable, "-c", listing, endpoint])


def _run(command: list[str]) -> tuple[Usage, int]:
    """A run in an empty folder: what it used, and the bytes of the files it made."""
    root = Path(tempfile.mkdtemp(prefix="bench-", dir=_BUCKET.parent))
    try:
        try:
            usage = measure([*command, str(root)])
        except subprocess.CalledProcessError as error:
            sys.exit(f"{error}\n{error.stderr}")
        return usage, sum(file.stat().st_size for file in root.glob("*/*.h5"))
    finally:
        shutil.rmtree(root)


async def _bytes_needed(spec: CropSpec) -> int:
    """Bytes of the objects that a full crop takes."""
    place = crop_folder(_BUCKET, spec)
    source, folder = FolderSource(place.parent.parent), f"{spec.split}/{place.name}"
    crop = await read_crop(source, folder, await source.list_objects(folder))
    return sum(item.size for item in plan_crop(crop, None, strict=True).fetched())


def _print_table(rows: dict[str, list[tuple[Usage, int]]]) -> None:
    print("| program | wall s | CPU s | peak MB (largest process) | peak MB (all) | file MB | torch_em's wall is |")
    print("|---|---|---|---|---|---|---|")
    medians = {name: statistics.median(usage.wall for usage, _ in runs) for name, runs in rows.items()}
    for name, runs in rows.items():
        usages = [usage for usage, _ in runs]
        walls = [usage.wall for usage in usages]
        times = f"{medians[_TORCH_EM] / medians[name]:.1f} x" if _TORCH_EM in medians else "not run"
        print(
            f"| {name} | {medians[name]:.2f} ({min(walls):.2f}–{max(walls):.2f}) "
            f"| {statistics.median(u.cpu for u in usages):.2f} "
            f"| {statistics.median(u.peak_process for u in usages) / 1e6:.0f} "
            f"| {statistics.median(u.peak_sum for u in usages) / 1e6:.0f} "
            f"| {runs[0][1] / 1e6:.0f} | {times} |"
        )


if __name__ == "__main__":
    main()
