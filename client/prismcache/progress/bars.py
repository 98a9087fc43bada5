"""Progress as bars in a terminal: one for each crop, one for all crops together. A crop that ends leaves a line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.text import Text

from prismcache.numbers import format_bytes
from prismcache.progress.text import CropClock, Stage, amount, done_of, end_line, stage_of, total_of
from prismcache.schema import CropDownload, CropProgress, Job, State


class _Speed(TransferSpeedColumn):
    """Bytes a second; empty while voxels are counted."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields["is_bytes"] else Text()


class BarReporter:
    """Shows bars while there is work; draws nothing before the first crop runs."""

    def __init__(self, stream: TextIO, clock: Callable[[], float], *, width: int | None = None) -> None:
        self._console = Console(file=stream, force_terminal=True, width=width, force_jupyter=False)
        self._clock = clock
        self._crops = CropClock(clock)
        self._progress: Progress | None = None
        self._bars: dict[Stage, TaskID] = {}
        self._made: dict[int, CropProgress] = {}
        self._total: TaskID | None = None
        self._cached: frozenset[int] | None = None

    def update(self, job: Job) -> None:
        """Draw the snapshot."""
        if self._cached is None:
            self._cached = frozenset(crop.crop for crop in job.crops if crop.state is State.DONE)
        started = self._crops.started_now(job)
        if self._progress is None and not started:
            return
        progress = self._progress = self._progress or _started(self._console, self._clock)
        making = [crop for crop in job.crops if not isinstance(crop, CropDownload) and crop.crop not in self._cached]
        self._made |= {crop.crop: crop for crop in making}
        self._update_total(progress, list(self._made.values()))
        for crop in started:
            self._bars[stage_of(crop)] = progress.add_task(f"{job.split.value}/{crop.crop}", **_figures(crop))
        for crop in self._crops.running(job):
            progress.update(self._bars[stage_of(crop)], **_figures(crop))
        for crop in self._crops.ended_now(job):
            progress.remove_task(self._bars.pop(stage_of(crop)))
            self.say(end_line(job, crop, self._crops))

    def say(self, line: str) -> None:
        """Write one line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bars; the lines stay."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _update_total(self, progress: Progress, crops: list[CropProgress]) -> None:
        if len(crops) < 2:
            return
        if self._total is None:
            self._total = progress.add_task("all", total=None, amount="", is_bytes=True)
        total = total_of(crops)
        about = "about " if total.is_estimate else ""
        text = f"{total.crops_ended} of {total.crops} crops, {format_bytes(total.bytes_done)}"
        if total.bytes_total:
            text += f" of {about}{format_bytes(total.bytes_total)}"
        progress.update(self._total, completed=total.bytes_done, total=total.bytes_total or None, amount=text)


def _figures(crop: CropProgress) -> dict[str, Any]:
    done, total = done_of(crop)
    return {
        "completed": done,
        "total": total or None,
        "amount": amount(crop),
        "is_bytes": not crop.voxels_total,
    }


def _started(console: Console, clock: Callable[[], float]) -> Progress:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[amount]}"),
        _Speed(),
        TimeRemainingColumn(),
        console=console,
        get_time=clock,
        transient=True,
        # Paths that a caller prints must reach stdout itself, unless stdout is this very terminal.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )
    progress.start()
    return progress
