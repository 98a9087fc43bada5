"""The engine on this machine: worker processes, each with one crop at a time, started when there is work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from pydantic_core import to_json

from prismcache.config import Settings
from prismcache.errors import MemoryLimitError, MissingExtraError, StorageError, WorkerError
from prismcache.schema import Problem, Progress
from prismcache_service.cache import CropCache
from prismcache_service.engine import MAX_STRIKES, CropTask, Engine, News, Outcome
from prismcache_service.pipeline import Report, require_service_extra

_SILENCE_S = 60.0
_PATIENCE_S = 3.0  # for the progress of the crop that began before
_GRACE_S = 2.0  # for an idle worker to end by itself; a service has 5 s in all to shut down
_STDERR_LINES = 3  # the last ones, quoted when a worker dies
_MAX_LINE = 1 << 20  # bytes
_log = logging.getLogger(__name__)

WORKER_ENVIRONMENT = {
    # The decode threads of a worker use the cores; libraries need no threads of their own.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # One arena keeps glibc's resident memory near the memory in use (two: 25 MB more, and not faster). With the default
    # thresholds, glibc returns freed buffers to the system, and touching fresh pages for each body and each stream of
    # ISA-L costs 0.5 CPU s for each crop.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}


class WorkerDiedError(Exception):
    """A worker ended, or sent nothing for too long, before its crop was made."""


class LocalEngine(Engine):
    """Worker processes that this process starts, and that end when this process ends.

    A worker that sends nothing for `silence` seconds counts as hung. `niceness` is added to this process's own niceness
    for workers, so that this process goes first where both need a core.
    """

    name = "local"

    def __init__(self, settings: Settings, *, silence: float = _SILENCE_S, niceness: int = 0) -> None:
        self._settings = settings
        self._silence = silence
        self._niceness = niceness
        self._cache = CropCache(settings.root)
        self._free = asyncio.Semaphore(settings.workers)
        self._stagger = Stagger(settings.workers)
        self._idle: list[_WorkerProcess] = []

    async def run(self, task: CropTask, report: Report) -> Outcome:
        try:
            await self.check()
        except MissingExtraError as error:
            return error.to_problem()
        cause = ""
        async with self._free, self._stagger.begin(report) as staggered:
            for _ in range(MAX_STRIKES):
                try:
                    used = self._idle.pop() if self._idle else None
                    outcome = await self._work(used or await self._start(), task, staggered)
                    if used is not None and _lacks_memory(outcome):
                        outcome = await self._work(await self._start(), task, staggered)
                    return outcome
                except WorkerDiedError as error:
                    cause = str(error)
                except OSError as error:  # such as too many processes or open files
                    return WorkerError(
                        f"no worker process can be started: {error}",
                        remedy="Raise the limits of open files and of processes (`ulimit -n 4096`, `ulimit -u`).",
                    ).to_problem()
        text = f"making {task.name.folder} ended {MAX_STRIKES} worker processes, the last by {cause}"
        return WorkerError(text).to_problem()

    async def check(self) -> None:
        require_service_extra()

    async def aclose(self) -> None:
        idle, self._idle = self._idle, []
        await asyncio.gather(*(worker.stop() for worker in idle))

    async def _work(self, worker: _WorkerProcess, task: CropTask, report: Report) -> Outcome:
        try:
            outcome = await worker.work(task, report)
            if _lacks_memory(outcome):
                await worker.stop()  # memory that earlier crops left in the worker counts against the limit
            else:
                self._idle.append(worker)
        except BaseException:
            await asyncio.shield(self._kill(worker, task.token))
            raise
        return outcome

    async def _start(self) -> _WorkerProcess:
        return await _WorkerProcess.start(self._settings, self._silence, self._niceness)

    async def _kill(self, worker: _WorkerProcess, token: str) -> None:
        """Kill a worker and delete its unfinished files, so that the next worker may use the same token."""
        await worker.kill()
        try:
            await self._cache.threads.run(self._cache.discard, token)
        except StorageError as error:
            _log.warning("unfinished files of a killed worker stay until the next sweep: %s", error)


def _lower_priority(pid: int, niceness: int) -> None:
    """Raise a process's niceness; to be called before the process starts threads, which inherit it."""
    with contextlib.suppress(OSError):  # if the process has ended, its pipe shows that
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
    with contextlib.suppress(OSError):  # with Linux's autogroup, each session has a niceness of its own
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def _lacks_memory(outcome: Outcome) -> bool:
    return isinstance(outcome, Problem) and outcome.code == MemoryLimitError.code


class _WorkerProcess:
    """One worker process and the pipe to it."""

    def __init__(self, process: Process, silence: float) -> None:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the process was started with pipes")
        self._process, self._stdin, self._stdout = process, process.stdin, process.stdout
        self._silence = silence
        self._stderr_lines: deque[str] = deque(maxlen=_STDERR_LINES)
        self._reading_stderr = asyncio.create_task(self._read_stderr())

    @classmethod
    async def start(cls, settings: Settings, silence: float, niceness: int) -> Self:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "prismcache_service.engine",
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=os.environ | WORKER_ENVIRONMENT,
            limit=_MAX_LINE,
            # A Ctrl-C in the terminal goes to the caller alone, which then ends the worker. And where Linux divides the
            # cores between sessions (autogroup), the caller must not pay for what its workers used.
            start_new_session=True,
        )
        worker = cls(process, silence)
        _lower_priority(process.pid, niceness)
        await worker._send(settings.model_dump_json(include=set(Settings.model_fields) - {"token", "url"}))
        return worker

    async def work(self, task: CropTask, report: Report) -> Outcome:
        """Send an order and return its outcome.

        Raise `WorkerDiedError` if the process ends before its outcome, or sends nothing for too long.
        """
        await self._send(to_json(task).decode())
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    line = await self._stdout.readline()
            except TimeoutError:
                raise WorkerDiedError(f"silence for {self._silence:.0f} s") from None
            if not line:
                raise WorkerDiedError(await self._cause_of_death())
            news = News.model_validate_json(line)
            if news.outcome is not None:
                return news.outcome
            if news.progress is not None:
                report(news.progress)

    async def _send(self, line: str) -> None:
        with contextlib.suppress(ConnectionError):  # reading the pipe then shows that the worker ended
            self._stdin.write(line.encode() + b"\n")
            await self._stdin.drain()

    async def _cause_of_death(self) -> str:
        code = await self._process.wait()
        await self._reading_stderr
        cause = f"exit code {code}"
        if code < 0:
            cause = f"signal {signal.Signals(-code).name}"
            cause += " (out of memory?)" if -code == signal.SIGKILL else ""
        return "; ".join([cause, *self._stderr_lines])

    async def _read_stderr(self) -> None:
        if self._process.stderr is not None:
            async for line in self._process.stderr:
                self._stderr_lines.append(line.decode(errors="replace").rstrip())

    async def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading_stderr

    async def stop(self) -> None:
        """End an idle process by closing its input; kill the process if that is not enough."""
        self._stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await self._process.wait()
        await self.kill()


class Stagger:
    """Lets crops begin one after another: each waits until the one before has fetched 1 / `crops` of its bytes.

    Crops that begin together share the network, and then also end together: all of them compress, hash and publish, and
    the network is idle. If each crop begins some time after the one before, one crop is fetched while another ends.

    `crops` are made at the same time. The next crop does not wait for a crop that reported no progress for `patience`
    seconds and may be stuck.
    """

    def __init__(self, crops: int, patience: float = _PATIENCE_S) -> None:
        self._crops = crops
        self._patience = patience
        self._turn = asyncio.Lock()
        self._latest: _Begun | None = None  # the crop that began last

    @asynccontextmanager
    async def begin(self, report: Report) -> AsyncIterator[Report]:
        """Wait for the crop's turn; the block makes the crop, and calls the yielded function with its progress."""
        async with self._turn:
            if self._latest is not None:
                await self._latest.wait(self._patience)
            begun = self._latest = _Begun()

        def report_both(progress: Progress) -> None:
            begun.update(is_ahead=progress.bytes_total <= self._crops * progress.bytes_done)
            report(progress)

        try:
            yield report_both
        finally:
            begun.update(is_ahead=True)


class _Begun:
    """A crop that has begun. The next crop may begin once this one is ahead."""

    def __init__(self) -> None:
        self._is_ahead = False
        self._updated = asyncio.Event()

    def update(self, *, is_ahead: bool) -> None:
        self._is_ahead |= is_ahead
        self._updated.set()

    async def wait(self, patience: float) -> None:
        """Return when the crop is ahead or ended, or had no update for `patience` seconds."""
        while not self._is_ahead:
            self._updated.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._updated.wait()
            except TimeoutError:
                return
