"""What progress says, whether in bars or in lines: pure, but for a clock that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from prismcache._units import format_bytes, format_duration, format_rate
from prismcache.schema import CropProgress, Job, State


@dataclass
class CropClock:
    """When each crop was first seen running. Crops never seen so were cached, or never came to their turn."""

    clock: Callable[[], float]
    started: dict[int, float] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)

    def started_now(self, job: Job) -> list[CropProgress]:
        """The crops that run, or ended in failure, since the last snapshot."""
        news = [
            crop for crop in job.crops if crop.state in (State.RUNNING, State.FAILED) and crop.crop not in self.started
        ]
        self.started |= {crop.crop: self.clock() for crop in news}
        return news

    def ended_now(self, job: Job) -> list[CropProgress]:
        """The crops that ran and came to their end since the last snapshot."""
        news = [
            crop
            for crop in job.crops
            if crop.state.is_final and crop.crop in self.started and crop.crop not in self.ended
        ]
        self.ended |= {crop.crop for crop in news}
        return news

    def running(self, job: Job) -> list[CropProgress]:
        """The crops that are being made."""
        return [crop for crop in job.crops if crop.state is State.RUNNING]

    def seconds(self, crop: CropProgress) -> float:
        """How long a crop has been seen running."""
        return self.clock() - self.started[crop.crop]


def share_done(crop: CropProgress) -> float:
    """Part of the crop's bytes that are fetched, 0 to 1; 0 while the total is unknown."""
    return crop.bytes_done / crop.bytes_total if crop.bytes_total else 0.0


def amount(crop: CropProgress) -> str:
    """Bytes and objects fetched, of how many."""
    if not crop.objects_total:
        return "reading the listing"
    done, total = format_bytes(crop.bytes_done), format_bytes(crop.bytes_total)
    return f"{done} of {total}, {crop.objects_done} of {crop.objects_total} objects"


def progress_line(job: Job, crop: CropProgress, seconds: float) -> str:
    """One crop on its way, as a line without its end."""
    share = share_done(crop)
    line = f"{job.split.value}/{crop.crop}: {share:.0%}, {amount(crop)}"
    if 0 < share < 1 and seconds > 0:
        left = format_duration(seconds * (1 - share) / share)
        line += f", {format_rate(crop.bytes_done, seconds)}, {left} left"
    return line


def end_line(job: Job, crop: CropProgress, seconds: float) -> str:
    """How one crop ended, as a line without its end."""
    name = f"{job.split.value}/{crop.crop}"
    if crop.file is not None and crop.state is State.DONE:
        rate = format_rate(crop.bytes_done, seconds)
        size, took = format_bytes(crop.file.size), format_duration(seconds)
        return f"{name}: ready in {took}, {format_bytes(crop.bytes_done)} fetched at {rate}, {size} on disk"
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
