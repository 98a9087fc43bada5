"""Progress as plain lines, for logs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from prismcache.progress.text import CropClock, Stage, end_line, progress_line, share_done, stage_of
from prismcache.schema import CropDownload, CropProgress, Job, State
from prismcache.units import format_bytes

LINE_SECONDS = 10.0
LINE_SHARE = 0.1
HEARTBEAT_SECONDS = 60.0


class LineReporter:
    """Writes a line when a crop starts, waits or ends, and for each further tenth (at most one in ten seconds)."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._crops = CropClock(clock)
        self._clock = clock
        self._last: dict[Stage, tuple[float, float]] = {}
        self._waiting: set[Stage] = set()

    def update(self, job: Job) -> None:
        """Write a line for each crop that started, ended, or came a tenth further."""
        for crop in self._crops.started_now(job):
            self._last[stage_of(crop)] = (self._clock(), share_done(crop))
            if crop.state is State.RUNNING:
                download = isinstance(crop, CropDownload)
                started = f"downloading {format_bytes(crop.bytes_total)}" if download else "started"
                self.say(f"{job.split.value}/{crop.crop}: {started}")
        for crop in self._crops.running(job):
            if self._is_due(crop):
                self.say(progress_line(job, crop, self._crops))
        for crop in self._crops.ended_now(job):
            self.say(end_line(job, crop, self._crops))

    def close(self) -> None:
        """Do nothing: every line was written at once."""

    def _is_due(self, crop: CropProgress) -> bool:
        if crop.waiting_for and stage_of(crop) not in self._waiting:
            self._waiting.add(stage_of(crop))
            return True
        written_at, share = self._last[stage_of(crop)]
        silence, gain = self._clock() - written_at, abs(share_done(crop) - share)  # less: a product has begun
        due = silence >= LINE_SECONDS and (gain >= LINE_SHARE or silence >= HEARTBEAT_SECONDS)
        if due:
            self._last[stage_of(crop)] = (self._clock(), share_done(crop))
        return due

    def say(self, line: str) -> None:
        """Write one line."""
        with suppress(OSError, ValueError):  # a log that is full or closed is no reason to lose a download
            self._stream.write(line + "\n")
            self._stream.flush()
