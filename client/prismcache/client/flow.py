"""The ensure flow, without I/O: which crops are newly ready, and whether to wait, finish or raise.

Driven by `prismcache.client.drive`::

    state = begin(plan, now)
    state, ready = advance(state, job, now)      # with each snapshot of the job
    match decide(state, now): ...                # Wait | Finish | Fail

A crop that fails does not stop the others: the job goes on, ready crops stay cached, and the error is raised at the
end, with a note for each further crop that failed. `now` is in seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeAlias, TypeVar

from prismcache.arguments import Numbers, as_crops, job_request
from prismcache.errors import (
    EnsureTimeoutError,
    JobCancelledError,
    PrismError,
    RequestError,
    WorkerError,
    error_from_problem,
)
from prismcache.schema import CropFile, CropProgress, Job, JobRequest, Product, Split, State

_Error = TypeVar("_Error", bound=PrismError)

MAX_WAIT = 10.0
"""Seconds of one wait; short enough for a line of progress to show that a slow crop is alive."""


@dataclass(frozen=True, slots=True)
class EnsurePlan:
    """A checked call of ensure: `crops` with order and duplicates, None for all; `timeout` in seconds."""

    request: JobRequest
    crops: tuple[int, ...] | None
    timeout: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no crop is asked for."""
        return self.crops == ()

    def arrange(self, files: Mapping[int, CropFile]) -> list[CropFile]:
        """Return `files` (by crop) in the order asked, duplicates kept; all crops are in ascending order."""
        return [files[crop] for crop in (sorted(files) if self.crops is None else self.crops)]

    def times_asked(self, crop: int) -> int:
        """Return how many times the caller asked for this crop."""
        return 1 if self.crops is None else self.crops.count(crop)


@dataclass(frozen=True, slots=True)
class EnsureState:
    """The state of an ensure: the last snapshot, when it was seen, and the outcome of each crop."""

    plan: EnsurePlan
    deadline: float
    job: Job | None = None
    seen_at: float = -math.inf
    ready: Mapping[int, CropFile] = field(default_factory=lambda: MappingProxyType({}))
    failed: Mapping[int, PrismError] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def wanted(self) -> tuple[int, ...]:
        """Every crop asked for, each once; empty before the first snapshot of a job for all crops."""
        if self.plan.request.crops is not None:
            return self.plan.request.crops
        return () if self.job is None else tuple(crop.crop for crop in self.job.crops)

    @property
    def open(self) -> tuple[int, ...]:
        """The crops that are neither ready nor failed."""
        return tuple(crop for crop in self.wanted if crop not in self.ready and crop not in self.failed)


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for a newer snapshot, for at most `timeout` seconds."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Every crop asked for is ready."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Raise `error`."""

    error: PrismError


Decision: TypeAlias = Wait | Finish | Fail


def plan_ensure(
    split: str | Split,
    crops: Numbers | None,
    *,
    channels: Numbers | None = None,
    strict: bool = False,
    timeout: float | None = None,
    context: Numbers | str = 0,
    product: str | Product = Product.CROP,
) -> EnsurePlan:
    """Return the plan for a call of ensure, after checking its arguments.

    Raises
    ------
    RequestError
        If an argument is invalid; see `prismcache.arguments`.
    """
    try:
        is_long_enough = timeout is None or timeout >= 0  # false for NaN
    except TypeError:
        is_long_enough = False
    if not is_long_enough:
        raise RequestError(f"timeout must be 0 or more seconds, not {timeout!r}")
    asked = as_crops(crops)
    request = job_request(split, asked, channels, strict=strict, context=context, product=product)
    return EnsurePlan(request, asked, timeout)


def begin(plan: EnsurePlan, now: float) -> EnsureState:
    """Return the state before the job is submitted."""
    return EnsureState(plan, deadline=math.inf if plan.timeout is None else now + plan.timeout)


def advance(state: EnsureState, job: Job, now: float) -> tuple[EnsureState, tuple[CropFile, ...]]:
    """Return the state after a snapshot, and the files that the snapshot newly reports as ready."""
    state = replace(state, job=job, seen_at=now)
    progress = {crop.crop: crop for crop in job.crops}
    outcomes = {crop: _outcome(job, crop, progress.get(crop)) for crop in state.open}
    ready = {crop: outcome for crop, outcome in outcomes.items() if isinstance(outcome, CropFile)}
    failed = {crop: outcome for crop, outcome in outcomes.items() if isinstance(outcome, PrismError)}
    state = replace(state, ready={**state.ready, **ready}, failed={**state.failed, **failed})
    return state, tuple(ready.values())


def reject(state: EnsureState, crop: int, error: PrismError) -> EnsureState:
    """Return the state in which a crop failed although the job reported it as ready: its file cannot be used here."""
    ready = {number: file for number, file in state.ready.items() if number != crop}
    return replace(state, ready=ready, failed={**state.failed, crop: error})


def decide(state: EnsureState, now: float) -> Decision:
    """Return what to do next.

    The deadline is compared with the time of the last snapshot, not with `now`: a caller who took long between two
    steps gets the crops that are ready by then before the timeout is raised.
    """
    over = state.job is not None and state.job.state.is_final
    if over or (state.plan.request.crops is not None and not state.open):
        # The first error in the order asked; cancelled crops come last, since they explain nothing.
        failures = [(crop, state.failed[crop]) for crop in state.wanted if crop in state.failed]
        failures.sort(key=lambda failure: isinstance(failure[1], JobCancelledError))
        if not failures:
            return Finish()
        return Fail(_with_notes(failures[0][1], state.plan.request.split.value, failures[1:]))
    if state.seen_at >= state.deadline:
        return Fail(timeout_error(state))
    return Wait(min(MAX_WAIT, max(0.0, state.deadline - now)))


def timeout_error(state: EnsureState) -> EnsureTimeoutError:
    """Return the error for a deadline that passed; it says how many crops are ready, and names the others."""
    split, seconds = state.plan.request.split.value, state.plan.timeout or 0.0
    if not state.wanted:
        return EnsureTimeoutError(f"the {split} crops were not known within {seconds:g} s")
    missing = ", ".join(f"{split}/{crop}" for crop in state.open)
    error = EnsureTimeoutError(
        f"{len(state.ready)} of {len(state.wanted)} crops were ready within {seconds:g} s; not yet: {missing}"
    )
    return _with_notes(error, split, state.failed.items())


def _outcome(job: Job, crop: int, progress: CropProgress | None) -> CropFile | PrismError | None:
    """Return the outcome of one crop; None while it is open."""
    if progress is not None:
        if progress.state is State.DONE and progress.file is not None:
            return progress.file
        if progress.problem is not None and progress.state.is_final:
            return error_from_problem(progress.problem)
    state = job.state if progress is None else progress.state
    if State.CANCELLED in (state, job.state):
        return JobCancelledError(f"crop {job.split.value}/{crop}: the job was cancelled")
    if state.is_final or job.state.is_final:
        return WorkerError(f"crop {job.split.value}/{crop}: the job ended without a file or a reason")
    return None


def _with_notes(error: _Error, split: str, others: Iterable[tuple[int, PrismError]]) -> _Error:
    for crop, other in others:
        error.add_note(f"also failed: crop {split}/{crop}: error[{other.code}]: {other}")
    return error
