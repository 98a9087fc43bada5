"""Choose how an ensure's progress is shown: bars, a notebook's display, lines in a log, or a program's callback.

`signs_of_life` is for calls that show nothing else.

Bars and lines go to stderr. A crop that was cached already shows nothing. Time comes from a clock that is passed in.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from typing import Any, Protocol, TextIO, TypeAlias

from prismcache.numbers import format_bytes
from prismcache.progress.text import CropClock, Stage, end_line, progress_line, share_done, stage_of
from prismcache.schema import CropDownload, CropProgress, Job, State

SILENCE_SECONDS = 3.0
"""How long a person waits before a program that shows nothing looks broken."""

_log = logging.getLogger("prismcache")

ProgressCallback: TypeAlias = Callable[[Job], object]
Progress: TypeAlias = bool | ProgressCallback | None
"""None: bars in a terminal or notebook, lines elsewhere; True: always bars; False: nothing; or a callable, called with
each `Job` snapshot."""


class Reporter(Protocol):
    """Shows the snapshots of one job."""

    def update(self, job: Job) -> None:
        """Show the next snapshot."""

    def say(self, line: str) -> None:
        """Write one line above or between what is shown; called from any thread."""

    def close(self) -> None:
        """End the display; what was written stays."""


def make_reporter(
    progress: Progress,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
    *,
    silence: float = SILENCE_SECONDS,
    is_remote: bool = False,
) -> Reporter:
    """Return the reporter that `progress` asks for.

    Parameters
    ----------
    progress
        See `Progress`.
    stream
        Where bars and lines are written; default: the notebook's cell or, outside of a notebook, stderr.
    clock
        Returns the seconds of a steady clock.
    silence
        Seconds without any sign from the bucket or the service after which one line says so.
    is_remote
        Whether a service is asked; its connection itself says when there is no response.
    """
    if callable(progress):
        return CallbackReporter(progress)
    is_default, stream = stream is None, sys.stderr if stream is None else stream
    if progress is False or stream is None:  # a program without a console (pythonw) has no stderr
        return CallbackReporter(lambda _job: None)
    reporter: Reporter
    if is_default and in_notebook():
        reporter = NotebookReporter(clock)
    elif progress is True or (stream.isatty() and os.environ.get("TERM") != "dumb"):
        from prismcache.progress.bars import BarReporter  # rich takes 60 ms to import, so only where it is seen

        reporter = BarReporter(stream, clock)
    else:
        reporter = LineReporter(stream, clock)
    return SignOfLife(reporter, silence, is_remote=is_remote)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook. IPython is not imported where it is not already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


@dataclass(frozen=True)
class CallbackReporter:
    """Gives every snapshot to a program."""

    callback: ProgressCallback

    def update(self, job: Job) -> None:
        """Call back with `job`."""
        self.callback(job)

    def say(self, line: str) -> None:
        """Do nothing: a program takes snapshots only."""

    def close(self) -> None:
        """Do nothing: a callback holds nothing open."""


class SignOfLife:
    """A reporter that also shows something while no snapshot comes.

    Until a crop runs, it writes a line after `silence` seconds, then after 2, 4, 8, … times `silence` seconds.
    Then it shows the last snapshot again every `silence` seconds, so that the time in it goes on.

    Parameters
    ----------
    reporter
        Shows the snapshots.
    silence
        Seconds before the first line is written.
    is_remote
        Whether a service is asked; its connection itself says when there is no response.
    """

    def __init__(self, reporter: Reporter, silence: float, *, is_remote: bool = False) -> None:
        self.reporter = reporter
        self._is_remote = is_remote
        self._silence = silence
        self._job: Job | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="prismcache-progress", daemon=True).start()

    def update(self, job: Job) -> None:
        """Show the snapshot."""
        with self._lock:
            self._job = job
            self.reporter.update(job)

    def say(self, line: str) -> None:
        """Write one line."""
        with self._lock:
            self.reporter.say(line)

    def close(self) -> None:
        """End the display."""
        self._ended.set()
        with self._lock:
            self.reporter.close()

    def tick(self, count: int) -> None:
        """Show something, `count` times `silence` seconds after the beginning."""
        with self._lock:
            if self._ended.is_set() or (self._job is None and self._is_remote):
                return
            job, after = self._job, f"after {count * self._silence:g} s"
            crops = () if job is None else job.crops
            signs = ("objects_total", "bytes_total", "voxels_total", "waiting_for")
            is_heard = any(crop.state.is_final or any(getattr(crop, sign) for sign in signs) for crop in crops)
            is_running = any(crop.state is State.RUNNING for crop in crops)
            if job is not None and (is_heard or (is_running and count > 1)):
                self.reporter.update(job)
            elif is_running:
                self.reporter.say(f"nothing is fetched yet {after}; still trying")
            elif count & (count - 1):
                return  # no power of two
            elif job is None:
                self.reporter.say(f"no response yet {after}; still trying")
            else:
                self.reporter.say(f"no crop has started {after}; the job waits for its turn")

    def _watch(self) -> None:
        count = 1
        while not self._ended.wait(self._silence):
            self.tick(count)
            count += 1


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
        with suppress(OSError, ValueError):  # a log that is full or closed must not end a download
            self._stream.write(line + "\n")
            self._stream.flush()


@contextmanager
def signs_of_life(text: str) -> Iterator[None]:
    """Log a warning with `text` and the seconds so far after 3 s, then after 6 s, 12 s and so on, until the block ends.

    Python shows warnings of a logger on stderr unless the program says otherwise. Quick work logs nothing.
    """
    ended, began = threading.Event(), time.monotonic()

    def say() -> None:
        pause = SILENCE_SECONDS
        while not ended.wait(pause):
            _log.warning("%s: %.0f s so far", text, time.monotonic() - began)
            pause = time.monotonic() - began

    threading.Thread(target=say, name="prismcache-signs", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


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
