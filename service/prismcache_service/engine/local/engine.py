"""The engine on this machine: worker processes, one crop each at a time, started when there is work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import PIPE, Process
from collections import deque
from pathlib import Path
from typing import Self

from prismcache.config import Settings
from prismcache.errors import MemoryLimitError, WorkerError, error_from_problem
from prismcache.schema import CropFile
from prismcache_service.cache.cache import CropCache
from prismcache_service.engine.base import MAX_STRIKES, CropTask, Engine
from prismcache_service.engine.local.messages import EVENT, Alive, Failed, Made, Progressed, WorkOrder
from prismcache_service.engine.local.stagger import Stagger
from prismcache_service.extras import require_service_extra
from prismcache_service.pipeline.progress import Report

_SILENCE_S = 60.0
_GRACE_S = 2.0  # for an idle worker to end by itself; a service has 5 s in all to shut down
_LAST_WORDS = 20  # lines of standard error that an error message may quote
_MAX_LINE = 1 << 20
WORKER_ENVIRONMENT = {
    # One thread a library is plenty inside a worker.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Fewer arenas keep glibc's resident memory near what is used. It would give freed buffers back to the system, and
    # touching fresh pages for each piece of a body and each stream of ISA-L costs half a CPU second a crop.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    # aiohttp reads the system's certificates when it is imported, for 30 ms. Nothing here uses them: the SDK has its
    # own, or those that AWS's settings name.
    "SSL_CERT_FILE": os.devnull,
}


class WorkerDiedError(Exception):
    """A worker ended, or went silent, before it answered."""


class LocalEngine(Engine):
    """Worker processes that this process started; they end with it.

    Parameters
    ----------
    settings
        How many workers, and everything that a worker needs.
    silence
        Seconds without a sign of life after which a worker counts as hung.
    niceness
        Added to this process's own for workers, so that it goes first where both want a core.
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

    async def run(self, task: CropTask, report: Report) -> CropFile:
        require_service_extra()
        async with self._free, self._stagger.begin(report) as hear:
            for strike in range(1, MAX_STRIKES + 1):
                try:
                    return await self._run_once(task, hear)
                except WorkerDiedError as error:
                    if strike == MAX_STRIKES:
                        text = f"making {task.name.folder} ended {strike} worker processes, the last by {error}"
                        raise WorkerError(text) from error
        raise AssertionError("the loop above returns or raises")

    async def check(self) -> None:
        require_service_extra()

    async def aclose(self) -> None:
        idle, self._idle = self._idle, []
        await asyncio.gather(*(worker.stop() for worker in idle))

    async def _run_once(self, task: CropTask, report: Report) -> CropFile:
        used = self._idle.pop() if self._idle else None
        answer = await self._work(used or await self._start(), task, report)
        if used is not None and _is_for_want_of_memory(answer):
            answer = await self._work(await self._start(), task, report)
        if isinstance(answer, Made):
            return answer.file
        raise error_from_problem(answer.problem)

    async def _work(self, worker: _WorkerProcess, task: CropTask, report: Report) -> Made | Failed:
        try:
            answer = await worker.work(task, report)
            if _is_for_want_of_memory(answer):
                await worker.stop()  # what earlier crops left in it counts against the limit
            else:
                self._idle.append(worker)
        except BaseException:
            await asyncio.shield(self._put_down(worker, task.token))
            raise
        return answer

    async def _start(self) -> _WorkerProcess:
        return await _WorkerProcess.start(self._settings, self._silence, self._niceness)

    async def _put_down(self, worker: _WorkerProcess, token: str) -> None:
        """End a worker in the middle of its work; what it leaves goes too, so that the next may use the same token."""
        await worker.kill()
        await asyncio.to_thread(self._cache.discard, token)


def _give_way(pid: int, niceness: int) -> None:
    """Let others have the cores first, before the process has threads, which take over what it has."""
    with contextlib.suppress(OSError):  # it has ended already, which its first event tells
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
    with contextlib.suppress(OSError):  # where sessions share cores out (autogroup), each has a niceness of its own
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def _is_for_want_of_memory(answer: Made | Failed) -> bool:
    return isinstance(answer, Failed) and answer.problem.code == MemoryLimitError.code


class _WorkerProcess:
    """One worker process and the pipe to it."""

    def __init__(self, process: Process, silence: float) -> None:
        self._process = process
        self._stdin, self._stdout, self._stderr = _pipes(process)
        self._silence = silence
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._listening = asyncio.create_task(self._listen())

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
            # A Ctrl-C in the terminal is for the caller, who then ends the worker. And where Linux shares cores out
            # between sessions (autogroup), this one's answers must not wait for what its workers have used.
            start_new_session=True,
        )
        worker = cls(process, silence)
        _give_way(process.pid, niceness)
        await worker._say(settings.model_dump_json(include=set(Settings.model_fields) - {"token", "url"}))
        return worker

    async def work(self, task: CropTask, report: Report) -> Made | Failed:
        """Send an order and wait for its answer.

        Raises
        ------
        WorkerDiedError
            If the process ends or goes silent before.
        """
        name = task.name
        order = WorkOrder(
            split=name.split, crop=name.crop, channels=name.channels, strict=task.strict, token=task.token
        )
        await self._say(order.model_dump_json())
        while True:
            event = await self._next_event()
            if isinstance(event, Progressed):
                report(event.progress)
            elif not isinstance(event, Alive):
                return event

    async def _say(self, line: str) -> None:
        with contextlib.suppress(ConnectionError):  # a worker that is gone shows in the next event
            self._stdin.write(line.encode() + b"\n")
            await self._stdin.drain()

    async def _next_event(self) -> Alive | Progressed | Made | Failed:
        try:
            async with asyncio.timeout(self._silence):
                line = await self._stdout.readline()
        except TimeoutError:
            raise WorkerDiedError(f"no sign of life for {self._silence:.0f} s") from None
        if not line:
            raise WorkerDiedError(await self._obituary())
        return EVENT.validate_json(line)

    async def _obituary(self) -> str:
        code = await self._process.wait()
        await self._listening
        cause = f"exit code {code}"
        if code < 0:
            cause = f"signal {signal.Signals(-code).name}"
            cause += " (out of memory?)" if -code == signal.SIGKILL else ""
        return "; ".join([cause, *list(self._last_words)[-3:]])

    async def _listen(self) -> None:
        async for line in self._stderr:
            self._last_words.append(line.decode(errors="replace").rstrip())

    async def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._listening

    async def stop(self) -> None:
        """End an idle process: it ends with its input, or is killed where it does not, being stopped or hung."""
        self._stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await self._process.wait()
        await self.kill()


def _pipes(process: Process) -> tuple[StreamWriter, StreamReader, StreamReader]:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise AssertionError("the process was started with three pipes")
    return process.stdin, process.stdout, process.stderr
