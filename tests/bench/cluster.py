"""`make bench-cluster`: crops an hour from one and two Dask workers of one core each, and a model of up to 64.

The bucket is behind 30 ms of latency for each object. Each crop is an eighth of a full-size one, with 18 channels
(`--full-size` takes whole ones). Service, scheduler, workers and the S3 server share this machine, so two workers
cannot be twice as fast where there are two cores; the model is checked with the machine's cores as a resource, and then
asked without them, as on machines of their own. What a crop costs each part is taken in CPU seconds, from /proc.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from prismcache.config import Settings
from tests.bench.cluster_model import Resource, simulate
from tests.support.cache_root import published
from tests.support.crops import CropSpec, crop_folder, full_size_spec, write_crop
from tests.support.dask_cluster import DaskCluster
from tests.support.faults import FaultProxy
from tests.support.processes import eventually
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk

LATENCY_S = 0.03
COUNTS = (1, 2, 4, 8, 16, 32, 64)
_FULL_SIZE = Path("build/bench/bucket")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """Seconds for so many crops, and CPU seconds for one of each part."""

    workers: int
    crops: int
    wall: float
    worker_cpu: float
    front_cpu: float
    other_cpu: float
    objects: int
    bytes_fetched: int
    bytes_written: int

    @property
    def throughput(self) -> float:
        """Crops a second."""
        return self.crops / self.wall


def main() -> None:
    """Print what was measured, and what the model says."""
    arguments = _parser().parse_args()
    spec = full_size_spec() if arguments.full_size else _eighth_spec()
    source = _FULL_SIZE if arguments.full_size else _FULL_SIZE.with_name("eighth")
    if not crop_folder(source, spec).exists():
        print("writing the stand-in …", file=sys.stderr)
        write_crop(source, spec)
    runs = [_run(source, spec, workers, arguments.crops) for workers in (1, 2)]
    _print(runs, arguments.link, arguments.storage)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=4, help="crops of each run")
    parser.add_argument("--full-size", action="store_true", help="crops of the published size (2 GB in the bucket)")
    parser.add_argument("--link", type=float, nargs="+", default=[1000, 10_000], help="Mbit/s of the model's links")
    parser.add_argument("--storage", type=float, default=500, help="MB/s that the model's storage writes")
    return parser


def _eighth_spec() -> CropSpec:
    return replace(full_size_spec(), raw_shape=(150, 325, 325), labels_shape=(100, 250, 250))


def _run(source: Path, spec: CropSpec, workers: int, crops: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="bench-cluster-", dir=source.parent) as name:
        folder = Path(name).absolute()
        for crop in range(crops + workers):  # the first of each worker is not counted
            target = crop_folder(folder / "s3", replace(spec, crop=crop))
            shutil.copytree(crop_folder(source, spec), target, copy_function=os.link)
        with (
            S3Server(folder / "s3", dir_cache_seconds=86_400) as server,
            FaultProxy(server.endpoint, latency=LATENCY_S) as proxy,
            DaskCluster(folder) as cluster,
        ):
            cores = sorted(os.sched_getaffinity(0))
            for worker in range(workers):
                cluster.start_worker(prefix=["taskset", "--cpu-list", str(cores[worker % len(cores)])])
            environment = {"engine": "dask", "dask_scheduler": cluster.address, "decode_threads": 1}
            settings = Settings.load({}, root=folder / "root", s3_endpoint_url=proxy.endpoint, workers=workers)
            config = service_config(settings, folder / "state", min_free_bytes=0, **environment)
            with Service(config) as service, Desk(service) as desk:
                desk.http.get("/readyz")  # has it connect
                eventually(lambda: service.log.count(" is fit") == workers, "the workers are fit", 60)
                desk.ended(desk.submit(*range(workers)).id)
                proxy.clear()
                before, began = _cpu(cluster, service, server), time.perf_counter()
                desk.ended(desk.submit(*range(workers, workers + crops)).id)
                wall, after = time.perf_counter() - began, _cpu(cluster, service, server)
            keys = [key for key in proxy.gets() if not key.rpartition("/")[2].startswith(".")]
            size = (folder / "root" / published(folder / "root")[0]).stat().st_size
            fetched = sum((folder / "s3" / "e11bio-prism" / key).stat().st_size for key in keys)
    cpu = [(now - then) / crops for now, then in zip(after, before, strict=True)]
    return Run(workers, crops, wall, *cpu, len(keys) // crops, fetched // crops, size)


def _cpu(cluster: DaskCluster, service: Service, server: S3Server) -> tuple[float, float, float]:
    """CPU seconds so far: workers with their children, scheduler and service, what serves the bucket."""
    workers = [*cluster.workers(), *cluster.children()]
    front = _seconds(cluster.scheduler_pid) + _seconds(service.pid)
    return sum(_seconds(worker.pid) for worker in workers), front, _seconds(server.pid) + _seconds(os.getpid())


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _print(runs: list[Run], links: list[float], storage: float) -> None:
    one, two = runs
    fetched, written = one.bytes_fetched / 1e6, one.bytes_written / 1e6
    print(f"a crop: {one.objects} objects, {fetched:.0f} MB fetched, {written:.0f} MB file")
    print(f"CPU s of a crop: worker {one.worker_cpu:.2f}, scheduler and service {one.front_cpu:.3f}\n")
    # Alone, a crop is bound by its core or by latency; what is left of its time is fixed.
    alone = Settings.model_fields["s3_concurrency"].default * fetched / one.objects / LATENCY_S
    core, link = Resource(one.worker_cpu, alone=1.0), Resource(fetched, alone=alone)
    fixed = max(0.0, one.wall / one.crops - max(one.worker_cpu, fetched / alone))
    machine = Resource(one.worker_cpu + one.front_cpu + one.other_cpu, total=len(os.sched_getaffinity(0)))
    print("| workers | measured crops/h | model, on this machine's cores |")
    print("|---|---|---|")
    for run in runs:
        modelled = simulate(run.workers, {"core": core, "link": link, "machine": machine}, fixed)
        print(f"| {run.workers} | {3600 * run.throughput:.0f} | {3600 * modelled.throughput:.0f} |")
    print(f"\ntwo workers / one: {two.throughput / one.throughput:.2f}\n")
    shared = {
        "core": core,
        "storage": Resource(written, total=storage),
        "scheduler": Resource(one.front_cpu, total=1.0),
    }
    print("| link | workers, on machines of their own | crops/h | full | link | storage | scheduler and service |")
    print("|---|---|---|---|---|---|---|")
    for rate in links:
        for count in COUNTS:
            outcome = simulate(count, shared | {"link": replace(link, total=rate / 8)}, fixed)
            loads = " | ".join(f"{outcome.load[name]:.0%}" for name in ("link", "storage", "scheduler"))
            print(f"| {rate:g} Mbit/s | {count} | {3600 * outcome.throughput:.0f} | {outcome.bottleneck} | {loads} |")


if __name__ == "__main__":
    main()
