"""Who is making a crop right now: a lock file, renewed while the work goes on.

A making lock saves work and nothing else: two holders at once would both publish right files. A lock is abandoned when
its process on this machine is gone, or when nobody renewed it for `LIFE_S` of the *watcher's* own monotonic clock.
Clocks are never compared between machines and flock is not used, so a making lock works on NFS.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from prismcache.disk import share_with_group, storage_error, write_atomically
from prismcache.errors import PrismError
from prismcache_service.cache.threads import DiskThreads

LIFE_S = 15.0
RENEW_S = LIFE_S / 6
POLL_S = 0.1
_FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of <linux/proc_ns.h>: a process in no container
_RELEASE_S = 2.0  # a service has 5 s in all to shut down


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, and a count that grows with each renewal.

    `machine` is ``host/boot/process-id namespace``; `started` is in kernel ticks after boot.
    """

    token: str
    machine: str
    pid: int
    started: str
    renewals: int

    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; False where that cannot be known."""
        if self.machine == _machine():
            return _process_start(self.pid) != self.started
        then, now = self.machine.split("/"), _machine().split("/")
        # Started again since. Containers are left out: those of two machines may have the same host name.
        return then[::2] == now[::2] == [now[0], _FIRST_NAMESPACE] and then[1] != now[1]


class Watch:
    """Decides from repeated looks at one lock whether it is abandoned."""

    def __init__(self) -> None:
        self._seen: Holder | None = None
        self._since: float | None = None

    def is_abandoned(self, holder: Holder | None, now: float) -> bool:
        """Return whether the lock is abandoned; `holder` is what its file says at monotonic time `now` in s."""
        if holder is not None and holder.is_gone():
            return True
        if self._since is None or holder != self._seen:
            self._seen, self._since = holder, now
        return now - self._since > LIFE_S


class MakingLocks:
    """The making locks of one cache folder.

    Parameters
    ----------
    folder
        Where the lock files lie.
    threads
        Where the asynchronous methods do their work.
    like
        Folder whose group permissions new lock files get; default: `folder`.
    """

    def __init__(self, folder: Path, threads: DiskThreads | None = None, like: Path | None = None) -> None:
        self._folder = folder
        self._threads = threads or DiskThreads()
        self._like = like or folder
        self._changing = threading.Lock()  # a renewal, in a thread, must not bring back what is being released
        self._watches: dict[str, Watch] = {}

    def try_acquire(self, name: str, token: str = "") -> str | None:
        """Return the token of a new lock, or None while somebody else holds it.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        token = token or uuid.uuid4().hex
        path = self._path(name)
        try:
            file = path.open("x")
        except FileExistsError:
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        try:
            with file:
                file.write(_this_process(token, 0))
            share_with_group(path, self._like)
        except OSError as error:
            with contextlib.suppress(OSError):
                path.unlink()  # nobody could tell who holds an empty one
            raise storage_error(error, path) from error
        return token

    def renew(self, name: str, token: str, renewals: int) -> None:
        """Show that the holder still lives. Failing is harmless: the lock would only be taken over."""
        with self._changing, contextlib.suppress(OSError):
            if self._is_held_by(name, token):
                write_atomically(self._path(name), _this_process(token, renewals).encode(), token, like=self._like)

    def release(self, name: str, token: str) -> None:
        """Give the lock up if it is still this token's. Failing is harmless: a lock without renewals is abandoned."""
        with self._changing, contextlib.suppress(OSError):
            if self._is_held_by(name, token):
                self._path(name).unlink()

    def holder(self, name: str) -> Holder | None:
        """Return who holds the lock; None if nobody does, or the file cannot be read (yet)."""
        try:
            return Holder(**json.loads(self._path(name).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def discard(self, name: str, abandoned: Holder | None) -> None:
        """Delete a lock that was found abandoned, unless it has changed since.

        Raises
        ------
        StorageError
            If the system refuses.
        """
        if self.holder(name) == abandoned:
            try:
                self._path(name).unlink(missing_ok=True)
            except OSError as error:
                raise storage_error(error, self._path(name)) from error

    def sweep(self) -> set[str]:
        """Delete abandoned locks, and return the tokens of all others.

        A lock of a process elsewhere (another machine, a container that is gone) is deleted once this object has seen
        it without a renewal for `LIFE_S`: by a later sweep.
        """
        live = set()
        names = {path.name for path in self._folder.glob("[!.]*")}
        self._watches = {name: self._watches.get(name, Watch()) for name in names}
        for name in names:
            holder = self.holder(name)
            if self._watches[name].is_abandoned(holder, time.monotonic()):
                with contextlib.suppress(PrismError):  # a lock that cannot be deleted is tried again by the next sweep
                    self.discard(name, holder)
            elif holder is not None:
                live.add(holder.token)
        return live

    async def acquire(self, name: str, watch: Watch) -> str | None:
        """Try once to get a lock, also an abandoned one; return its token, or None after a moment if it is held.

        Raises
        ------
        StorageError
            If the folder cannot be written, or gives no response.
        """
        token = uuid.uuid4().hex
        if await self._threads.run(self.try_acquire, name, token, undo=lambda: self.release(name, token)):
            return token
        holder = await self._threads.run(self.holder, name)
        if watch.is_abandoned(holder, time.monotonic()):
            await self._threads.run(self.discard, name, holder)
        else:
            await asyncio.sleep(POLL_S)
        return None

    @asynccontextmanager
    async def held(self, name: str, token: str) -> AsyncIterator[None]:
        """Renew the lock during the block and release it afterwards."""
        renewing = asyncio.create_task(self._renew_for_ever(name, token))
        try:
            yield
        finally:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing
            # A disk that gives no response turns no published crop into a failure.
            with contextlib.suppress(PrismError):
                await self._threads.run(self.release, name, token, seconds=_RELEASE_S)

    async def _renew_for_ever(self, name: str, token: str) -> None:
        renewals = 0
        while True:
            await asyncio.sleep(RENEW_S)
            renewals += 1
            with contextlib.suppress(PrismError):
                await self._threads.renew(self.renew, name, token, renewals)

    def _is_held_by(self, name: str, token: str) -> bool:
        holder = self.holder(name)
        return holder is not None and holder.token == token

    def _path(self, name: str) -> Path:
        return self._folder / name


def _this_process(token: str, renewals: int) -> str:
    pid = os.getpid()
    return json.dumps(asdict(Holder(token, _machine(), pid, _process_start(pid) or "", renewals)))


@functools.cache
def _machine() -> str:
    """Return what names this kernel and process-id space, so that a process id means something."""
    parts = [socket.gethostname()]
    for source in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(str(source.readlink()) if source.is_symlink() else source.read_text().strip())
    return "/".join(parts)


def _process_start(pid: int) -> str | None:
    """Return when a process of this machine started, in kernel ticks; None if it has ended, or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else "unknown"
    except OSError:
        return "unknown"
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
