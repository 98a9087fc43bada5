"""The lock of the process that makes a crop: a lock file, renewed while the work goes on.

A making lock saves work and nothing else: two holders at once would both publish right files. A lock is abandoned when
its process on this machine is gone, or when it was not renewed for `LIFE_S` seconds of the *watcher's* own monotonic
clock. Clocks are never compared between machines and flock is not used, so a making lock works on NFS.
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

from prismcache.disk import disk_errors, share_with_group, storage_error, temporary_beside, write_atomically
from prismcache.errors import PrismError
from prismcache_service.cache.threads import DiskThreads

LIFE_S = 15.0
RENEW_S = LIFE_S / 6
POLL_S = 0.1
_FIRST_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of <linux/proc_ns.h>: a process in no container
_RELEASE_S = 2.0  # a service has 5 s in all to shut down
_held: set[str] = set()  # tokens of the locks of this process


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

    @property
    def process(self) -> str:
        """The process, as a person would look for it."""
        return f"process {self.pid} on {self.machine.partition('/')[0]}"

    def is_gone(self) -> bool:
        """Return whether the process is known to have ended; False where that cannot be known."""
        if self.machine == _machine():
            # This process knows its own locks: it released one that it does not hold, but could not delete the file.
            is_forgotten = self.pid == os.getpid() and self.token not in _held
            return is_forgotten or _process_start(self.pid) != self.started
        then, now = self.machine.split("/"), _machine().split("/")
        # The machine has rebooted since. Containers are left out: those of two machines may have the same host name.
        return then[::2] == now[::2] == [now[0], _FIRST_NAMESPACE] and then[1] != now[1]


class Watch:
    """Decides from repeated looks at one lock whether it is abandoned; `holder` is the one seen last."""

    def __init__(self) -> None:
        self.holder: Holder | None = None
        self._since: float | None = None

    def is_abandoned(self, holder: Holder | None, now: float) -> bool:
        """Return whether the lock is abandoned; `holder` was read from its file at monotonic time `now` in s."""
        if holder is not None and holder.is_gone():
            return True
        if self._since is None or holder != self.holder:
            self.holder, self._since = holder, now
        return now - self._since > LIFE_S


class MakingLocks:
    """The making locks of one cache folder.

    New lock files get the group permissions of the folder `like`. Methods raise `StorageError` if the system refuses,
    or gives no response.
    """

    def __init__(self, folder: Path, threads: DiskThreads | None = None, like: Path | None = None) -> None:
        self._folder = folder
        self._threads = threads or DiskThreads()
        self._like = like or folder
        # A renewal must not bring back what is being released, nor two threads discard one lock after the other.
        self._changing = threading.Lock()
        self._watches: dict[str, Watch] = {}
        self._unwritten: set[str] = set()

    def try_acquire(self, name: str, token: str = "") -> str | None:
        """Return the token of a new lock, or None while another process holds the lock."""
        token = token or uuid.uuid4().hex
        path = self._path(name)
        try:
            file = path.open("x")
        except FileExistsError:
            return None
        except OSError as error:
            raise storage_error(error, path) from error
        _held.add(token)
        try:
            with file:
                file.write(_this_process(token, 0))
            share_with_group(path, self._like)
        except OSError as error:
            _held.discard(token)
            try:
                path.unlink()
            except OSError:
                self._unwritten.add(name)  # other processes cannot read from an empty file who holds it
            raise storage_error(error, path) from error
        return token

    def renew(self, name: str, token: str, renewals: int) -> None:
        """Show that the holder still lives. A failure is harmless: another process would take the lock over."""
        with self._changing, contextlib.suppress(OSError):
            if self._is_held_by(name, token):
                write_atomically(self._path(name), _this_process(token, renewals).encode(), token, like=self._like)

    def release(self, name: str, token: str) -> None:
        """Release the lock if this token still holds it.

        A failure is harmless: this process regards the lock as abandoned at once, others when it is not renewed.
        """
        with self._changing, contextlib.suppress(OSError):
            try:
                if self._is_held_by(name, token):
                    self._path(name).unlink()
            finally:
                _held.discard(token)

    def holder(self, name: str) -> Holder | None:
        """Return the holder of the lock; None if the lock is free, or its file cannot be read (yet)."""
        return _read(self._path(name))

    def discard(self, name: str, abandoned: Holder | None) -> None:
        """Delete a lock that was found abandoned, unless it has changed since.

        Two processes may find one lock abandoned, and the slower must not delete the lock that the quicker made in its
        place. So the file is renamed, looked at again, and put back if it is another one.
        """
        path = self._path(name)
        aside = temporary_beside(path, uuid.uuid4().hex)
        with self._changing, disk_errors(path, "PRISMCACHE_ROOT"):
            if self.holder(name) != abandoned:
                return
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside)
                if _read(aside) != abandoned:
                    with contextlib.suppress(OSError):  # no links here, or a third process was quicker
                        os.link(aside, path)
                aside.unlink()

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
        """Try once to get a lock, also an abandoned one; return its token, or None after a moment if it is held."""
        token = uuid.uuid4().hex
        if await self._threads.run(self.try_acquire, name, token, undo=lambda: self.release(name, token)):
            return token
        holder = await self._threads.run(self.holder, name)
        is_ours = holder is None and name in self._unwritten
        if is_ours or watch.is_abandoned(holder, time.monotonic()):
            await self._threads.run(self.discard, name, holder)
            self._unwritten.discard(name)
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


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


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
