"""What a crop's bytes cost one core, each step alone and in memory that is used again: nothing does it for less.

Fetching is measured against the endpoint given, the others on the objects as they lie on the disk. CPU seconds are of
the thread that works, scaled from a sample to the whole crop.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore import UNSIGNED

from prismcache.config import Settings
from prismcache.layout import SourceObject
from prismcache.schema import NO_CONTEXT, Context
from prismcache_service.pipeline.bucket.bodies import BodyReader, open_store
from prismcache_service.pipeline.codec.encode import Array, encode_row
from prismcache_service.pipeline.codec.relabelling import Runs, id_table, relabel, unique_ids
from prismcache_service.pipeline.plan.metadata import CropSource, read_crop
from prismcache_service.pipeline.plan.plan import CropPlan, plan_crop
from prismcache_service.pipeline.write.hdf5 import start_writeback
from tests.bench.programs import BUCKET_DIR
from tests.support.crops import PREFIX, CropSpec, crop_folder
from tests.support.folder_source import FolderSource

_SAMPLE = 48  # objects of each array
_REPEATS = 3


@dataclass(frozen=True)
class Limits:
    """CPU seconds of one core for one crop, by step; `needed` are the bytes to fetch, `written` those of the file."""

    seconds: dict[str, float]
    needed: int
    written: int

    @property
    def bare(self) -> float:
        """Decode, deflate and the copies between them."""
        return sum(self.seconds[name] for name in ("decode", "deflate", "copy"))

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def read_plan(spec: CropSpec, context: Context = NO_CONTEXT) -> tuple[CropSource, CropPlan]:
    """The plan of a full crop on the disk."""
    place = crop_folder(BUCKET_DIR, spec)
    source, folder = FolderSource(place.parent.parent), f"{spec.split}/{place.name}"

    async def read() -> CropSource:
        return await read_crop(source, folder, await source.list_objects(folder))

    crop = asyncio.run(read())
    return crop, plan_crop(crop, None, strict=True, context=context)


def measure_limits(endpoint: str, spec: CropSpec, written: int) -> Limits:
    """Measure all steps; `written` are the bytes of the finished file."""
    crop, plan = read_plan(spec)
    fetched = plan.fetched()
    needed = sum(item.size for item in fetched)
    place = crop_folder(BUCKET_DIR, spec)
    raw = [item for item in fetched if item.key.startswith("raw/")]
    labels = [item for item in fetched if item.key.startswith("labels/")]
    raw_bodies = [(place / item.key).read_bytes() for item in raw[:: max(1, len(raw) // _SAMPLE)]]
    label_bodies = [(place / item.key).read_bytes() for item in labels[:: max(1, len(labels) // _SAMPLE)]]
    seconds = {"fetch": _fetch(endpoint, [item for item in fetched if item.size])}
    share = needed / sum(map(len, (*raw_bodies, *label_bodies)))
    bodies = (*raw_bodies, *label_bodies)
    seconds["MD5"] = share * _cpu(lambda: [hashlib.md5(body).digest() for body in bodies])
    raw_share, label_share = len(raw) / len(raw_bodies), len(labels) / len(label_bodies)
    decode_raw = _cpu(lambda: [crop.raw.codec.decode(b, crop.raw.chunks) for b in raw_bodies])
    decode_labels = _cpu(lambda: [crop.labels.codec.decode(b, crop.labels.chunks) for b in label_bodies])
    seconds["decode"] = raw_share * decode_raw + label_share * decode_labels
    seconds["relabel"] = label_share * _relabel(crop, label_bodies)
    voxels = int(np.prod(plan.labels.region.shape))
    # Different ones, as in a crop: the same chunk again and again would deflate faster than any real one.
    rows = [crop.raw.codec.decode(body, crop.raw.chunks)[0, :16, :64, :128].copy() for body in raw_bodies[:32]]
    deflate_raw = _cpu(lambda: [encode_row(row, (0, 0, 0), (16, 64, 64)) for row in rows]) / sum(r.size for r in rows)
    decoded = crop.labels.codec.decode(label_bodies[0], crop.labels.chunks)[:16, :32, :64]
    runs = Runs.of(decoded)
    numbers = np.tile(relabel(runs, id_table([unique_ids(runs)])), (1, 2, 2))
    deflate_labels = _cpu(lambda: [encode_row(numbers, (0, 0, 0), (16, 64, 64)) for _ in range(32)])
    seconds["deflate"] = voxels * (len(plan.channels) * deflate_raw + deflate_labels / (32 * numbers.size))
    seconds["copy"] = _copy(plan)
    seconds["write"] = _write(written)
    seconds["SHA-256"] = written / 64e6 * _cpu(lambda: hashlib.sha256(bytes(64_000_000)).digest())
    return Limits(seconds, needed, written)


def _cpu(work: Callable[[], object]) -> float:
    """The least of a few runs, in seconds of this thread."""
    best = float("inf")
    for _ in range(_REPEATS):
        before = time.thread_time()
        work()
        best = min(best, time.thread_time() - before)
    return best


def _fetch(endpoint: str, items: list[SourceObject]) -> float:
    """All objects over one event loop, without their digests."""
    settings = Settings.load({}, s3_endpoint_url=endpoint)
    config = AioConfig(signature_version=UNSIGNED, s3={"addressing_style": "path"})

    async def fetch() -> float:
        waiting = list(items)
        session = get_session()
        client = session.create_client("s3", region_name="us-east-1", endpoint_url=endpoint, config=config)
        async with client as s3:
            bodies = BodyReader(s3, await open_store(session, s3, settings), settings)
            before = time.process_time()

            async def read_some() -> None:
                while waiting:
                    item = waiting.pop()
                    await bodies.read(f"{PREFIX}/instance/crop_0.zarr/{item.key}", item.size, if_match=None)

            await asyncio.gather(*(read_some() for _ in range(settings.s3_concurrency)))
            return time.process_time() - before

    return asyncio.run(fetch())


def _relabel(crop: CropSource, bodies: list[bytes]) -> float:
    chunks = [crop.labels.codec.decode(body, crop.labels.chunks).copy() for body in bodies]
    table = id_table(unique_ids(Runs.of(chunk)) for chunk in chunks)

    def number(chunk: Array) -> Array:
        runs = Runs.of(chunk)
        unique_ids(runs)
        return relabel(runs, table)

    return _cpu(lambda: [number(chunk) for chunk in chunks])


def _copy(plan: CropPlan) -> float:
    """Every voxel of the file once from a decoded chunk to its block, and once to its HDF5 chunk."""
    size = int(np.prod(plan.raw.region.shape[1:])) * (len(plan.channels) + 4)
    source, target = bytearray(16 << 20), bytearray(16 << 20)
    view = memoryview(target)

    def copy() -> None:
        view[:] = source

    copy()
    return 2 * size / len(source) * _cpu(copy)


def _write(size: int) -> float:
    """A file of `size` bytes, in pieces of 1 MiB, and on to the disk, which the system begins early."""
    data = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=BUCKET_DIR.parent, buffering=0) as file:
        before = time.thread_time()
        for number in range(size // len(data)):
            file.write(data)
            if number % 64 == 63:
                start_writeback(file.fileno(), (number - 63) * len(data))
        os.fsync(file.fileno())
        return time.thread_time() - before
