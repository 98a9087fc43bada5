"""What costs nothing to fetch: importing, `--help`, and `ensure` of 31 crops that are all cached."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prismcache import PrismClient
from prismcache.config import Settings
from tests.bench.programs import BENCH_DIR
from tests.support.bucket import make_bucket
from tests.support.cache_root import tiny_spec
from tests.support.crops import CROP_COUNT
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config

_RUNS = 7
_ENSURE = """
import json, sys, time
from prismcache import PrismClient
keywords, times = json.loads(sys.argv[1]), []
with PrismClient(**keywords) as client:
    for _ in range(11):
        began = time.perf_counter()
        paths = client.ensure("instance", progress=False) + client.ensure("semantic", progress=False)
        times.append(1000 * (time.perf_counter() - began))
        assert len(paths) == 31
print(json.dumps(times))
"""


def measure_warm() -> dict[str, float]:
    """Medians in milliseconds, by what was measured."""
    python = [sys.executable, "-c"]
    found = {"python": _wall([*python, "pass"])}
    found["import prismcache"] = _wall([*python, "import prismcache; prismcache.PrismClient"]) - found["python"]
    found["prismcache --help"] = _wall([str(Path(sys.executable).with_name("prismcache")), "--help"])
    with tempfile.TemporaryDirectory(dir=BENCH_DIR) as name:
        folder = Path(name).absolute()
        specs = [tiny_spec(crop, split=split) for split, count in CROP_COUNT.items() for crop in range(count)]
        bucket, root = make_bucket(folder / "bucket", specs), folder / "root"
        with S3Server(bucket, dir_cache_seconds=86_400) as server:
            keywords = {"root": str(root), "s3_endpoint_url": server.endpoint}
            with PrismClient(root=root, s3_endpoint_url=server.endpoint) as client:
                client.ensure("instance", progress=False)
                client.ensure("semantic", progress=False)
            found |= _ensure("embedded", keywords)
            settings = Settings.load({}, root=root, s3_endpoint_url=server.endpoint)
            with Service(service_config(settings, folder / "state", min_free_bytes=0)) as service:
                found |= _ensure("remote", {"root": str(root), "url": service.url})
    return found


def _ensure(name: str, keywords: dict[str, str]) -> dict[str, float]:
    """Both splits, in a process that has imported the client: the first call, and the median of those after it."""
    runs = []
    for _ in range(_RUNS):
        done = subprocess.run(
            [sys.executable, "-c", _ENSURE, json.dumps(keywords)], check=True, stdout=subprocess.PIPE, text=True
        )
        runs.append(json.loads(done.stdout))
    first, later = [run[0] for run in runs], [time for run in runs for time in run[1:]]
    return {
        f"ensure 31 crops, {name}, first": statistics.median(first),
        f"ensure 31 crops, {name}, again": statistics.median(later),
    }


def _wall(command: list[str]) -> float:
    times = []
    for _ in range(_RUNS + 1):  # the first run fills the page cache
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])
