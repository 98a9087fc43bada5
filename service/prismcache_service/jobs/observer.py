"""Counting what the services do: totals of this process here; `web.metrics` adds what Prometheus reads."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext


class Observer:
    """Counts hits, misses and fetched bytes since the start of the process; subclasses count more.

    Attributes
    ----------
    hits, misses
        Crops of accepted jobs that were cached, and that were not.
    fetched_bytes
        Bytes that came from the bucket.
    """

    def __init__(self) -> None:
        self.hits = self.misses = self.fetched_bytes = 0

    def crops_found(self, *, hits: int, misses: int) -> None:
        """Count the crops of an accepted job that are cached (`hits`) and that are not (`misses`)."""
        self.hits += hits
        self.misses += misses

    def bytes_fetched(self, count: int) -> None:
        """Count bytes that came from the bucket."""
        self.fetched_bytes += count

    def task_ended(self, seconds: float, code: str | None = None) -> None:
        """Count a crop that was made in `seconds`, or failed with the error `code`."""

    def evicted(self, files: int, size: int) -> None:
        """Count files, `size` bytes together, that were deleted to make room."""

    def bound(self, **values: str) -> AbstractContextManager[None]:  # noqa: ARG002 - for subclasses
        """Return a context manager that adds the values to every log line within the block."""
        return nullcontext()
