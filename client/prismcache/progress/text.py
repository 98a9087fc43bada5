"""What progress says, whether in bars or in lines: pure, but for a clock that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from prismcache.schema import CropDownload, CropProgress, Job, State
from prismcache.units import format_bytes, format_duration, format_rate

Stage: TypeAlias = tuple[int, bool]
"""A crop's number, and whether it is being downloaded (from a service, which has made it)."""


def stage_of(crop: CropProgress) -> Stage:
    """Which part of its way a crop is on: being made and being downloaded are shown one after the other."""
    return crop.crop, isinstance(crop, CropDownload)


@dataclass
class CropClock:
    """When each crop was first seen running, and with how many bytes. Others were cached, or never had their turn."""

    clock: Callable[[], float]
    started: dict[Stage, tuple[float, int]] = field(default_factory=dict)
    ended: set[Stage] = field(default_factory=set)

    def started_now(self, job: Job) -> list[CropProgress]:
        """The crops that run, or ended in failure, since the last snapshot."""
        news = [
            crop
            for crop in job.crops
            if crop.state in (State.RUNNING, State.FAILED) and stage_of(crop) not in self.started
        ]
        self.started |= {stage_of(crop): (self.clock(), crop.bytes_done) for crop in news}
        return news

    def ended_now(self, job: Job) -> list[CropProgress]:
        """The crops that ran and came to their end since the last snapshot."""
        news = [
            crop
            for crop in job.crops
            if crop.state.is_final and stage_of(crop) in self.started and stage_of(crop) not in self.ended
        ]
        self.ended |= {stage_of(crop) for crop in news}
        return news

    def running(self, job: Job) -> list[CropProgress]:
        """The crops that are being made."""
        return [crop for crop in job.crops if crop.state is State.RUNNING]

    def seconds(self, crop: CropProgress) -> float:
        """How long a crop has been seen running."""
        return self.clock() - self.started[stage_of(crop)][0]

    def gained(self, crop: CropProgress) -> int:
        """Bytes that came meanwhile."""
        return crop.bytes_done - self.started[stage_of(crop)][1]


def share_done(crop: CropProgress) -> float:
    """Part of the crop's bytes that are fetched, 0 to 1; 0 while the total is unknown."""
    return crop.bytes_done / crop.bytes_total if crop.bytes_total else 0.0


def amount(crop: CropProgress) -> str:
    """Bytes and objects fetched, of how many."""
    if isinstance(crop, CropDownload):
        return f"{format_bytes(crop.bytes_done)} of {format_bytes(crop.bytes_total)} downloaded"
    if not crop.objects_total:
        return "reading the listing"
    done, total = format_bytes(crop.bytes_done), format_bytes(crop.bytes_total)
    return f"{done} of {total}, {crop.objects_done} of {crop.objects_total} objects"


def progress_line(job: Job, crop: CropProgress, clock: CropClock) -> str:
    """One crop on its way, as a line without its end."""
    share, seconds, gained = share_done(crop), clock.seconds(crop), clock.gained(crop)
    line = f"{job.split.value}/{crop.crop}: {share:.0%}, {amount(crop)}"
    if share < 1 and gained > 0 and seconds > 0:
        left = format_duration(seconds * (crop.bytes_total - crop.bytes_done) / gained)
        line += f", {format_rate(gained, seconds)}, {left} left"
    return line


def end_line(job: Job, crop: CropProgress, clock: CropClock) -> str:
    """How one crop ended, as a line without its end."""
    name = f"{job.split.value}/{crop.crop}"
    if crop.file is not None and crop.state is State.DONE:
        seconds = clock.seconds(crop)
        rate = format_rate(clock.gained(crop), seconds)
        size, took = format_bytes(crop.file.size), format_duration(seconds)
        if isinstance(crop, CropDownload):
            return f"{name}: downloaded in {took}, {size} at {rate}"
        fetched = f"{format_bytes(crop.bytes_done)} fetched at {rate}" if crop.bytes_done else "made by another process"
        return f"{name}: ready in {took}, {fetched}, {size} on disk"
    if crop.problem is not None:
        return f"{name}: failed: error[{crop.problem.code}]"  # the reason follows as the error itself
    return f"{name}: {crop.state.value}"


@dataclass(frozen=True, slots=True)
class Total:
    """All crops that had to be made, together. `bytes_total` is an estimate until every crop's size is known."""

    crops_ended: int
    crops: int
    bytes_done: int
    bytes_total: int
    is_estimate: bool


def total_of(crops: list[CropProgress]) -> Total:
    """Sum up `crops`; one whose size is not known yet counts as the mean of the others."""
    known = [crop.bytes_total for crop in crops if crop.bytes_total]
    unknown = sum(1 for crop in crops if not crop.bytes_total and not crop.state.is_final)
    total = sum(known) + (unknown * sum(known) // len(known) if known else 0)
    ended = sum(1 for crop in crops if crop.state.is_final)
    return Total(ended, len(crops), sum(crop.bytes_done for crop in crops), total, unknown > 0)
