"""Drive the ensure flow over a backend: the I/O and the waiting for the decisions of `prismcache.client.flow`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias, TypeVar

import anyio

from prismcache.backend import Backend
from prismcache.client.flow import (
    EnsurePlan,
    EnsureState,
    Fail,
    Finish,
    Wait,
    advance,
    begin,
    decide,
    reject,
    timeout_error,
)
from prismcache.errors import EnsureTimeoutError, PrismError
from prismcache.schema import CropDownload, CropFile, Job, State

Clock: TypeAlias = Callable[[], float]
Event: TypeAlias = Job | CropFile
Step: TypeAlias = tuple[Event, ...]
"""Events that are handed over together, since a change of threads costs more than a look at a file."""

T = TypeVar("T")

OVERRUN = 5.0
"""Seconds that a backend's call may outlast the caller's deadline before it is cancelled. Calls with their own deadline
never need these seconds; with ``timeout=0`` they are the time to find out what is cached."""

TICK = 0.1
"""Seconds between snapshots of a download."""

CANCEL_GRACE = 10.0
"""Seconds for the backend to take a cancellation, while the caller waits."""


async def drive(backend: Backend, plan: EnsurePlan, clock: Clock = time.monotonic) -> AsyncGenerator[Step, None]:
    """Carry out `plan`, yielding every snapshot of the job and every file as it becomes ready.

    While a file is downloaded, the snapshots show its crop as a `CropDownload`. The files have their path on this
    machine. Leaving early (an exception, a cancellation, `aclose`) cancels the job. A deadline that passes does not,
    since a second call may continue the job of the first one.

    Raises
    ------
    PrismError
        The backend's error, or the first crop's error after every other crop has ended.
    """
    state = begin(plan, clock())
    job: Job | None = None
    abandoned = True
    try:
        job = await _bounded(backend.submit(plan.request), state, clock)
        while True:
            state, ready = advance(state, job, clock())
            here, others = await _bounded(_look(backend, ready), state, clock)
            yield job, *here
            for file in others:
                arrival = _Arrival(file)
                async with aclosing(arrival.watch(backend, state, clock)) as downloads:
                    async for download in downloads:
                        crops = (download if crop.crop == download.crop else crop for crop in job.crops)
                        yield (job.model_copy(update={"crops": tuple(crops)}),)
                if arrival.error is not None:
                    state = reject(state, file.crop, arrival.error)
                else:
                    yield (arrival.file,)
            match decide(state, clock()):
                case Wait(timeout):
                    job = await _bounded(backend.wait(job, timeout), state, clock)
                case Fail(error):
                    raise error
                case Finish():
                    break
        abandoned = False
    except EnsureTimeoutError:
        abandoned = False
        raise
    finally:
        if abandoned and job is not None and not job.state.is_final:
            await _cancel(backend, job)


async def _look(backend: Backend, files: Sequence[CropFile]) -> tuple[list[CropFile], list[CropFile]]:
    """Return the files that are on this machine already, with their paths here, and the other files."""
    paths = await backend.paths_here(files) if files else {}
    here = [_at(file, paths[file.crop]) for file in files if file.crop in paths]
    return here, [file for file in files if file.crop not in paths]


class _Arrival:
    """One file on its way to this machine; in the end `file` has its path here, unless there is an `error`."""

    def __init__(self, file: CropFile) -> None:
        self.file = file
        self.error: PrismError | None = None
        self._received: int | None = None

    async def watch(self, backend: Backend, state: EnsureState, clock: Clock) -> AsyncGenerator[CropDownload, None]:
        """Get the file to this machine; yield the progress if it has to be downloaded."""
        import asyncio  # here, since it takes a tenth of a second that importing prismcache should not

        coming = asyncio.ensure_future(_bounded(backend.local_path(self.file, self._report), state, clock))
        shown: int | None = None
        try:
            while not (await asyncio.wait({coming}, timeout=TICK))[0]:
                if self._received != shown:
                    shown = self._received
                    yield self._download(State.RUNNING)
            try:
                self.file = _at(self.file, coming.result())
            except EnsureTimeoutError:
                raise
            except PrismError as error:
                self.error = error
            if shown is not None:
                yield self._download(State.FAILED if self.error else State.DONE)
        finally:
            coming.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({coming})

    def _report(self, received: int) -> None:
        self._received = received

    def _download(self, state: State) -> CropDownload:
        return CropDownload(
            crop=self.file.crop,
            state=state,
            bytes_done=self.file.size if state is State.DONE else self._received or 0,
            bytes_total=self.file.size,
            file=self.file if state is State.DONE else None,
            problem=None if self.error is None else self.error.to_problem(),
        )


def _at(file: CropFile, path: str) -> CropFile:
    return file.model_copy(update={"path": path})


async def _bounded(call: Awaitable[T], state: EnsureState, clock: Clock) -> T:
    """Await `call` until the deadline and `OVERRUN` seconds more.

    Raises
    ------
    EnsureTimeoutError
        If the call was cancelled.
    """
    with anyio.move_on_after(max(0.0, state.deadline - clock()) + OVERRUN):
        return await call
    raise timeout_error(state)


async def _cancel(backend: Backend, job: Job) -> None:
    """Cancel `job`, also while the calling task is being cancelled."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(CANCEL_GRACE):
        await backend.cancel(job)
