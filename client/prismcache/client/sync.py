"""The client for scripts, notebooks and training code."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from prismcache.arguments import Numbers
from prismcache.backend import Backend
from prismcache.client.aio import AsyncPrismClient, Delivery, merge_settings
from prismcache.client.flow import EnsurePlan, plan_ensure
from prismcache.client.loop_thread import LoopOwner
from prismcache.config import Settings
from prismcache.errors import PrismError
from prismcache.progress.reporter import Progress
from prismcache.schema import CropFile, CropInfo, Product, Split, VerifyResult

_log = logging.getLogger("prismcache")

T = TypeVar("T")


class PrismClient:
    """PRISM crops as local files: complete, verified, aligned, training-ready HDF5.

    With `url` (or ``PRISMCACHE_URL``) the lab's service makes the files; without, the pipeline in this process
    (embedded).

    The first call starts an event loop in a thread of its own, so the client also works where a loop runs already
    (Jupyter), and importing starts nothing. `close`, leaving the context, or the end of the process stops the thread
    and cancels running jobs; a further call starts another thread. The first call in a forked process (a DataLoader
    worker) does the same, since threads do not survive a fork. The client pickles as its settings. Threads may share
    one client.

    Parameters
    ----------
    root, url, token, **overrides
        Settings by name, before the environment; see `prismcache.Settings`.
    settings
        Settings instead of the environment; the other arguments override them.
    backend
        A backend to use; it is not closed here, not pickled, and not usable after a fork.

    Raises
    ------
    ConfigError
        If a setting cannot be used.

    Examples
    --------
    >>> with PrismClient("/lab/prism") as client:
    ...     client.ensure("instance", [0, 5], progress=False)
    ['/lab/prism/instance/crop_0.h5', '/lab/prism/instance/crop_5.h5']
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
        self._owner = LoopOwner(self._settings, backend)

    def __getstate__(self) -> Settings:
        return self._settings

    def __setstate__(self, settings: Settings) -> None:
        self._settings = settings
        self._owner = LoopOwner(settings, None)

    def __repr__(self) -> str:
        return f"PrismClient(url={self._settings.url!r}, root={str(self._settings.root)!r})"

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the jobs of this client and free its resources; a given backend is not closed."""
        self._owner.close()

    def ensure(
        self,
        split: str | Split = "instance",
        crops: Numbers | None = None,
        *,
        channels: Numbers | None = None,
        context: Numbers | str = 0,
        product: str | Product = "crop",
        strict: bool = False,
        timeout: float | None = None,
        progress: Progress = None,
    ) -> list[str]:
        """Return the paths of complete files, one for each crop asked for; fetch the files that are not cached.

        A crop that fails does not stop the others: they become ready and stay cached. Then the first error is raised,
        with a note for each further error. An interruption (Ctrl-C) cancels the job.

        Parameters
        ----------
        split
            "instance" or "semantic".
        crops
            One crop number or several, in any order, also twice, or text such as ``"0-4,7"``; None is every published
            crop, ascending.
        channels
            One channel number or several, or text such as ``"0-2"``; None for all. A cached file with more channels
            is used, too.
        context
            Voxels that raw reaches beyond the labels on each side: one number, (Z, Y, X), or "all". Raw ends where the
            source ends; nothing is padded. A cached file with more context is used, too, except that 0 always means
            raw of the labels' shape.
        product
            "crop"; or "unlabelled", "avg_barcodes", "facts", and for semantic crops "fgbg", "border_mask": files that
            are made from the whole crop, which is cached first.
        strict
            Refuse a crop with chunks that are absent from the bucket. Else these chunks hold the fill value, with a
            `MissingChunksWarning`.
        timeout
            Seconds after which to give up; the job then goes on while the client is open, and a later call finds its
            crops. 0 finds only cached crops.
        progress
            None shows bars if stderr is a terminal, else lines; True shows bars in any case, False nothing. A callable
            is called with each `Job` snapshot, in this thread; while a crop's file is downloaded from a service, the
            snapshot has a `prismcache.schema.CropDownload` for it.

        Returns
        -------
        list of str
            Absolute paths on this machine, in the order asked, duplicates kept.

        Raises
        ------
        RequestError
            If an argument is invalid, or names a crop or channel that does not exist.
        EnsureTimeoutError
            If `timeout` passed; the message names the crops that are not ready.
        PrismError
            If a crop cannot be made; see `prismcache.errors`.

        Examples
        --------
        >>> client = PrismClient("/lab/prism")
        >>> client.ensure("semantic", range(2), channels=0, progress=False)
        ['/lab/prism/semantic/crop_0.ch00.h5', '/lab/prism/semantic/crop_1.ch00.h5']
        """
        __tracebackhide__ = True
        plan = plan_ensure(
            split, crops, channels=channels, context=context, product=product, strict=strict, timeout=timeout
        )
        return [file.path for file in self._arranged(plan, progress)]

    def ensure_files(
        self,
        split: str | Split = "instance",
        crops: Numbers | None = None,
        *,
        channels: Numbers | None = None,
        context: Numbers | str = 0,
        product: str | Product = "crop",
        strict: bool = False,
        timeout: float | None = None,
        progress: Progress = None,
    ) -> list[CropFile]:
        """Return the files that `ensure` finds, with channels, size, digest and the count of absent chunks.

        Parameters, order and errors are those of `ensure`; each `CropFile.path` is one of its paths.

        Examples
        --------
        >>> PrismClient("/lab/prism").ensure_files("instance", 0, progress=False)[0].channels
        (0, 1, 2)
        """
        __tracebackhide__ = True
        plan = plan_ensure(
            split, crops, channels=channels, context=context, product=product, strict=strict, timeout=timeout
        )
        return self._arranged(plan, progress)

    def iter_ensure(
        self,
        split: str | Split = "instance",
        crops: Numbers | None = None,
        *,
        channels: Numbers | None = None,
        context: Numbers | str = 0,
        product: str | Product = "crop",
        strict: bool = False,
        timeout: float | None = None,
        progress: Progress = None,
    ) -> Generator[str, None, None]:
        """Yield each path as soon as its crop is ready, in the order of readiness.

        A path is yielded as often as its crop was asked for. The errors are those of `ensure`, raised after the last
        path. Closing the iterator early cancels the remaining crops. While your loop's body runs, crops are made but no
        progress is shown. Arguments are checked with the first step.

        Examples
        --------
        >>> for path in PrismClient("/lab/prism").iter_ensure("instance", [0, 5], progress=False):
        ...     print(path)
        /lab/prism/instance/crop_0.h5
        /lab/prism/instance/crop_5.h5
        """
        __tracebackhide__ = True
        plan = plan_ensure(
            split, crops, channels=channels, context=context, product=product, strict=strict, timeout=timeout
        )
        with closing(self._files(plan, progress)) as files:
            for file in files:
                for _ in range(plan.times_asked(file.crop)):
                    yield file.path

    def catalog(self, split: str | Split | None = None, *, refresh: bool = False) -> list[CropInfo]:
        """Return every published crop, by split and number, with its cached files.

        Parameters
        ----------
        split
            Only this split.
        refresh
            Read the bucket's listing again instead of using the last known one. Where the bucket cannot be read, the
            last known listing is used, with a warning in the log.

        Raises
        ------
        SourceError
            If the bucket cannot be read and no crop is known or cached.

        Examples
        --------
        >>> [info.crop for info in PrismClient("/lab/prism").catalog("instance")]
        [0, 1, 5]
        """
        __tracebackhide__ = True
        return self._call(lambda client: client.catalog(split, refresh=refresh))

    def describe(self, split: str | Split, crop: int) -> CropInfo:
        """Return one crop in full: shapes in voxels, voxel size and offset in nm (Z,Y,X), bucket size, cached files.

        Raises
        ------
        UnknownCropError
            If there is no such crop.

        Examples
        --------
        >>> PrismClient("/lab/prism").describe("instance", 0).labels_shape
        (200, 500, 500)
        """
        __tracebackhide__ = True
        return self._call(lambda client: client.describe(split, crop))

    def verify(
        self, split: str | Split | None = None, crops: Numbers | None = None, *, repair: bool = False
    ) -> list[VerifyResult]:
        """Re-read cached files against their manifests.

        Parameters
        ----------
        split, crops
            Only these; None is every cached file.
        repair
            Set damaged files aside and fetch them again.

        Returns
        -------
        list of VerifyResult
            One for each file.

        Examples
        --------
        >>> client = PrismClient("/lab/prism")
        >>> _ = client.ensure("instance", 0, progress=False)
        >>> [result.verdict.value for result in client.verify("instance", 0)]
        ['ok']
        """
        __tracebackhide__ = True
        return self._call(lambda client: client.verify(split, crops, repair=repair))

    def remove(self, split: str | Split, crops: Numbers | None) -> list[CropFile]:
        """Delete every cached file (all channels and subsets) of these crops; None is the whole split.

        Returns
        -------
        list of CropFile
            The deleted files; a crop that is not cached is not an error.

        Examples
        --------
        >>> [file.path for file in PrismClient("/lab/prism").remove("instance", 1)]
        ['/lab/prism/instance/crop_1.h5']
        """
        __tracebackhide__ = True
        return self._call(lambda client: client.remove(split, crops))

    def _arranged(self, plan: EnsurePlan, progress: Progress) -> list[CropFile]:
        __tracebackhide__ = True
        with closing(self._files(plan, progress)) as files:
            return plan.arrange({file.crop: file for file in files})

    def _files(self, plan: EnsurePlan, progress: Progress) -> Generator[CropFile, None, None]:
        __tracebackhide__ = True
        if plan.is_empty:
            return
        running = self._owner.running()
        steps = running.loop.iterate(partial(running.client.steps, plan))
        try:
            with Delivery(progress, is_remote=self.settings.url is not None) as delivery, closing(steps):
                for event in chain.from_iterable(steps):
                    if (file := delivery.take(event)) is not None:
                        yield file
        except PrismError as error:
            raise _without_our_frames(error) from None

    def _call(self, method: Callable[[AsyncPrismClient], Awaitable[T]]) -> T:
        __tracebackhide__ = True
        running = self._owner.running()
        try:
            return running.loop.run(method, running.client)
        except PrismError as error:
            raise _without_our_frames(error) from None


def _without_our_frames(error: PrismError) -> PrismError:
    """Return `error` without the frames of the event loop, which tell a user nothing; they are logged for debugging.

    IPython also hides the frames of functions that have a local variable ``__tracebackhide__``.
    """
    _log.debug("raised to the caller", exc_info=error)
    return error.with_traceback(None)
