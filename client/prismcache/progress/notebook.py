"""Progress in a notebook: one small table in the cell's output, updated in place, that needs no widgets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from prismcache.progress.text import CropClock, end_line, progress_line, share_done
from prismcache.schema import Job

_MIN_SECONDS = 0.25  # between two updates; each is a message to the browser


@dataclass(frozen=True)
class Shown:
    """What the cell shows: lines of crops that ended, and a bar for each crop that is being made or downloaded."""

    ended: Sequence[str]
    running: Sequence[tuple[float, str]]

    def __repr__(self) -> str:
        return "\n".join([*self.ended, *(line for _, line in self.running)])

    def _repr_html_(self) -> str:
        bars = (
            f'<div><progress max="1" value="{share:.3f}"></progress> {escape(line)}</div>'
            for share, line in self.running
        )
        return "".join([*(f"<div>{escape(line)}</div>" for line in self.ended), *bars])


class NotebookReporter:
    """Shows nothing before the first crop runs, then one output that is updated in place."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._crops = CropClock(clock)
        self._ended: list[str] = []
        self._handle: Any = None
        self._shown_at = float("-inf")

    def update(self, job: Job) -> None:
        """Show the snapshot, unless the last one was shown a moment ago and no crop began or ended since."""
        started = self._crops.started_now(job)
        ended = self._crops.ended_now(job)
        self._ended += [end_line(job, crop, self._crops) for crop in ended]
        if started or ended or (self._handle is not None and self._clock() - self._shown_at >= _MIN_SECONDS):
            running = [(share_done(crop), progress_line(job, crop, self._crops)) for crop in self._crops.running(job)]
            self._show(Shown(tuple(self._ended), running))

    def say(self, line: str) -> None:
        """Write one line on stderr, which a notebook shows in the cell."""
        if sys.stderr is not None:
            sys.stderr.write(line + "\n")

    def close(self) -> None:
        """Remove the bars; the lines of crops that ended stay."""
        if self._handle is not None:
            self._show(Shown(tuple(self._ended), ()))

    def _show(self, shown: Shown) -> None:
        from IPython.display import display  # type: ignore[import-not-found,unused-ignore]  # only notebooks have it

        self._shown_at = self._clock()
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)
