"""`make bench-service`: latency of a service while two crops are made at full speed, and how quick a warm `ensure` is.

The service, its workers, the S3 server and the load generator share this machine. Two large crops (the full-size
stand-in of ``bench-crop`` if it is there) are made again and again by raw requests while 50 clients, each with a
connection of its own, ask for a job, each a moment (0.2 s in the mean) after its last response: 250 requests a second
in all. They write and read bytes: an HTTP library costs more than the service does, and its time would count as the
service's. The same is measured once more while 20 viewers read chunks of a cached crop, one after the other, a moment
(0.05 s in the mean) between two: 400 a second in all. Before that, with nothing else going on, a client with a mount
asks for 31 cached crops. Nothing is asserted: the table shows the targets beside the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import httpx2

from prismcache import PrismClient
from prismcache.config import Settings
from prismcache.schema import Job
from tests.support.bucket import demo_specs
from tests.support.cache_root import tiny_spec
from tests.support.crops import BUCKET, CROP_COUNT, CropSpec, crop_folder, full_size_spec, write_crop
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config

CLIENTS = 50
VIEWERS = 20
P99_TARGET_MS = 25
WARM_TARGET_MS = 30

_FULL_SIZE = Path("build/bench/bucket")
_THINK_S = 0.2  # mean
_LOOK_S = 0.05  # mean
_LARGE = (900, 901)  # numbers that no published crop has
_VIEWED = 902


@dataclass(frozen=True)
class Row:
    """One line of the table: times in seconds, and what they should be (ms)."""

    name: str
    times: Sequence[float]
    target: str = ""

    def __str__(self) -> str:
        ordered = sorted(self.times)
        last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        figures = " | ".join(f"{1000 * each:.1f}" for each in (statistics.median(ordered), last, ordered[-1]))
        return f"| {self.name} | {len(ordered)} | {figures} | {self.target} |"


HEAD = ("what", "count", "p50 ms", "p99 ms", "max ms", "target")


def main() -> None:
    """Print a Markdown table."""
    arguments = _parser().parse_args()
    rows = measure(arguments.seconds, arguments.warm_runs)
    print(f"| {' | '.join(HEAD)} |")
    print("|---|---|---|---|---|---|")
    print(*rows, sep="\n")


def measure(seconds: float, warm_runs: int) -> list[Row]:
    """Return a row for each kind of request; print the service's memory and the chunks a second to stderr.

    Parameters
    ----------
    seconds
        For how long the clients send requests.
    warm_runs
        How often all cached crops are asked for.
    """
    beside = _FULL_SIZE.parent if _FULL_SIZE.exists() else None  # where its objects can be linked to
    with tempfile.TemporaryDirectory(prefix="bench-service-", dir=beside) as name:
        folder = Path(name).absolute()
        _write_bucket(folder / "s3")
        with S3Server(folder / "s3", dir_cache_seconds=86_400) as server:
            _put_last(server.pid)
            settings = Settings.load({}, root=folder / "root", s3_endpoint_url=server.endpoint, workers=2)
            with Service(service_config(settings, folder / "state", min_free_bytes=0)) as service:
                return _measure(service, folder / "root", seconds, warm_runs)


def _put_last(pid: int) -> None:
    """Let a process have what others leave of the cores: the clients are not to wait for S3, which is elsewhere."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), 10)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="for how long the 50 clients ask")
    parser.add_argument("--warm-runs", type=int, default=50, help="how often all cached crops are asked for")
    return parser


def _tiny_specs() -> list[CropSpec]:
    return [
        *(tiny_spec(crop) for crop in range(CROP_COUNT["instance"])),
        *(tiny_spec(crop, "semantic") for crop in range(CROP_COUNT["semantic"])),
    ]


def _write_bucket(bucket_dir: Path) -> None:
    print("writing the bucket …", file=sys.stderr)
    for spec in _tiny_specs():
        write_crop(bucket_dir, spec)
    source = crop_folder(_FULL_SIZE, full_size_spec()).absolute()
    for crop in (*_LARGE, _VIEWED):
        target = crop_folder(bucket_dir, replace(full_size_spec(), crop=crop))
        if source.exists():
            _link_tree(source, target)
        else:
            write_crop(bucket_dir, replace(demo_specs()[0], crop=crop))
    assert (bucket_dir / BUCKET).is_dir()


def _link_tree(source: Path, target: Path) -> None:
    """The same objects under another crop's name, without a copy; the server follows no links but hard ones."""
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                place.hardlink_to(path)
            except OSError:  # another file system
                place.write_bytes(path.read_bytes())


def _measure(service: Service, root: Path, seconds: float, warm_runs: int) -> list[Row]:
    with PrismClient(root, url=service.url) as client:
        print("making 31 crops …", file=sys.stderr)
        instance = range(CROP_COUNT["instance"])
        wanted = [("instance", list(instance)), ("semantic", list(range(CROP_COUNT["semantic"])))]
        for split, crops in wanted:
            client.ensure(split, crops, progress=False)
        client.ensure("instance", _VIEWED, progress=False)
        # One request for each split: the API has no request for both.
        warm = _times(lambda: [client.ensure(split, crops, progress=False) for split, crops in wanted], warm_runs)
        one_split = _times(lambda: client.ensure("semantic", progress=False), warm_runs)
    idle, _ = asyncio.run(_load(service.url, seconds / 2, busy=False))
    print("asking while two crops are made …", file=sys.stderr)
    busy, _ = asyncio.run(_load(service.url, seconds, busy=True))
    print("asking and viewing while two crops are made …", file=sys.stderr)
    asyncio.run(_load(service.url, seconds / 2, busy=True, viewers=VIEWERS))  # opens what is opened once
    before = _resident_bytes(service.pid)
    beside, chunks = asyncio.run(_load(service.url, seconds, busy=True, viewers=VIEWERS))
    after = _resident_bytes(service.pid)
    memory = f"{before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after"
    print(f"{len(chunks) / seconds:.0f} chunks/s; memory of the service: {memory}", file=sys.stderr)
    target = f"p99 ≤ {P99_TARGET_MS} ms"
    return [
        Row(f"GET /v1/jobs/{{id}}, {CLIENTS} clients, two crops in the making", busy, target),
        Row(f"the same, and {VIEWERS} viewers", beside, target),
        Row(f"GET …/zarr/0/…, {VIEWERS} viewers, two crops in the making", chunks),
        Row(f"GET /v1/jobs/{{id}}, {CLIENTS} clients, nothing else", idle),
        Row("warm ensure of all 31 crops, in two requests", warm, f"≤ {WARM_TARGET_MS} ms"),
        Row("warm ensure of the 17 semantic ones", one_split),
    ]


def _times(work: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _load(url: str, seconds: float, *, busy: bool, viewers: int = 0) -> tuple[list[float], list[float]]:
    """What each request of a job and of a chunk took, of clients that think for a moment after each response."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
        job = await _submit(http, list(_LARGE) if busy else [0])
        making = asyncio.create_task(_make_again_and_again(http, job)) if busy else None
        try:
            if busy:
                await _until_fetching(http, job)
            connections = [await _Connection.open(url) for _ in range(CLIENTS + viewers)]
            zarr = f"/v1/crops/instance/{_VIEWED}/zarr/0/"
            array = (await http.get(f"{zarr}.zarray")).json() if viewers else {"shape": (), "chunks": ()}
            grid = [-(-size // chunk) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
            end = time.perf_counter() + seconds
            asking = [_ask(each, lambda: f"/v1/jobs/{job}", end, _THINK_S) for each in connections[:CLIENTS]]
            viewing = [
                _ask(each, lambda: zarr + ".".join(str(random.randrange(count)) for count in grid), end, _LOOK_S)
                for each in connections[CLIENTS:]
            ]
            found = await asyncio.gather(*asking, *viewing)
        finally:
            if making is not None:
                making.cancel()
                await asyncio.gather(making, return_exceptions=True)
    jobs, chunks = ([each for times in part for each in times] for part in (found[:CLIENTS], found[CLIENTS:]))
    return jobs, chunks


async def _ask(connection: _Connection, path: Callable[[], str], end: float, think: float) -> list[float]:
    times = []
    while True:
        await asyncio.sleep(random.random() * 2 * think)
        if (began := time.perf_counter()) >= end:
            connection.close()
            return times
        await connection.get(path())
        times.append(time.perf_counter() - began)


class _Connection:
    """One kept HTTP/1.1 connection."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host, self._reader, self._writer = host, reader, writer

    @classmethod
    async def open(cls, url: str) -> Self:
        host = url.removeprefix("http://")
        name, _, port = host.rpartition(":")
        return cls(host, *await asyncio.open_connection(name, int(port)))

    async def get(self, path: str) -> None:
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200 "), head
        length = next(line.partition(":")[2] for line in head.splitlines() if line.startswith("content-length:"))
        await self._reader.readexactly(int(length))

    def close(self) -> None:
        self._writer.close()


async def _submit(http: httpx2.AsyncClient, crops: list[int]) -> str:
    response = await http.post("/v1/jobs", json={"split": "instance", "crops": crops})
    return Job.model_validate(response.raise_for_status().json()).id


async def _until_fetching(http: httpx2.AsyncClient, job: str) -> None:
    while True:
        found = Job.model_validate((await http.get(f"/v1/jobs/{job}?wait=5")).raise_for_status().json())
        if all(crop.bytes_done for crop in found.crops) or found.state.is_final:
            return


async def _make_again_and_again(http: httpx2.AsyncClient, job: str) -> None:
    """Keep two workers busy until cancelled."""
    while True:
        found = Job.model_validate((await http.get(f"/v1/jobs/{job}?wait=5")).raise_for_status().json())
        if found.state.is_final:
            for crop in _LARGE:
                await http.delete(f"/v1/crops/instance/{crop}")
            job = await _submit(http, list(_LARGE))


if __name__ == "__main__":
    main()
