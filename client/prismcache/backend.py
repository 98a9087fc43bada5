"""What a client drives: a service over HTTP, or the pipeline in this process (embedded).

A backend is found by name in the entry-point group ``prismcache.backends``; this package never imports the service.
All methods raise `PrismError` classes only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from prismcache.config import Settings
from prismcache.plugins import load_plugin
from prismcache.schema import CropFile, CropInfo, Job, JobRequest, Split, VerifyResult

ReceivedBytes: TypeAlias = Callable[[int], None]
"""Told on the event loop how many bytes of a file have come so far; fewer than before where it begins anew."""

ENTRY_POINT_GROUP = "prismcache.backends"


class Backend(Protocol):
    """One way to get crops. Made on the event loop that uses it; `aclose` ends all it started."""

    async def submit(self, request: JobRequest) -> Job:
        """Start (or join) the work for `request`; answers at once, with a final job if all is cached."""

    async def wait(self, job: Job, timeout: float) -> Job:  # noqa: ASYNC109 - the deadline of a long poll, not of the call
        """A snapshot newer than `job`, or the same one again after `timeout` seconds."""

    async def cancel(self, job: Job) -> None:
        """Stop the job; work that another job wants goes on."""

    async def paths_here(self, files: Sequence[CropFile]) -> Mapping[int, str]:
        """What `local_path` would answer at once, by crop; not for files that must be read, waited for or fetched."""

    async def local_path(self, file: CropFile, report: ReceivedBytes) -> str:
        """An absolute path on this machine under which `file` was opened and found to be the one meant.

        `report` hears how many bytes of it are here, where it has to be downloaded.
        """

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        """Every published crop, ordered by split and id, with what the cache holds of it.

        An unreachable source is no error while there is something to list: the last known catalog serves, and cached
        crops are always listed.
        """

    async def describe(self, split: Split, crop: int) -> CropInfo:
        """One crop in full."""

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        """Re-read cached files against their manifests; `repair` sets bad ones aside and fetches them again."""

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        """Delete cached files (all of the split when `crops` is None); answers what was deleted."""

    async def aclose(self) -> None:
        """Cancel what runs for this backend and free everything."""


@runtime_checkable
class HoldsLeases(Protocol):
    """A backend that protects what it returned from eviction until it is closed."""

    def hand_over(self) -> None:
        """Leave the protection to the process, to end with it. Called before `aclose`."""


class BackendFactory(Protocol):
    """What an entry point of the group names."""

    def __call__(self, settings: Settings) -> Backend: ...


def load_backend(name: str, settings: Settings) -> Backend:
    """The backend registered under `name`.

    Parameters
    ----------
    name
        "embedded" (the pipeline in this process) or "remote" (a service).
    settings
        Handed to the backend.

    Raises
    ------
    MissingExtraError
        If the backend is there but a module that it needs is not.
    ConfigError
        If no installed package offers it.
    """
    factory: BackendFactory = load_plugin(ENTRY_POINT_GROUP, name, "backend")
    return factory(settings)
