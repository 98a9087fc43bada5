"""Who is making a crop right now: a lease file, renewed while the work goes on.

A lease saves work and nothing else: two holders at once would both publish right files. A lease counts as abandoned
when its process on this machine is gone, or when nobody renewed it for `LIFE_S` of the *watcher's* own monotonic
clock; clocks are never compared between machines and no file lock is used, so it works on NFS.
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
from dataclasses import dataclass
from pathlib import Path

from prismcache_service.cache.errors import storage_error

LIFE_S = 15.0
RENEW_S = LIFE_S / 6
POLL_S = 0.1


@dataclass(frozen=True)
class Holder:
    """The process behind a lease, and a count that grows with each renewal."""

    token: str
    machine: str
    pid: int
    started: str
    renewals: int

    def is_gone(self) -> bool:
        """True when the process is known to be gone; False also where that cannot be told (another machine)."""
        return self.machine == _machine() and _process_start(self.pid) != self.started


class Leases:
    """The lease files of one cache folder.

    Parameters
    ----------
    folder
        Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._changing = threading.Lock()  # a renewal, in a thread, must not bring back what is being released

    def try_acquire(self, name: str) -> str | None:
        """The token of a new lease on `name`, or None while somebody else holds it.

        Raises
        ------
        StorageError
            If the folder cannot be written.
        """
        token = uuid.uuid4().hex
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
        except OSError as error:
            path.unlink(missing_ok=True)  # nobody could tell whose an empty one is
            raise storage_error(error, path) from error
        return token

    def renew(self, name: str, token: str, renewals: int) -> None:
        """Show that the holder still lives. Failing is harmless: the lease would only be taken over."""
        with self._changing:
            if self._is_held_by(name, token):
                temporary = self._path(f".{name}.{token}.tmp")
                try:
                    temporary.write_text(_this_process(token, renewals))
                    temporary.replace(self._path(name))
                except OSError:
                    with contextlib.suppress(OSError):
                        temporary.unlink()

    def release(self, name: str, token: str) -> None:
        """Give the lease up, if it is still this token's."""
        with self._changing:
            if self._is_held_by(name, token):
                self._path(name).unlink(missing_ok=True)

    def holder(self, name: str) -> Holder | None:
        """Who holds the lease; None if nobody does, or the file is not (yet) readable."""
        try:
            return Holder(**json.loads(self._path(name).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def discard(self, name: str, abandoned: Holder | None) -> None:
        """Drop a lease that was found abandoned, unless it has changed since."""
        if self.holder(name) == abandoned:
            self._path(name).unlink(missing_ok=True)

    def sweep(self) -> set[str]:
        """Drop the leases of processes that are known to be gone; answers the tokens of all others."""
        live = set()
        for path in self._folder.glob("[!.]*"):
            holder = self.holder(path.name)
            if holder is not None and holder.is_gone():
                self.discard(path.name, holder)
            elif holder is not None:
                live.add(holder.token)
        return live

    def _is_held_by(self, name: str, token: str) -> bool:
        holder = self.holder(name)
        return holder is not None and holder.token == token

    @asynccontextmanager
    async def held(self, name: str, token: str) -> AsyncIterator[None]:
        """Renew the lease during the block and release it afterwards."""
        renewing = asyncio.create_task(self._renew_for_ever(name, token))
        try:
            yield
        finally:
            renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await renewing
            self.release(name, token)

    async def _renew_for_ever(self, name: str, token: str) -> None:
        renewals = 0
        while True:
            await asyncio.sleep(RENEW_S)
            renewals += 1
            await asyncio.to_thread(self.renew, name, token, renewals)

    def _path(self, name: str) -> Path:
        return self._folder / name


class Watch:
    """Decides from repeated looks at one lease whether it was abandoned. `now` is the watcher's monotonic time in s."""

    def __init__(self) -> None:
        self._seen: Holder | None = None
        self._since: float | None = None

    def is_abandoned(self, holder: Holder | None, now: float) -> bool:
        """Feed in what the lease file says now."""
        if holder is not None and holder.is_gone():
            return True
        if self._since is None or holder != self._seen:
            self._seen, self._since = holder, now
        return now - self._since > LIFE_S


async def acquire(leases: Leases, name: str, watch: Watch) -> str | None:
    """One try to get a lease, taking over an abandoned one; waits a moment and answers None if it is held."""
    token = leases.try_acquire(name)
    if token is None:
        holder = leases.holder(name)
        if watch.is_abandoned(holder, time.monotonic()):
            leases.discard(name, holder)
        else:
            await asyncio.sleep(POLL_S)
    return token


def _this_process(token: str, renewals: int) -> str:
    pid = os.getpid()
    return json.dumps(Holder(token, _machine(), pid, _process_start(pid) or "", renewals).__dict__)


@functools.cache
def _machine() -> str:
    """Names this kernel and process-id space, so that a process id means something."""
    parts = [socket.gethostname()]
    for source in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(str(source.readlink()) if source.is_symlink() else source.read_text().strip())
    return "/".join(parts)


def _process_start(pid: int) -> str | None:
    """When a process of this machine started, in kernel ticks; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else "unknown"
    except OSError:
        return "unknown"
    return stat.rpartition(")")[2].split()[19]
