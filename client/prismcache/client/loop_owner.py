"""Who owns the thread of a `PrismClient`: started by the first call, stopped with its owner, made anew after a fork."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, NamedTuple

from prismcache.backend import Backend
from prismcache.client.aio import AsyncPrismClient
from prismcache.client.loop_thread import LoopThread
from prismcache.config import Settings
from prismcache.errors import ConfigError


class Running(NamedTuple):
    """What the first call starts: a thread with an event loop, and the client that lives on it."""

    loop: LoopThread
    client: AsyncPrismClient

    def stop(self) -> None:
        """Close the client and end the thread."""
        self.loop.stop(self.client.aclose)

    def drop(self) -> None:
        """The same for a client that nobody refers to any more, while its paths may well be in use."""
        self.loop.stop(self.client.drop)


class LoopOwner:
    """Starts at most one `Running` for all threads of a process; stops it on `close`, when collected, or at exit."""

    def __init__(self, settings: Settings, backend: Backend | None) -> None:
        self.settings = settings
        self._backend = backend
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._running: Running | None = None
        self._at_exit: weakref.finalize[Any, Any] | None = None

    def running(self) -> Running:
        """The thread and its client, started if need be.

        Raises
        ------
        ConfigError
            In a forked process, if the parent used a given backend, which cannot be made again.
        """
        if os.getpid() != self._pid:
            self._forget_parent()
        with self._lock:
            if self._running is None:
                client = AsyncPrismClient(settings=self.settings, backend=self._backend)
                self._running = Running(LoopThread(), client)
                self._at_exit = weakref.finalize(self, self._running.drop)
            return self._running

    def close(self) -> None:
        """Stop what runs, if anything does."""
        running, self._running = self._running, None
        if running is not None and self._at_exit is not None:
            self._at_exit.detach()
            running.stop()

    def _forget_parent(self) -> None:
        """In a forked process: drop the parent's thread, which does not exist here, and its lock, which may be held."""
        if self._backend is not None and self._running is not None:
            raise ConfigError(
                "a client whose given backend was used before a fork cannot be used after it",
                remedy="Make the client in the process that uses it, or give it settings instead of a backend.",
            )
        if self._at_exit is not None:
            self._at_exit.detach()
        self._start_afresh()
