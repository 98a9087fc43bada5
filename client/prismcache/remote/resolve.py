"""Find a file of the service on this machine: below the mount, among earlier downloads, or by downloading it.

A path is built from the crop's split and file name below a folder of this machine, never taken from the service, and
returned only when the file's content is what the service published. `decide` is pure; `Resolver` looks and acts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import stat
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import TypeAlias

from prismcache.backend import ReceivedBytes
from prismcache.disk import StoppedError, VerifiedFiles, patiently, sha256_of, stamp_of
from prismcache.errors import ServiceError, StorageError
from prismcache.layout import HDF5_SIGNATURE, FileStamp, crop_path, parse_file_name
from prismcache.schema import CropFile, Product

GRACE = (0.2, 0.8, 2.0)
"""Seconds between looks for a file that the mount does not show yet: NFS caches for a while that a file was absent."""

_log = logging.getLogger("prismcache")


@dataclass(frozen=True, slots=True)
class Sight:
    """What the file system reports for a path.

    Attributes
    ----------
    stamp
        Of the file; None if no file can be read there.
    inside
        Whether the file lies below the folder that was looked in, links followed.
    regular
        Whether the path is a plain file.
    signature
        Whether the file begins with the HDF5 signature.
    """

    stamp: FileStamp | None = None
    inside: bool = True
    regular: bool = True
    signature: bool = True


ABSENT = Sight()


@dataclass(frozen=True, slots=True)
class Use:
    """The file is the one that the service published."""


@dataclass(frozen=True, slots=True)
class Read:
    """Everything but the content is right; the content has to be read."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The file is another one, for `reason`."""

    reason: str


Decision: TypeAlias = Use | Read | Refuse


def decide(file: CropFile, sight: Sight, sha256: str | None) -> Decision:
    """Return whether a path holds `file`.

    Parameters
    ----------
    file
        The file that the service published.
    sight
        What this machine's file system reports.
    sha256
        The digest of the content, if the file was read before and has the same stamp.
    """
    objection = _objection(file, sight)
    if objection is not None:
        return Refuse(objection)
    if sha256 is None:
        return Read()
    return Use() if sha256 == file.sha256 else Refuse("its content is not what the service published")


def _objection(file: CropFile, sight: Sight) -> str | None:
    """Return the first reason against the file that is known before its content is read."""
    size = -1 if sight.stamp is None else sight.stamp.size
    objections = {
        "it is a link that leaves the folder": not sight.inside,
        "it is not a plain file": not sight.regular,
        "it is not there, or cannot be read": sight.stamp is None,
        f"it has {size} bytes instead of {file.size}": size != file.size,
        "it is not HDF5": not sight.signature and file.product is not Product.FACTS,
    }
    return next((words for words, applies in objections.items() if applies), None)


def local_name(file: CropFile) -> PurePosixPath:
    """Path of `file` below any root: of what the service says, only the kind of name is taken.

    Raises
    ------
    ServiceError
        If the service names a file that cannot be a file of this crop.

    Examples
    --------
    >>> file = CropFile(split="instance", crop=5, channels=(0, 1), path="/srv/x/crop_5.h5", size=9, sha256="00")
    >>> str(local_name(file))
    'instance/crop_5.h5'
    """
    parsed = parse_file_name(re.split(r"[\\/]", file.path)[-1])
    if (
        parsed is None
        or parsed.channels not in {None, file.channels}
        or (parsed.crop, parsed.context, parsed.product) != (file.crop, file.context, file.product)
    ):
        raise ServiceError(
            f"the service names {file.path!r} as the file of crop {file.split.value}/{file.crop}, which it cannot be"
        )
    return crop_path(file.split, *parsed)


def look(folder: Path, path: Path) -> Sight:
    """See what lies at `path`, two steps below `folder`, opening it as a reader would.

    A read that fails with an error that may pass is tried again.
    """

    def see() -> Sight:
        has_link = path.is_symlink() or path.parent.is_symlink()
        if has_link and not path.resolve(strict=True).is_relative_to(folder.resolve(strict=True)):
            return Sight(inside=False)
        if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait for a writer
            return Sight(regular=False)
        with path.open("rb", buffering=0) as file:
            signature = file.read(len(HDF5_SIGNATURE))
            return Sight(stamp_of(os.fstat(file.fileno())), signature=signature == HDF5_SIGNATURE)

    with contextlib.suppress(OSError, RuntimeError, StorageError):  # RuntimeError: links in a circle
        return patiently(see, path)
    return ABSENT


class Resolver:
    """Finds files of one service on this machine, or has them downloaded.

    Parameters
    ----------
    mount
        This machine's mount of the service's root, if there is one.
    downloads
        The folder for files of this service that the mount does not show.
    verified
        The files that were read before.
    fetch
        Called with a file, its path in `downloads` and a callable for received bytes; must leave the right file there.
    grace
        Seconds between further looks for a file that the mount does not show.
    """

    def __init__(
        self,
        mount: Path | None,
        downloads: Path,
        verified: VerifiedFiles,
        fetch: Callable[[CropFile, Path, ReceivedBytes], Awaitable[None]],
        *,
        grace: tuple[float, ...] = GRACE,
    ) -> None:
        self.mount = mount
        self._downloads = downloads
        self._verified = verified
        self._fetch = fetch
        self._grace = grace
        self._has_warned = False

    async def path(self, file: CropFile, report: ReceivedBytes) -> Path:
        """Return the absolute path of `file` on this machine; a download calls `report` with the bytes received.

        Raises
        ------
        PrismError
            If the file is not on the mount and cannot be downloaded.
        """
        name = local_name(file)
        if self.mount is not None:
            decision = await self._on_mount(self.mount, name, file)
            if isinstance(decision, Use):
                return self.mount / name
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            reason = decision.reason
            _log.log(level, "%s is not the service's file: %s. Downloading it instead.", self.mount / name, reason)
        if not await self.is_downloaded(file):
            await self._fetch(file, self._downloads / name, report)
        return self._downloads / name

    async def known(self, files: Sequence[CropFile], *, unread: bool = False) -> list[tuple[CropFile, Path]]:
        """Return the files that lie where `path` looks first; one look at each, in one thread.

        Parameters
        ----------
        files
            The files that the service names.
        unread
            Whether to return files whose content was not read yet, too.
        """
        return await asyncio.to_thread(self._known, self.mount or self._downloads, files, Use | Read if unread else Use)

    async def is_downloaded(self, file: CropFile) -> bool:
        """Return whether the right file is among the downloads."""
        return isinstance(await self.judge(self._downloads, local_name(file), file), Use)

    async def judge(self, folder: Path, name: PurePosixPath, file: CropFile) -> Use | Refuse:
        """Return whether `name` in `folder` is `file`; the file is read in full if it was not read before."""
        stopping = threading.Event()
        try:
            return await asyncio.to_thread(self._judge, folder, name, file, stopping.is_set)
        except asyncio.CancelledError:
            stopping.set()
            raise

    async def _on_mount(self, mount: Path, name: PurePosixPath, file: CropFile) -> Use | Refuse:
        decision = await self.judge(mount, name, file)
        for seconds in self._grace:
            if isinstance(decision, Use) or not await asyncio.to_thread(_may_appear, mount, name):
                break
            await asyncio.sleep(seconds)
            decision = await self.judge(mount, name, file)
        return decision

    def _known(
        self, folder: Path, files: Sequence[CropFile], good: type[Use] | UnionType
    ) -> list[tuple[CropFile, Path]]:
        found = []
        for file in files:
            with contextlib.suppress(ServiceError):  # a strange name: for `path` to refuse
                path = folder / local_name(file)
                if isinstance(self._first_look(folder, path, file)[1], good):
                    found.append((file, path))
        return found

    def _first_look(self, folder: Path, path: Path, file: CropFile) -> tuple[Sight, Decision]:
        sight = look(folder, path)
        known = None if sight.stamp is None else self._verified.recall(path, sight.stamp)
        return sight, decide(file, sight, known)

    def _judge(self, folder: Path, name: PurePosixPath, file: CropFile, stop: Callable[[], bool]) -> Use | Refuse:
        path = folder / name
        sight, decision = self._first_look(folder, path, file)
        if not isinstance(decision, Read):
            return decision
        with contextlib.suppress(OSError, StorageError, StoppedError):
            sha256 = patiently(lambda: sha256_of(path, stop), path)
            after = look(folder, path)
            if after.stamp is not None and after == sight:
                self._verified.remember(path, after.stamp, sha256)
                last = decide(file, after, sha256)
                return last if not isinstance(last, Read) else Refuse("it cannot be checked")
        return Refuse("it changed while it was read, or cannot be read")


def _may_appear(mount: Path, name: PurePosixPath) -> bool:
    """Return whether an absent file may still appear. Reading its folder makes NFS ask the server again."""
    with contextlib.suppress(OSError):
        list((mount / name).parent.iterdir())
        return not os.path.lexists(mount / name)
    return False
