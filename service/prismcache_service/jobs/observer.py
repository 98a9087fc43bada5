"""The interface for counting what the services do: `web.metrics` implements it; embedded use counts nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Observer(Protocol):
    """Counts what the services do."""

    def crops_found(self, *, hits: int, misses: int) -> None:
        """Count the crops of an accepted job that are cached (`hits`) and that are not (`misses`)."""

    def bytes_fetched(self, count: int) -> None:
        """Count bytes that came from the bucket."""

    def task_ended(self, seconds: float, code: str | None = None) -> None:
        """Count a crop that was made in `seconds`, or failed with the error `code`."""

    def evicted(self, files: int, size: int) -> None:
        """Count files, `size` bytes together, that were deleted to make room."""

    def bound(self, **values: str) -> AbstractContextManager[None]:
        """Return a context manager that adds the values to every log line within the block."""
        ...


class NoObserver:
    """An `Observer` that counts nothing."""

    def crops_found(self, *, hits: int, misses: int) -> None:
        """Do nothing."""

    def bytes_fetched(self, count: int) -> None:
        """Do nothing."""

    def task_ended(self, seconds: float, code: str | None = None) -> None:
        """Do nothing."""

    def evicted(self, files: int, size: int) -> None:
        """Do nothing."""

    def bound(self, **values: str) -> AbstractContextManager[None]:  # noqa: ARG002 - as in the protocol
        """Return a context manager that adds nothing."""
        return nullcontext()
