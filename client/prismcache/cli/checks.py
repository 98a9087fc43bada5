"""The checks of ``prismcache doctor``: each gives a finding with a verdict and a remedy.

The ``check_…`` functions only decide, on facts that are passed in; `findings` gathers the facts.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import stat
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prismcache.config import Settings
    from prismcache.schema import CropFile, ServiceStatus

_CLOCK_S = 60.0  # further apart, time stamps mislead; signed S3 requests fail at 15 minutes
_SLOW_S = 1.0
_ASK_S = 10.0
_ROOM_BYTES = 1_000_000_000  # a full-size crop takes 0.6 GB


class Verdict(StrEnum):
    """What a check found. A failed check makes the command exit with 1."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    verdict: Verdict
    detail: str
    remedy: str = ""


async def findings(settings: Settings) -> AsyncIterator[Finding]:
    """Yield each finding as soon as it is known.

    Parameters
    ----------
    settings
        With a URL, the service, the token and the mount are checked; without one, the cache folder and the bucket.
    """
    has_service_extra = find_spec("prismcache_service") is not None and find_spec("aiobotocore") is not None
    mount = settings.mount if settings.url else None
    folder = settings.downloads if settings.url and mount is None else settings.root
    yield check_root(folder, *await asyncio.to_thread(_look_at, folder))
    if folder.is_dir() and mount is None:
        os.umask(umask := os.umask(0o077))
        yield check_umask(folder.stat().st_mode, umask)
        try:
            yield check_locks(folder, *await asyncio.to_thread(_try_locks, folder))
        except OSError as error:
            yield Finding("locks", Verdict.FAILED, f"{folder}: {error.strerror}", "Make the folder writable for you.")
    if not settings.url:
        yield check_clock(
            "S3 server",
            await asyncio.to_thread(_clock_difference, settings.s3_endpoint_url or "https://s3.amazonaws.com"),
        )
        yield await _check_bucket(settings) if has_service_extra else Finding(
            "bucket", Verdict.FAILED, "this is the light client, and no service is set",
            'Set PRISMCACHE_URL to your lab\'s service, or pip install "prismcache[service]".',
        )  # fmt: skip
        yield check_versions(version("prismcache"), None, has_service_extra=has_service_extra)
        return
    yield check_clock("service", await asyncio.to_thread(_clock_difference, settings.url))
    status, file, finding = await _ask_service(settings)
    yield finding
    if status is not None:
        yield check_mount(mount, file)
    yield check_versions(version("prismcache"), status.version if status else None, has_service_extra=has_service_extra)


def check_root(folder: Path, problem: str | None, free: int) -> Finding:
    """Decide whether `folder` can hold crops; `problem` says why it cannot be used, `free` are bytes on its disk."""
    if problem is not None:
        return Finding(
            "root", Verdict.FAILED, f"{folder}: {problem}",
            "Set PRISMCACHE_ROOT, or --root, to a folder that you may write.",
        )  # fmt: skip
    from prismcache.numbers import format_bytes

    detail = f"{folder}, {format_bytes(free)} free"
    if free < _ROOM_BYTES:
        return Finding("root", Verdict.WARNING, detail, "Free space, or choose another folder: a crop takes 0.6 GB.")
    return Finding("root", Verdict.OK, detail)


def check_umask(mode: int, umask: int) -> Finding:
    """Decide whether files that this user makes below a root of `mode` can be used by the root's group."""
    shared = bool(mode & stat.S_IWGRP)
    if shared and umask & stat.S_IRWXG:
        return Finding(
            "umask", Verdict.WARNING, f"{umask:04o}, but the root is shared with its group",
            "Run `umask 002` before you write into the root with other programs.",
        )  # fmt: skip
    return Finding("umask", Verdict.OK, f"{umask:04o}, the root is {'shared with its group' if shared else 'yours'}")


def check_locks(folder: Path, exclusive: bool, seconds: float, clock: float) -> Finding:  # noqa: FBT001 - a fact, not a flag
    """Decide whether the file system can keep two processes apart.

    Parameters
    ----------
    folder
        Where it was tried.
    exclusive
        Whether a file that exists could not be created once more.
    seconds
        How long creating, renaming and deleting a file took.
    clock
        Seconds by which the file's time stamp is ahead of this machine's clock.
    """
    if not exclusive:
        return Finding(
            "locks", Verdict.FAILED, f"{folder}: two processes can create the same file",
            "Put the root on a local disk or on NFS version 4.",
        )  # fmt: skip
    if abs(clock) > _CLOCK_S:
        return Finding(
            "locks", Verdict.WARNING, f"the file server's clock is {clock:+.0f} s from this machine's",
            "Synchronise both clocks, as with chrony or systemd-timesyncd.",
        )  # fmt: skip
    if seconds > _SLOW_S:
        return Finding(
            "locks", Verdict.WARNING, f"one file took {seconds:.1f} s",
            "The file system is slow or busy; a local root, or a service, would be quicker.",
        )  # fmt: skip
    return Finding("locks", Verdict.OK, f"files are created exclusively, {1000 * seconds:.0f} ms")


def check_clock(server: str, difference: float | None) -> Finding:
    """Decide whether this machine's clock is right; `difference` are seconds to the server's, None if unknown."""
    if difference is None:
        return Finding("clock", Verdict.SKIPPED, f"the {server} did not send its time")
    detail = f"{difference:+.0f} s from the {server}'s clock"
    if abs(difference) > _CLOCK_S:
        return Finding("clock", Verdict.WARNING, detail, "Synchronise the clock, as with chrony or systemd-timesyncd.")
    return Finding("clock", Verdict.OK, detail)


def check_mount(mount: Path | None, file: CropFile | None) -> Finding:
    """Decide whether `mount` shows the service's root; `file` is one that the service has."""
    if mount is None:
        remedy = (
            "" if file is None else "If this machine mounts the service's folder, set PRISMCACHE_ROOT to the mount."
        )
        return Finding("mount", Verdict.SKIPPED, "no mount is set, so crops are downloaded", remedy)
    if file is None:
        return Finding("mount", Verdict.SKIPPED, f"{mount}: the service has no crop yet to compare with")
    shown = mount / file.split.value / Path(file.path).name
    with suppress(OSError):
        if shown.stat().st_size == file.size:
            return Finding("mount", Verdict.OK, f"{mount} shows the service's files")
    return Finding(
        "mount", Verdict.FAILED, f"{shown} is not the file of {file.size} bytes that the service has",
        "Set PRISMCACHE_ROOT to where this machine mounts the service's folder, or unset it to download crops.",
    )  # fmt: skip


def check_versions(ours: str, theirs: str | None, *, has_service_extra: bool) -> Finding:
    """Decide whether client and service fit; `theirs` is None without a service."""
    extra = "with" if has_service_extra else "without"
    detail = f"prismcache {ours} {extra} the extra service, Python {platform.python_version()}"
    if theirs not in {None, ours}:
        return Finding(
            "versions", Verdict.WARNING, f"{detail}; the service is {theirs}", f'pip install "prismcache=={theirs}"'
        )
    return Finding("versions", Verdict.OK, detail)


def _look_at(folder: Path) -> tuple[str | None, int]:
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    if not existing.is_dir():
        return f"{existing} is not a folder", free
    return (None if os.access(existing, os.W_OK | os.X_OK) else f"{existing} cannot be written"), free


def _try_locks(folder: Path) -> tuple[bool, float, float]:
    path = folder / f".prismcache-doctor.{uuid.uuid4().hex}"
    began = time.monotonic()
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            exclusive = False
        except FileExistsError:
            exclusive = True
        clock = path.stat().st_mtime - time.time()
        path = path.rename(path.with_suffix(".renamed"))
    finally:
        path.unlink(missing_ok=True)
    return exclusive, time.monotonic() - began, clock


def _clock_difference(url: str) -> float | None:
    import httpx2

    try:
        date = httpx2.head(url, timeout=_ASK_S).headers["date"]
        return time.time() - parsedate_to_datetime(date).timestamp()
    except (httpx2.HTTPError, OSError, KeyError, ValueError):
        return None  # the next check says what is wrong with the connection


async def _check_bucket(settings: Settings) -> Finding:
    from prismcache.cli.service import ask_cache_folder
    from prismcache.errors import PrismError

    name = f"{settings.s3_bucket} at {settings.s3_endpoint_url or 'AWS'}"
    hasty = settings.model_copy(update={"s3_object_timeout": _ASK_S})
    try:
        await ask_cache_folder(hasty, lambda backend: backend.check_source())
    except PrismError as error:
        return Finding("bucket", Verdict.FAILED, f"{name}: {error}", error.remedy)
    return Finding("bucket", Verdict.OK, f"{name} lists its crops")


async def _ask_service(settings: Settings) -> tuple[ServiceStatus | None, CropFile | None, Finding]:
    """Return the service's status and one file that it has, if the token allows it, and what was found."""
    from prismcache.errors import ForbiddenError, PrismError, UnauthorizedError
    from prismcache.remote.api import ServiceApi

    async with ServiceApi(settings) as api:
        try:
            async with asyncio.timeout(_ASK_S):
                status = await api.status()
        except (UnauthorizedError, ForbiddenError) as error:
            return None, None, Finding("token", Verdict.FAILED, str(error), error.remedy)
        except TimeoutError:
            detail = f"{settings.url}: no response within {_ASK_S:g} s"
            return None, None, Finding("service", Verdict.FAILED, detail, "Check PRISMCACHE_URL and the network.")
        except PrismError as error:
            return None, None, Finding("service", Verdict.FAILED, str(error), error.remedy)
        files: list[CropFile] = []
        with suppress(PrismError, TimeoutError):  # the service may have to ask the bucket first
            async with asyncio.timeout(_ASK_S):
                files = [file for info in await api.catalog() for file in info.files]
    token = "your token is accepted" if settings.token else "no token is needed"
    return status, next(iter(files), None), Finding("service", Verdict.OK, f"{settings.url} responds; {token}")
