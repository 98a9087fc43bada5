"""Handle the events of an ensure in the caller's own thread: show progress, warn of absent chunks."""

from __future__ import annotations

import inspect
import os
import warnings
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from prismcache.client.drive import Event
from prismcache.errors import MissingChunksWarning, SourceWarning
from prismcache.progress.reporter import Progress, make_reporter
from prismcache.schema import CropFile

_PACKAGE_FOLDER = str(Path(__file__).parents[1]) + os.sep


class Delivery:
    """Handles events for both clients; a context manager that ends the progress display."""

    def __init__(self, progress: Progress, *, is_remote: bool) -> None:
        self._reporter = make_reporter(progress, is_remote=is_remote)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reporter.close()

    def take(self, event: Event) -> CropFile | None:
        """Return the event if it is a file; show it if it is a snapshot."""
        if not isinstance(event, CropFile):
            self._reporter.update(event)
            return None
        if event.missing_chunks:
            warn_of_missing_chunks(event)
        for note in event.notes:
            place = f"crop {event.split.value}/{event.crop}"
            warnings.warn(f"{place}: {note}", SourceWarning, stacklevel=frames_inside())
        return event


def warn_of_missing_chunks(file: CropFile) -> None:
    """Warn that a crop holds fill values for absent chunks; the warning names the line that called prismcache."""
    chunks = "1 chunk is" if file.missing_chunks == 1 else f"{file.missing_chunks} chunks are"
    warnings.warn(
        f"crop {file.split.value}/{file.crop}: {chunks} absent from the bucket and hold the fill value",
        MissingChunksWarning,
        stacklevel=frames_inside(),
    )


def frames_inside() -> int:
    """Return the `stacklevel` for a `warnings.warn` in the calling function to name a line outside this package."""
    frame: FrameType | None = inspect.currentframe()
    count = 0
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE_FOLDER):
        frame, count = frame.f_back, count + 1
    return count
