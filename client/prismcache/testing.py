"""A prismcache service in memory, for the tests of code that uses prismcache. Needs h5py (``prismcache[torch]``).

::

    from prismcache.testing import InMemoryService


    def test_training_reads_every_crop():
        with InMemoryService({("instance", 0): ..., ("instance", 1): ...}) as service, service.client() as client:
            assert len(client.ensure("instance")) == 2
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prismcache._testing_http import LabApi
from prismcache._testing_lab import Lab
from prismcache.client import PrismClient
from prismcache.client.aio import AsyncPrismClient
from prismcache.errors import PrismError
from prismcache.remote import transports as _transports
from prismcache.remote.transports import InProcess
from prismcache.schema import Split

__all__ = ["InMemoryService"]

_numbers = count(1)


class InMemoryService:
    """The service's HTTP API without a network: clients of its `url` find it in this process (and after a fork).

    Files are real, small, and in the published format; jobs go on when they are looked at, one crop each time.

    Parameters
    ----------
    crops
        What is published: by split and number, ``...`` for small made-up arrays (always the same), or a mapping with
        ``raw`` (C, Z, Y, X) uint8 and ``labels`` (Z, Y, X). Default: crops 0, 1 and 2 of both splits.
    root
        The cache folder; default: a temporary one, deleted at the end.
    token
        Ask for this token.

    Attributes
    ----------
    url
        For ``PrismClient(url=...)`` or ``PRISMCACHE_URL``.
    root
        The cache folder, while the service runs.

    Examples
    --------
    >>> with InMemoryService({("instance", 0): ..., ("instance", 5): ...}) as service:
    ...     with service.client() as client:
    ...         paths = client.ensure("instance", progress=False)
    ...         len(paths), service.requests.count("POST /v1/jobs")
    (2, 1)
    """

    def __init__(
        self,
        crops: Mapping[tuple[str, int], Any] | None = None,
        *,
        root: str | Path | None = None,
        token: str | None = None,
    ) -> None:
        if crops is None:
            crops = {(split.value, crop): ... for split in Split for crop in range(3)}
        self.url = f"http://prismcache-{next(_numbers)}.invalid"
        self._crops = {(Split(split), crop): given for (split, crop), given in crops.items()}
        self._given_root = root
        self._token = token
        self._stack = ExitStack()
        self._running: LabApi | None = None

    def __enter__(self) -> Self:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="prismcache-")))
        self.root = folder / "root" if self._given_root is None else Path(self._given_root).absolute()
        self._downloads = folder / "downloads"
        self._running = LabApi(Lab(self.root, self._crops), self._token)
        _transports.register(self.url, InProcess(self._running, self._running))
        self._stack.callback(_transports.unregister, self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = None
        self._stack.close()

    @property
    def transport(self) -> LabApi:
        """For an `httpx2.AsyncClient` or `httpx2.Client`, or to be wrapped by something that fails.

        Raises
        ------
        RuntimeError
            If the service does not run.
        """
        if self._running is None:
            raise RuntimeError("the in-memory service runs only inside its `with` block")
        return self._running

    @property
    def lab(self) -> Lab:
        """What the service knows: its files, jobs, pins and leases."""
        return self.transport.lab

    @property
    def requests(self) -> list[str]:
        """Method and path of every request so far, such as ``POST /v1/jobs``."""
        return self.transport.requests

    def settings(self, *, mounted: bool = True, **settings: Any) -> dict[str, Any]:
        """Arguments for a client of this service.

        Parameters
        ----------
        mounted
            Whether the client's machine sees the cache folder; else files are downloaded.
        **settings
            More of them, which come first.
        """
        found: dict[str, Any] = {"url": self.url, "downloads": self._downloads, "token": self._token}
        return found | ({"root": self.root} if mounted else {}) | settings

    def client(self, *, mounted: bool = True, **settings: Any) -> PrismClient:
        """A client of this service, for you to close.

        Parameters
        ----------
        mounted, **settings
            As `settings` takes them.

        Examples
        --------
        >>> with InMemoryService() as service, service.client(mounted=False) as client:
        ...     client.ensure("semantic", 1, progress=False)[0].endswith("crop_1.h5")
        True
        """
        return PrismClient(**self.settings(mounted=mounted, **settings))

    def async_client(self, *, mounted: bool = True, **settings: Any) -> AsyncPrismClient:
        """As `client`, for programs that run an event loop."""
        return AsyncPrismClient(**self.settings(mounted=mounted, **settings))

    def cache(self, split: str | Split, crop: int) -> Path:
        """Have a crop cached already; its path.

        Examples
        --------
        >>> with InMemoryService() as service:
        ...     service.cache("instance", 2).name
        'crop_2.h5'
        """
        with self.lab.lock:
            return Path(self.lab.make(Split(split), crop).path)

    def fail(self, split: str | Split, crop: int, error: PrismError | None) -> None:
        """Have jobs fail to make a crop (None: succeed again).

        Examples
        --------
        >>> from prismcache import SourceUnreachableError
        >>> with InMemoryService() as service, service.client() as client:
        ...     service.fail("instance", 0, SourceUnreachableError("the bucket is away"))
        ...     try:
        ...         client.ensure("instance", 0, progress=False)
        ...     except SourceUnreachableError as error:
        ...         print(error)
        the bucket is away
        """
        with self.lab.lock:
            if error is None:
                self.lab.failing.pop((Split(split), crop), None)
            else:
                self.lab.failing[Split(split), crop] = error

    def hold(self) -> None:
        """Let no job go on until `resume`."""
        self.lab.held = True

    def resume(self) -> None:
        """Let jobs go on."""
        self.lab.held = False

    def forget_jobs(self) -> None:
        """Lose all jobs, as a service does whose database was deleted."""
        with self.lab.lock:
            self.lab.forget_jobs()
