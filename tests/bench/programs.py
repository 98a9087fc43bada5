"""The programs that are compared: each a process of its own that fetches instance crop 0 (or more) into a new folder.

Each prints the seconds that its call took, without the time to import it; ours also its CPU seconds, where the others'
are those of the whole process. Ours runs in a worker process: where that is to run already, as it does in a service, a
tiny crop is fetched before. An endpoint's listing is asked once before by `warm`, so that a server's one-time MD5 of
the objects is not counted for anybody.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prismcache.schema import NO_CONTEXT, Context
from tests.bench.process import Usage, measure
from tests.support.cache_root import tiny_spec
from tests.support.crops import BUCKET, PREFIX, crop_folder, write_crop

BENCH_DIR = Path("build/bench")
BUCKET_DIR = BENCH_DIR / "bucket"
TINY_CROP = 13
REFERENCE_PYTHON = Path(".venv-torch/bin/python")

_OURS = """
import json, sys, time
from prismcache import PrismClient
from tests.bench.process import cpu_of_family
endpoint, root, crops, keywords, settings, before = sys.argv[1], sys.argv[6], *map(json.loads, sys.argv[2:6])
with PrismClient(root=root, s3_endpoint_url=endpoint, **settings) as client:
    if before:
        client.ensure("instance", before, progress=False)
    began, cpu = time.perf_counter(), cpu_of_family()
    client.ensure("instance", crops, progress=False, **keywords)
    seconds, cpu = time.perf_counter() - began, cpu_of_family() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu}))
"""
# The reference reads the real bucket's name through s3fs; only the endpoint is told to it.
_REFERENCE = """
import json, sys, time, s3fs
plain = s3fs.S3FileSystem.__init__
def to_stand_in(self, *arguments, **keywords):
    keywords["endpoint_url"] = sys.argv[1]
    plain(self, *arguments, **keywords)
s3fs.S3FileSystem.__init__ = to_stand_in
from torch_em.data.datasets.light_microscopy.e11bio import get_e11bio_data
began = time.perf_counter()
get_e11bio_data(sys.argv[2], "instance", [0], download=True)
print(json.dumps({"seconds": time.perf_counter() - began}))
"""
_LISTING = """
import sys
from prismcache import PrismClient
with PrismClient(root=sys.argv[2], s3_endpoint_url=sys.argv[1]) as client:
    client.catalog()
"""


@dataclass(frozen=True)
class Run:
    """One run: what the process used, the seconds and CPU seconds of its call, and the bytes of the files it made."""

    usage: Usage
    seconds: float
    cpu: float
    bytes_made: int


def ours(
    endpoint: str,
    crops: Sequence[int] = (0,),
    channels: Sequence[int] | None = None,
    *,
    context: Context = NO_CONTEXT,
    has_worker: bool = True,
    **settings: object,
) -> list[str]:
    """`PrismClient.ensure`, embedded; `has_worker` says whether its worker process runs already."""
    keywords = {"context": context} | ({} if channels is None else {"channels": list(channels)})
    arguments = (list(crops), keywords, settings, [TINY_CROP] if has_worker else [])
    return [sys.executable, "-c", _OURS, endpoint, *map(json.dumps, arguments)]


def add_tiny_crop(folder: Path) -> None:
    """Add to a folder of buckets what `ours` fetches first."""
    if not crop_folder(folder, tiny_spec(TINY_CROP)).exists():
        write_crop(folder, tiny_spec(TINY_CROP))


def torch_em(endpoint: str) -> list[str] | None:
    """torch_em's `get_e11bio_data`, in the environment that `make test-torch` makes; None where there is none."""
    if not REFERENCE_PYTHON.exists():
        return None
    return [str(REFERENCE_PYTHON), "-W", "ignore", "-c", _REFERENCE, endpoint]


def s5cmd(endpoint: str) -> list[str] | None:
    """s5cmd, which only copies the objects of a crop, all of them; None where it is not installed."""
    found = shutil.which("s5cmd", path=str(Path(sys.executable).parent)) or shutil.which("s5cmd")
    folder = f"s3://{BUCKET}/{PREFIX}/instance/crop_0.zarr/*"
    return found and [found, "--no-sign-request", "--endpoint-url", endpoint, "--log", "error", "cp", folder]


def warm(endpoint: str) -> None:
    """Have the server list everything once."""
    run([sys.executable, "-c", _LISTING, endpoint])


def run(command: list[str]) -> Run:
    """Run a program in a new folder, which it gets as its last argument, and delete that."""
    root = Path(tempfile.mkdtemp(prefix="run-", dir=BENCH_DIR)).absolute()
    os.sync()  # what the run before wrote and deleted would cost this one
    try:
        usage = measure([*command, f"{root}/"])
        size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error}\n{error.stderr}")
    finally:
        shutil.rmtree(root)
    said = [line for line in usage.output.splitlines() if line.startswith('{"seconds"')]
    call = {"seconds": usage.wall, "cpu": usage.cpu} | (json.loads(said[-1]) if said else {})
    return Run(usage, call["seconds"], call["cpu"], size)
