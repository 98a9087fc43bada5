"""Drive the ensure flow over a backend: all the waiting that `prismcache._ensure` does not do itself."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeAlias, TypeVar

import anyio

from prismcache._ensure import (
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
from prismcache.backend import Backend
from prismcache.errors import EnsureTimeoutError, PrismError
from prismcache.schema import CropFile, Job

Clock: TypeAlias = Callable[[], float]
Event: TypeAlias = Job | CropFile
T = TypeVar("T")

OVERRUN = 5.0
"""Seconds that a backend's call may outlast the caller's deadline before it is cut off. Calls that heed their own
deadline never need it; with ``timeout=0`` it is the time to find out what is cached."""

CANCEL_GRACE = 10.0
"""Seconds for the backend to take in a cancellation, while the caller is kept waiting."""


async def drive(backend: Backend, plan: EnsurePlan, clock: Clock = time.monotonic) -> AsyncGenerator[Event, None]:
    """Carry out `plan`, yielding every snapshot of the job and every file as it becomes ready.

    The files carry their path on this machine. Leaving early (an exception, a cancellation, `aclose`) cancels the
    job; a deadline that passes does not, since a second call may pick up what the first one started.

    Raises
    ------
    PrismError
        What the backend raised, or what became of the crops, after every other crop has ended.
    """
    state = begin(plan, clock())
    job: Job | None = None
    abandoned = True
    try:
        job = await _bounded(backend.submit(plan.request), state, clock)
        while True:
            state, ready = advance(state, job, clock())
            yield job
            for file in ready:
                state, local = await _localize(backend, file, state, clock)
                if local is not None:
                    yield local
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


async def _localize(
    backend: Backend, file: CropFile, state: EnsureState, clock: Clock
) -> tuple[EnsureState, CropFile | None]:
    """`file` with its path on this machine; one that cannot be had counts as failed, and the others go on."""
    try:
        path = await _bounded(backend.local_path(file), state, clock)
    except EnsureTimeoutError:
        raise
    except PrismError as error:
        return reject(state, file.crop, error), None
    return state, file.model_copy(update={"path": path})


async def _bounded(call: Awaitable[T], state: EnsureState, clock: Clock) -> T:
    """Await `call`, but not beyond the deadline.

    Raises
    ------
    EnsureTimeoutError
        If it was cut off.
    """
    with anyio.move_on_after(max(0.0, state.deadline - clock()) + OVERRUN):
        return await call
    raise timeout_error(state)


async def _cancel(backend: Backend, job: Job) -> None:
    """Cancel `job`, although the task itself may be under cancellation."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(CANCEL_GRACE):
        await backend.cancel(job)
