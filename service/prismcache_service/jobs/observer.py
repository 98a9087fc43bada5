"""Who counts what the services do; the HTTP side's metrics are one, embedded use has none."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Observer(Protocol):
    """Hears of everything worth a figure."""

    def crops_found(self, *, hits: int, misses: int) -> None:
        """A job was accepted, and so many of its crops were cached or not."""

    def bytes_fetched(self, count: int) -> None:
        """So many more bytes came from the bucket."""

    def task_ended(self, seconds: float, code: str | None = None) -> None:
        """A crop was made, or failed with an error code."""

    def evicted(self, files: int, size: int) -> None:
        """Files of `size` bytes in all were deleted to make room."""

    def bound(self, **values: str) -> AbstractContextManager[None]:
        """Add values to every line that is logged within the block."""
        ...


class NoObserver:
    """Counts nothing."""

    def crops_found(self, *, hits: int, misses: int) -> None:
        """Ignored."""

    def bytes_fetched(self, count: int) -> None:
        """Ignored."""

    def task_ended(self, seconds: float, code: str | None = None) -> None:
        """Ignored."""

    def evicted(self, files: int, size: int) -> None:
        """Ignored."""

    def bound(self, **values: str) -> AbstractContextManager[None]:  # noqa: ARG002 - as the protocol has it
        """Nothing is added."""
        return nullcontext()
