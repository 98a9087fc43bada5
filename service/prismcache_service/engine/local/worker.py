"""A worker process: makes the crops that an engine sends on standard input, one at a time.

`prismcache_service.engine.local.engine` runs ``python -m prismcache_service.engine``. The first line of standard input
holds the settings, every further line a `CropTask`; each line of the output is a `News`. The process ends when its
input ends, so that it never outlives the engine. Work is done in a separate process so that neither a crash in a C
library, nor a full disk, nor the memory limit harms the program that needs the crop.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pydantic import TypeAdapter

from prismcache.catalog import published
from prismcache.config import Settings
from prismcache.disk import storage_error
from prismcache.errors import CropNotCachedError, PrismError, WorkerError
from prismcache.layout import FORMAT_VERSION, FileStamp, Manifest, SourceList
from prismcache.schema import CropFile, Problem, Product, Progress
from prismcache.splits import Splits
from prismcache_service.cache import FILE_MODE, CropCache, CropName
from prismcache_service.engine import CropTask, News
from prismcache_service.pipeline import Report
from prismcache_service.pipeline.bucket.s3 import Sources
from prismcache_service.pipeline.materialize import Materializer, Order, software
from prismcache_service.pipeline.products import RECIPES, make_product

ALIVE_S = 1.0
_REPORT_S = 0.1


class Outbox:
    """Sends lines to the engine; safe to use from several threads."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, news: News) -> None:
        """Send a line. If the engine has ended, the thread that reads its orders ends this process."""
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._stream.write(news.model_dump_json(exclude_none=True).encode() + b"\n")
            self._stream.flush()


class _Reporter:
    """Sends a crop's progress: the first and the last at once, those between at most ten times a second.

    The latest progress is sent even if no further object arrives.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._latest = Progress()
        self._next_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, progress: Progress) -> None:
        self._latest = progress
        if (progress.objects_done, progress.voxels_done) in {(0, 0), (progress.objects_total, progress.voxels_total)}:
            self._send()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._next_at, self._send)

    def _send(self) -> None:
        self.close()
        self._next_at = self._loop.time() + _REPORT_S
        self._outbox.send(News(progress=self._latest))

    def close(self) -> None:
        """Send no more: the engine would count progress sent after the outcome for the next crop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Worker:
    """Makes and publishes crops for one engine."""

    def __init__(self, settings: Settings, outbox: Outbox, materializer: Materializer, sources: Sources) -> None:
        self._cache, self._memory_limit = CropCache(settings.root), settings.memory_limit
        self._outbox = outbox
        self._materializer, self._sources = materializer, sources

    async def work(self, task: CropTask) -> None:
        """Make the file and send the outcome."""
        try:
            outcome: CropFile | Problem = await self._make(task)
        except PrismError as error:
            outcome = error.to_problem()
        except OSError as error:
            outcome = storage_error(error, error.filename or self._cache.root).to_problem()
        except MemoryError:
            os._exit(os.EX_OSERR)  # for the engine this is a killed worker: it tries again with a new one
        except Exception as error:  # noqa: BLE001 - every error leaves the process as a problem
            sys.stderr.write("".join(traceback.format_exception(error)))
            outcome = WorkerError(f"{type(error).__name__}: {error}").to_problem()
        self._outbox.send(News(outcome=outcome))
        self._materializer.tidy()  # memory that this crop left would count against the next crop's limit

    async def _make(self, task: CropTask) -> CropFile:
        name = task.name
        entry = task.entry or published().entry(name.split)
        self._cache.splits = Splits([entry])
        temporary = self._cache.temporary(name, task.token)
        report = _Reporter(self._outbox)
        try:
            if name.product is Product.CROP:
                order = Order(name, entry, await self._sources.of(entry), temporary)
                manifest, sources = await self._materializer.make(order, report, strict=task.strict)
                name = replace(name, channels=None if manifest.complete else manifest.channels)
            else:
                manifest = await self._derive(name, temporary, report)
                sources = SourceList(source_fingerprint=manifest.source_fingerprint, objects=())
            return await asyncio.to_thread(self._cache.publish, name, temporary, manifest, sources, task.token)
        finally:
            report.close()
            with contextlib.suppress(OSError):  # must neither hide the first error nor fail a published crop
                temporary.unlink(missing_ok=True)

    async def _derive(self, name: CropName, temporary: Path, report: Report) -> Manifest:
        """Make a product from the cached crop; return its manifest."""
        crop_name = CropName(name.split, name.crop)
        found = (await self._cache.find(crop_name)).file
        crop = await self._cache.threads.run(self._cache.manifest, crop_name)
        if found is None or crop is None:
            raise CropNotCachedError(f"crop {name.split.value}/{name.crop} is no longer cached")
        path, loop = self._cache.path(crop_name), asyncio.get_running_loop()

        def report_from_thread(progress: Progress) -> None:
            loop.call_soon_threadsafe(report, progress)

        sha256, size = await asyncio.to_thread(
            make_product,
            path,
            crop.sha256,
            name.product,
            temporary,
            mode=FILE_MODE,
            memory_limit=self._memory_limit,
            report=report_from_thread,
        )
        now = await self._cache.threads.run(self._cache.manifest, crop_name)
        if now is None or now.sha256 != crop.sha256:
            raise CropNotCachedError(
                f"crop {name.split.value}/{name.crop} changed while {name.product.value} was made from it"
            )
        return crop.model_copy(
            update={
                "format_version": FORMAT_VERSION,
                "sha256": sha256,
                "size": size,
                "stamp": FileStamp(size=size, mtime_ns=0, ctime_ns=0),
                "recipe": RECIPES[name.product],
                "product": name.product,
                "crop_sha256": crop.sha256,
                **software(),
            }
        )


async def _serve(stdin: BinaryIO, outbox: Outbox) -> None:
    settings = Settings.model_validate_json(stdin.readline())
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read_lines() -> None:
        for line in stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        os._exit(0)  # at once, in the middle of a crop; a later sweep deletes the temporary files

    async def show_life() -> None:
        while True:
            outbox.send(News())
            await asyncio.sleep(ALIVE_S)

    orders = TypeAdapter(CropTask)
    threading.Thread(target=read_lines, daemon=True).start()
    alive = asyncio.create_task(show_life())
    executor = ThreadPoolExecutor(settings.decode_threads or os.cpu_count(), "decode")
    async with contextlib.aclosing(Sources(settings, executor)) as sources:
        materializer = Materializer(settings, executor)
        worker = Worker(settings, outbox, materializer, sources)
        try:
            while line := await lines.get():
                await worker.work(orders.validate_json(line))
        finally:
            alive.cancel()
            materializer.close()


def main() -> None:
    """Entry point of the process."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine handles Ctrl-C
    gc.freeze()  # a collection that walks all modules takes 10 ms, and making a crop starts a hundred collections
    gc.set_threshold(20_000)
    # Output of libraries goes to standard error: on standard output, the engine would read it as a message.
    outbox = Outbox(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    try:
        asyncio.run(_serve(sys.stdin.buffer, outbox))
    except PrismError as error:
        outbox.send(News(outcome=error.to_problem()))
    except Exception:  # noqa: BLE001 - the traceback is what the engine shows
        traceback.print_exc()
        os._exit(1)  # the thread that reads standard input would make Python abort at its end
