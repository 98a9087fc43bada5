"""A real service in a process of its own, on a free port, that can be stopped, killed and started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx2

from prismcache.config import Settings
from prismcache_service.config import ServiceConfig
from prismcache_service.web.tokens import Role, create_token, tokens_path
from tests.support.processes import environment

START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
COMMAND = (sys.executable, "-m", "prismcache_service.web.server")

_ADDRESS = re.compile(r"^prismcache serves (https?://\S+)", re.MULTILINE)


def service_config(settings: Settings, state_folder: Path, **changes: Any) -> ServiceConfig:
    """Settings of a service on the cache folder and bucket of `settings`; `changes` are further settings."""
    values = settings.model_dump(exclude_none=True) | {"port": 0, "state_folder": state_folder} | changes
    return ServiceConfig.load({}, **values)


class Service:
    """``python -m prismcache_service.web.server``; a context manager that starts it and lets nothing outlive it.

    Parameters
    ----------
    config
        Its settings; with port 0 the first start takes a free one, which later starts keep.
    env
        Changes to its environment.
    command
        What to run instead, e.g. ``prismcache serve``.
    """

    def __init__(
        self, config: ServiceConfig, *, env: Mapping[str, str] | None = None, command: tuple[str, ...] = COMMAND
    ) -> None:
        self.config = config
        self.url = ""
        self._command, self._env = command, dict(env or {})
        self._log: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> Self:
        """Start it and wait until it responds.

        Raises
        ------
        RuntimeError
            If it ends, or does not say where it listens, within `START_TIMEOUT` seconds; carries its log.
        """
        port = {"PRISMCACHE_PORT": self.url.rpartition(":")[2]} if self.url else {}
        # In a session of its own, so that signals reach it alone.
        self._process = subprocess.Popen(
            self._command, env=environment(self.config, self._env | port), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stderr is not None
        listening = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr, listening), daemon=True)
        self._reader.start()
        if not listening.wait(START_TIMEOUT) or self._process.poll() is not None or not self.url:
            self.kill()
            raise RuntimeError(f"the service did not start:\n{self.log}")
        return self

    def _read(self, stream: IO[str], listening: threading.Event) -> None:
        with stream:
            for line in stream:
                self._log.append(line)
                if found := _ADDRESS.match(line):
                    self.url = found[1]
                    listening.set()
        listening.set()

    @property
    def pid(self) -> int:
        """Process id of the running service."""
        assert self._process is not None, "the service does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has written so far, over all starts."""
        return "".join(self._log)

    @property
    def is_running(self) -> bool:
        """False once it has ended."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def terminate(self) -> int:
        """Ask it to end, and return its exit status.

        Raises
        ------
        subprocess.TimeoutExpired
            If it does not end within `STOP_TIMEOUT` seconds.
        """
        self.send(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        """SIGKILL; nothing happens if it has ended."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def restart(self) -> Self:
        """End it in peace and start it again, at the same address."""
        self.terminate()
        return self.start()

    def _ended(self) -> int:
        assert self._process is not None
        status = self._process.wait(STOP_TIMEOUT)
        if self._reader is not None:
            self._reader.join(STOP_TIMEOUT)
        return status

    def create_token(self, name: str, role: Role | str) -> str:
        """Make a token in the service's file; a running service notices it within 2 s, or at once on SIGHUP."""
        return create_token(tokens_path(self.config), name, role)

    def client(self, token: str | None = None, **options: Any) -> httpx2.Client:
        """An HTTP client for it, to be closed by the caller."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx2.Client(base_url=self.url, headers=headers, trust_env=False, **({"timeout": 30} | options))
