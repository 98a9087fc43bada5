"""One crop over time: bytes fetched and written, CPU and memory, 20 times a second.

The pipeline runs in this process, as it does in a worker. ``python -m tests.bench.stages ENDPOINT`` prints the
samples as JSON; `plot` draws them.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prismcache.catalog import published
from prismcache.config import Settings
from prismcache.schema import Progress, Split
from prismcache_service.cache import CropName
from prismcache_service.engine.local.engine import WORKER_ENVIRONMENT
from prismcache_service.pipeline.bucket.s3 import open_s3
from prismcache_service.pipeline.materialize import Materializer, Order
from prismcache_service.pipeline.system import resident_bytes
from tests.bench.programs import BENCH_DIR

_SAMPLE_S = 0.05
STAGES = ("fetched", "written")


def record(endpoint: str) -> list[dict[str, float]]:
    """Samples of a full crop, made by a process of its own."""
    command = [sys.executable, "-m", "tests.bench.stages", endpoint]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | WORKER_ENVIRONMENT)
    samples: list[dict[str, float]] = json.loads(done.stdout)
    return samples


def plot(samples: dict[str, list[dict[str, float]]], target: Path) -> None:
    """A PNG with a column for each name in `samples`: bytes above, CPU and memory below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(samples), figsize=(7 * len(samples), 7), sharex="col", squeeze=False)
    for (name, rows), top, bottom in zip(samples.items(), axes[0], axes[1], strict=True):
        times = [row["time"] for row in rows]
        for stage in STAGES:
            top.plot(times, [row[stage] / 1e6 for row in rows], label=stage)
        top.set(title=name, ylabel="MB")
        top.legend()
        bottom.plot(times, _rate(rows, "cpu"), color="tab:red", label="cores busy")
        bottom.set(xlabel="seconds", ylabel="cores")
        memory = bottom.twinx()
        memory.plot(times, [row["memory"] / 1e6 for row in rows], color="tab:gray")
        memory.set(ylabel="resident MB (gray)", ylim=(0, None))
        bottom.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def _rate(rows: list[dict[str, float]], name: str) -> list[float]:
    """Change a second, over half a second."""
    back = max(1, round(0.5 / _SAMPLE_S))
    found = []
    for number, row in enumerate(rows):
        before = rows[max(0, number - back)]
        found.append((row[name] - before[name]) / max(row["time"] - before["time"], _SAMPLE_S))
    return found


async def _make(endpoint: str) -> list[dict[str, float]]:
    samples: list[dict[str, float]] = []
    fetched = [0]

    def report(progress: Progress) -> None:
        fetched[0] = progress.bytes_done

    with tempfile.TemporaryDirectory(dir=BENCH_DIR) as folder, ThreadPoolExecutor(os.cpu_count()) as executor:
        settings = Settings.load({}, s3_endpoint_url=endpoint)
        target, ended = Path(folder) / "crop.h5", threading.Event()
        async with open_s3(settings, executor) as source:
            materializer = Materializer(settings, executor)
            order = Order(CropName(Split.INSTANCE, 0), published()["instance"], source, target)
            sampler = threading.Thread(target=_sample, args=(fetched, target, samples, ended))
            sampler.start()
            try:
                await materializer.make(order, report)
            finally:
                ended.set()
                sampler.join()
                materializer.close()
    return samples


def _sample(fetched: list[int], target: Path, samples: list[dict[str, float]], ended: threading.Event) -> None:
    began, cpu = time.perf_counter(), _cpu()
    while True:
        written = target.stat().st_size if target.exists() else 0
        found = {"time": time.perf_counter() - began, "cpu": _cpu() - cpu, "memory": resident_bytes()}
        samples.append({**found, "fetched": fetched[0], "written": written})
        if ended.wait(_SAMPLE_S):
            return


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    json.dump(asyncio.run(_make(sys.argv[1])), sys.stdout)
