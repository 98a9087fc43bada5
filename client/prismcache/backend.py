"""The interface between a client and what makes its crops: a service over HTTP, or the pipeline in this process.

All methods of a backend raise `PrismError` classes only. `load_backend` imports what a client's settings ask for: an
embedded client needs no HTTP, and the client of a service needs no pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeAlias, runtime_checkable

from prismcache.config import Settings
from prismcache.errors import MissingExtraError
from prismcache.schema import CropFile, CropInfo, Job, JobRequest, Split, VerifyResult

ReceivedBytes: TypeAlias = Callable[[int], None]
"""Called on the event loop with the bytes of a file received so far; fewer than before when a download restarts."""


class Backend(Protocol):
    """One way to get crops. Made on the event loop that uses it; `aclose` ends everything it started."""

    async def submit(self, request: JobRequest) -> Job:
        """Start (or join) the job for `request`; return at once, with a final job if everything is cached.

        A call that is cancelled cancels its job.
        """

    async def wait(self, job: Job, timeout: float) -> Job:  # noqa: ASYNC109 - the deadline of a long poll, not of the call
        """Return a snapshot newer than `job`, or the same one again after `timeout` seconds."""

    async def cancel(self, job: Job) -> None:
        """End one call's wish for the job; the job stops with its last wish, crops that another job wants go on."""

    async def paths_here(self, files: Sequence[CropFile]) -> Mapping[int, str]:
        """Return by crop the paths that `local_path` would return at once, without reading or fetching a file."""

    async def local_path(self, file: CropFile, report: ReceivedBytes) -> str:
        """Return an absolute path on this machine at which `file` was opened and found right.

        While the file is downloaded, `report` is called with the bytes received.
        """

    async def catalog(self, split: Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        """Return every published crop, ordered by split and id, with its cached files.

        An unreachable source is not an error while there is something to list: the last known catalog is returned, and
        cached crops are always listed.
        """

    async def describe(self, split: Split, crop: int) -> CropInfo:
        """Return one crop in full."""

    async def verify(
        self, split: Split | None = None, crops: Sequence[int] | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        """Re-read cached files against their manifests; `repair` sets bad ones aside and fetches them again."""

    async def remove(self, split: Split, crops: Sequence[int] | None = None) -> list[CropFile]:
        """Delete cached files (all of the split when `crops` is None); return those that were deleted."""

    async def aclose(self) -> None:
        """Cancel the jobs of this backend and free its resources."""


@runtime_checkable
class HoldsLeases(Protocol):
    """A backend that protects what it returned from eviction until it is closed."""

    def hand_over(self) -> None:
        """Leave the protection to the process, to end with it. Called before `aclose`."""


BackendFactory: TypeAlias = Callable[[Settings], Backend]
"""Makes a backend from settings; called on the event loop that uses the backend."""

backends_in_process: dict[str, BackendFactory] = {}
"""By URL: backends that stand in for a service in this process; see `prismcache.testing`."""


def load_backend(settings: Settings) -> Backend:
    """Return the backend that `settings` ask for: the service at a URL, or without one the pipeline in this process.

    Raises
    ------
    MissingExtraError
        If there is no URL and a module that the pipeline needs is not installed.
    """
    factory: BackendFactory
    if settings.url is None:
        factory = service_part("prismcache_service.embedded", "create_backend", "embedded backend")
    else:
        factory = backends_in_process.get(settings.url) or import_module("prismcache.remote").create_backend
    return factory(settings)


def service_part(module: str, name: str | None, noun: str) -> Any:
    """Return a module of the service's package, or an object in it, which the client does not import by itself.

    Parameters
    ----------
    module, name
        The module, and the object in it; None for the module itself.
    noun
        What the object is, for the error.

    Raises
    ------
    MissingExtraError
        If a module that the object needs is not installed.
    """
    try:
        found = import_module(module)
    except ImportError as error:
        missing = f"the module {error.name!r}" if error.name else f"a module that fails to load ({error})"
        raise MissingExtraError(
            f"the {noun} needs {missing}, which is not installed", remedy='pip install "prismcache[service]"'
        ) from error
    return found if name is None else getattr(found, name)
