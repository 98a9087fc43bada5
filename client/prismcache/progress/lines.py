"""Progress as plain lines, for logs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from prismcache.progress.text import CropClock, Stage, end_line, progress_line, stage_of
from prismcache.schema import CropDownload, CropProgress, Job, State
from prismcache.units import format_bytes

_SECONDS = (3.0, 60.0)
"""Seconds between two lines of one crop, at least and at most."""
_SHARE = 0.1
"""Between these, the pause is this share of the time that the crop has taken so far: ten lines in half a minute, some
fifty in an hour."""


class LineReporter:
    """Writes a line when a crop starts, waits or ends, and meanwhile every few seconds, more rarely with time."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._crops = CropClock(clock)
        self._clock = clock
        self._written_at: dict[Stage, float] = {}
        self._waiting: set[Stage] = set()

    def update(self, job: Job) -> None:
        """Write a line for each crop that started, ended, or was not mentioned for a while."""
        for crop in self._crops.started_now(job):
            self._written_at[stage_of(crop)] = self._clock()
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
        silence = self._clock() - self._written_at[stage_of(crop)]
        shortest, longest = _SECONDS
        due = silence >= min(longest, max(shortest, _SHARE * self._crops.seconds(crop)))
        if crop.waiting_for and stage_of(crop) not in self._waiting:
            self._waiting.add(stage_of(crop))
            due = True
        if due:
            self._written_at[stage_of(crop)] = self._clock()
        return due

    def say(self, line: str) -> None:
        """Write one line."""
        with suppress(OSError, ValueError):  # a log that is full or closed is no reason to lose a download
            self._stream.write(line + "\n")
            self._stream.flush()
