"""The words and figures of progress, for bars, lines and notebooks: pure functions, and a clock that is passed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from prismcache.numbers import format_bytes, format_duration, format_rate
from prismcache.schema import CropDownload, CropProgress, Job, State

Stage: TypeAlias = tuple[int, bool]
"""A crop's number, and whether it is being downloaded (from a service, which has made it)."""


def stage_of(crop: CropProgress) -> Stage:
    """Return the stage that a crop is in: a crop is first made, then downloaded, and each has a display of its own."""
    return crop.crop, isinstance(crop, CropDownload)


@dataclass
class CropClock:
    """Remembers when each crop was first seen running, and with how many bytes. Cached crops are never seen running."""

    clock: Callable[[], float]
    started: dict[Stage, tuple[float, int]] = field(default_factory=dict)
    ended: set[Stage] = field(default_factory=set)

    def started_now(self, job: Job) -> list[CropProgress]:
        """Return the crops that started, or failed before they were seen running, since the last snapshot."""
        new = [
            crop
            for crop in job.crops
            if crop.state in (State.RUNNING, State.FAILED) and stage_of(crop) not in self.started
        ]
        self.started |= {stage_of(crop): (self.clock(), crop.bytes_done) for crop in new}
        return new

    def ended_now(self, job: Job) -> list[CropProgress]:
        """Return the crops that ended since the last snapshot, of those that were seen running."""
        new = [
            crop
            for crop in job.crops
            if crop.state.is_final and stage_of(crop) in self.started and stage_of(crop) not in self.ended
        ]
        self.ended |= {stage_of(crop) for crop in new}
        return new

    def running(self, job: Job) -> list[CropProgress]:
        """Return the crops that are being made or downloaded."""
        return [crop for crop in job.crops if crop.state is State.RUNNING]

    def seconds(self, crop: CropProgress) -> float:
        """Return the seconds since the crop was first seen running."""
        return self.clock() - self.started[stage_of(crop)][0]

    def gained(self, crop: CropProgress) -> int:
        """Return the bytes that were fetched since the crop was first seen running."""
        return crop.bytes_done - self.started[stage_of(crop)][1]


def done_of(crop: CropProgress) -> tuple[int, int]:
    """Return how much is done, and of how much: bytes, or voxels once a product is made; the total is 0 if unknown."""
    return (crop.voxels_done, crop.voxels_total) if crop.voxels_total else (crop.bytes_done, crop.bytes_total)


def share_done(crop: CropProgress) -> float:
    """Return the share of `done_of`, 0 to 1; 0 while the total is unknown."""
    done, total = done_of(crop)
    return done / total if total else 0.0


def amount(crop: CropProgress) -> str:
    """Return how many bytes and objects are fetched, or how many voxels of a product are computed, of how many."""
    if crop.voxels_total:
        return f"{crop.voxels_done / 1e6:.1f} of {crop.voxels_total / 1e6:.1f} million voxels computed"
    if isinstance(crop, CropDownload):
        return f"{format_bytes(crop.bytes_done)} of {format_bytes(crop.bytes_total)} downloaded"
    if crop.waiting_for:
        return f"waits for {crop.waiting_for}"
    if not crop.objects_total:
        return "reading the listing"
    done, total = format_bytes(crop.bytes_done), format_bytes(crop.bytes_total)
    return f"{done} of {total}, {crop.objects_done} of {crop.objects_total} objects"


def progress_line(job: Job, crop: CropProgress, clock: CropClock) -> str:
    """Return how far a crop is, as one line without a line break."""
    share, seconds, gained = share_done(crop), clock.seconds(crop), clock.gained(crop)
    line = f"{job.split.value}/{crop.crop}: {share:.0%}, {amount(crop)}"
    if not crop.voxels_total and share < 1 and gained > 0 and seconds > 0:
        left = format_duration(seconds * (crop.bytes_total - crop.bytes_done) / gained)
        line += f", {format_rate(gained, seconds)}, {left} left"
    return line


def end_line(job: Job, crop: CropProgress, clock: CropClock) -> str:
    """Return how a crop ended, as one line without a line break."""
    name = f"{job.split.value}/{crop.crop}"
    if crop.file is not None and crop.state is State.DONE:
        seconds = clock.seconds(crop)
        rate = format_rate(clock.gained(crop), seconds)
        size, took = format_bytes(crop.file.size), format_duration(seconds)
        if isinstance(crop, CropDownload):
            return f"{name}: downloaded in {took}, {size} at {rate}"
        if crop.bytes_done:
            fetched = f"{format_bytes(crop.bytes_done)} fetched{'' if crop.voxels_total else f' at {rate}'}"
        else:
            fetched = "made from the cached crop" if crop.voxels_total else "made by another process"
        return f"{name}: ready in {took}, {fetched}, {size} on disk"
    if crop.problem is not None:
        return f"{name}: failed: error[{crop.problem.code}]"  # the error itself, with its reason, follows
    return f"{name}: {crop.state.value}"


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over all crops that had to be made. `bytes_total` is an estimate until every crop's size is known."""

    crops_ended: int
    crops: int
    bytes_done: int
    bytes_total: int
    is_estimate: bool


def total_of(crops: list[CropProgress]) -> Total:
    """Return the sums over `crops`; a crop whose size is not known yet counts with the mean size of the others."""
    known = [crop.bytes_total for crop in crops if crop.bytes_total]
    unknown = sum(1 for crop in crops if not crop.bytes_total and not crop.state.is_final)
    total = sum(known) + (unknown * sum(known) // len(known) if known else 0)
    ended = sum(1 for crop in crops if crop.state.is_final)
    return Total(ended, len(crops), sum(crop.bytes_done for crop in crops), total, unknown > 0)
