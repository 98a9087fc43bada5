"""The asynchronous client; `prismcache.client.sync` runs it in a thread for programs without an event loop.

`Delivery` shows progress and warns, in the caller's own thread, for both clients.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing, nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from prismcache.arguments import Numbers, as_crops, as_split
from prismcache.backend import Backend, HoldsLeases, load_backend
from prismcache.client.catalog import Catalog
from prismcache.client.drive import Event, Step, drive
from prismcache.client.flow import EnsurePlan, plan_ensure
from prismcache.config import Settings
from prismcache.errors import MissingChunksWarning, RequestError, SourceWarning
from prismcache.progress.reporter import Progress, make_reporter, signs_of_life
from prismcache.schema import CropFile, CropInfo, Product, Split, VerifyResult

_PACKAGE_FOLDER = str(Path(__file__).parents[1]) + os.sep


class AsyncPrismClient:
    """PRISM crops as local files, for programs that run an event loop.

    The methods are those of `prismcache.PrismClient`, awaited. Nothing is opened before the first call. Leaving the
    context (or `aclose`) cancels running jobs and frees all resources; a further call opens the client again. An open
    client belongs to its event loop: calls from another one raise `RequestError`.

    Parameters
    ----------
    root, url, token, **overrides
        Settings by name, before the environment; see `prismcache.Settings`.
    settings
        Settings instead of the environment; the other arguments override them.
    backend
        A backend to use; it is not closed here.

    Raises
    ------
    ConfigError
        If a setting cannot be used.

    Examples
    --------
    >>> import asyncio
    >>> async def main() -> list[str]:
    ...     async with AsyncPrismClient("/lab/prism") as client:
    ...         return await client.ensure("instance", [5, 0], progress=False)
    >>> asyncio.run(main())
    ['/lab/prism/instance/crop_5.h5', '/lab/prism/instance/crop_0.h5']
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        url: str | None = None,
        token: str | None = None,
        settings: Settings | None = None,
        backend: Backend | None = None,
        **overrides: Any,
    ) -> None:
        self._settings = merge_settings(settings, root=root, url=url, token=token, **overrides)
        self._given = backend
        self._backend = backend
        self._loop: object = None

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the jobs of this client and free its resources; a given backend is not closed."""
        backend, self._backend = self._backend, self._given
        if backend is not None and backend is not self._given:
            await backend.aclose()

    async def drop(self) -> None:
        """Close a client that was garbage collected: as `aclose`, but crops stay leased while the process lives."""
        backend: object = self._backend
        if isinstance(backend, HoldsLeases):
            backend.hand_over()
        await self.aclose()

    async def ensure(
        self,
        split: str | Split = "instance",
        crops: Numbers | None = None,
        *,
        channels: Numbers | None = None,
        context: Numbers | str = 0,
        product: str | Product = "crop",
        strict: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - part of the request; it also leaves the job running
        progress: Progress = None,
    ) -> list[str]:
        """Return the paths of complete files, one for each crop asked for; see `PrismClient.ensure`."""
        plan = plan_ensure(
            split, crops, channels=channels, context=context, product=product, strict=strict, timeout=timeout
        )
        return [file.path for file in await self._arranged(plan, progress)]

    async def ensure_files(
        self,
        split: str | Split = "instance",
        crops: Numbers | None = None,
        *,
        channels: Numbers | None = None,
        context: Numbers | str = 0,
        product: str | Product = "crop",
        strict: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - see ensure
        progress: Progress = None,
    ) -> list[CropFile]:
        """Return the files that `ensure` finds, with channels, size and digest; see `PrismClient.ensure_files`."""
        plan = plan_ensure(
            split, crops, channels=channels, context=context, product=product, strict=strict, timeout=timeout
        )
        return await self._arranged(plan, progress)

    async def iter_ensure(
        self,
        split: str | Split = "instance",
        crops: Numbers | None = None,
        *,
        channels: Numbers | None = None,
        context: Numbers | str = 0,
        product: str | Product = "crop",
        strict: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - see ensure
        progress: Progress = None,
    ) -> AsyncGenerator[str, None]:
        """Yield each path as soon as its crop is ready; see `PrismClient.iter_ensure`.

        Use `contextlib.aclosing` where you may leave the loop early: a closed iterator cancels the remaining crops at
        once, an abandoned iterator only when it is garbage collected.
        """
        plan = plan_ensure(
            split, crops, channels=channels, context=context, product=product, strict=strict, timeout=timeout
        )
        async with aclosing(self._files(plan, progress)) as files:
            async for file in files:
                for _ in range(plan.times_asked(file.crop)):
                    yield file.path

    async def catalog(self, split: str | Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        """Return what is published and what is cached; see `PrismClient.catalog`."""
        chosen = None if split is None else as_split(split)
        with self._bucket_signs("reading the catalog"):
            return Catalog(await self._open().catalog(chosen, refresh=refresh))

    async def describe(self, split: str | Split, crop: int) -> CropInfo:
        """Return one crop in full; see `PrismClient.describe`."""
        of, number = as_split(split), one_crop(crop)
        with self._bucket_signs(f"reading the metadata of {of.value}/{number}"):
            return await self._open().describe(of, number)

    async def verify(
        self, split: str | Split | None = None, crops: Numbers | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        """Re-read cached files; see `PrismClient.verify`."""
        if split is None and crops is not None:
            raise RequestError("crops are named without their split", remedy="Name the split, too.")
        chosen = None if split is None else as_split(split)
        numbers = as_crops(crops)
        with signs_of_life("reading the cached files"):
            return await self._open().verify(chosen, numbers, repair=repair)

    async def remove(self, split: str | Split, crops: Numbers | None) -> list[CropFile]:
        """Delete cached files and return them; see `PrismClient.remove`."""
        of, numbers = as_split(split), as_crops(crops)
        with signs_of_life("deleting cached files"):
            return await self._open().remove(of, numbers)

    def steps(self, plan: EnsurePlan) -> AsyncGenerator[Step, None]:
        """Yield snapshots and files of one ensure; called by `PrismClient` on the loop of this client."""
        return drive(self._open(), plan)

    async def _arranged(self, plan: EnsurePlan, progress: Progress) -> list[CropFile]:
        async with aclosing(self._files(plan, progress)) as files:
            return plan.arrange({file.crop: file async for file in files})

    async def _files(self, plan: EnsurePlan, progress: Progress) -> AsyncGenerator[CropFile, None]:
        if plan.is_empty:
            return
        with Delivery(progress, is_remote=self.settings.url is not None) as delivery:
            async with aclosing(self.steps(plan)) as steps:
                async for step in steps:
                    for event in step:
                        if (file := delivery.take(event)) is not None:
                            yield file

    def _bucket_signs(self, text: str) -> AbstractContextManager[None]:
        """Show that the bucket is waited for, and how long at most; the connection to a service itself says so."""
        if self._settings.url is not None:
            return nullcontext()
        bucket, limit = self._settings.s3_endpoint_url or "AWS", self._settings.s3_object_timeout
        return signs_of_life(f"{text}: no response yet from {bucket}, trying for {limit:g} s")

    def _open(self) -> Backend:
        import asyncio

        loop = asyncio.get_running_loop()
        if self._backend is None:
            self._backend, self._loop = load_backend(self._settings), loop
        if self._given is None and self._loop is not loop:
            raise RequestError(
                "this AsyncPrismClient was opened in another event loop",
                remedy="Open and close one in each event loop (`async with`), or use PrismClient, which needs none.",
            )
        return self._backend


def merge_settings(settings: Settings | None, **arguments: Any) -> Settings:
    """Return the settings for a client's arguments.

    Parameters
    ----------
    settings
        The base; None for the environment.
    **arguments
        Settings by name; None means not given.
    """
    if settings is None:
        return Settings.load(**arguments)
    given = {name: value for name, value in arguments.items() if value is not None}
    set_before = settings.model_fields_set & Settings.model_fields.keys()  # defaults are not kept: nobody chose them
    base = {name: getattr(settings, name) for name in set_before}
    return Settings.load({}, **(base | given)) if given else settings


def one_crop(crop: int) -> int:
    """Return the number of a single crop.

    Raises
    ------
    RequestError
        If `crop` is not exactly one crop number.
    """
    crops = as_crops(crop) or ()
    if len(crops) != 1:
        raise RequestError(f"name exactly one crop, not {crop!r}")
    return crops[0]


class Delivery:
    """Handles the events of an ensure for both clients; a context manager that ends the progress display."""

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
