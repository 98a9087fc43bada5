"""Progress of an ensure: bars in a terminal, plain lines in a log (both on stderr), a callback for programs.

A crop that was cached already shows nothing. Time comes from an injected clock, in seconds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TextIO, TypeAlias

from prismcache.progress.lines import LineReporter
from prismcache.schema import Job

ProgressCallback: TypeAlias = Callable[[Job], object]
Progress: TypeAlias = bool | ProgressCallback | None
"""None: bars if stderr is a terminal, else lines; True: bars in any case; False: nothing; or a callable that is
given each `Job` snapshot."""


class Reporter(Protocol):
    """Shows the snapshots of one job."""

    def update(self, job: Job) -> None:
        """Take in the next snapshot."""

    def close(self) -> None:
        """Leave the terminal as a reader expects it."""


def make_reporter(
    progress: Progress, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Reporter:
    """The reporter that `progress` asks for.

    Parameters
    ----------
    progress
        See `Progress`.
    stream
        Where bars and lines go; default: stderr as it is now.
    clock
        Seconds of a steady clock.
    """
    if callable(progress):
        return CallbackReporter(progress)
    stream = sys.stderr if stream is None else stream
    if progress is False or stream is None:  # a program without a console (pythonw) has no stderr
        return CallbackReporter(_ignore)
    if progress is True or (stream.isatty() and os.environ.get("TERM") != "dumb"):
        from prismcache.progress.bars import BarReporter  # rich takes 60 ms to import, so only where it is seen

        return BarReporter(stream, clock)
    return LineReporter(stream, clock)


def _ignore(_job: Job) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class CallbackReporter:
    """Hands every snapshot to a program."""

    callback: ProgressCallback

    def update(self, job: Job) -> None:
        """Call back with `job`."""
        self.callback(job)

    def close(self) -> None:
        """Nothing is held."""
