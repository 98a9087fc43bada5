"""A real Dask cluster on this machine: a scheduler and workers, each a process started as a lab would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import Watched, eventually, watch, workers_of

TERMINATION_S = 10.0


class DaskCluster:
    """A scheduler and its workers; a context manager that lets none of them outlive it.

    Parameters
    ----------
    folder
        For the scheduler file and the processes' own files.
    settings
        Dask's settings for the scheduler, by the name of their variable below ``DASK_DISTRIBUTED__``.
    protocol
        tcp or tls.

    Attributes
    ----------
    address
        The scheduler's, which it keeps when it is started again.
    scheduler_file
        Where it writes that.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, *, protocol: str = "tcp") -> None:
        self.address = ""
        self.scheduler_file = folder / "scheduler.json"
        self._folder = folder
        self._protocol = protocol
        self._settings = {f"DASK_DISTRIBUTED__{name}": value for name, value in (settings or {}).items()}
        self._scheduler: subprocess.Popen[bytes] | None = None
        self._workers: list[subprocess.Popen[bytes]] = []
        self._started = 0

    def __enter__(self) -> Self:
        self.start_scheduler()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def complete(self, workers: int) -> None:
        """Start what does not run, as a supervisor would."""
        if self._scheduler is None or self._scheduler.poll() is not None:
            self.start_scheduler()
        while len(self.workers()) < workers:
            self.start_worker()

    def start_scheduler(self) -> None:
        """Start it and wait until it listens."""
        self.scheduler_file.unlink(missing_ok=True)
        port = self.address.rpartition(":")[2] or "0"
        arguments = ["scheduler", "--protocol", self._protocol, "--host", "127.0.0.1", "--port", port]
        arguments += ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]  # metrics are served all the same
        self._scheduler = self._start([*arguments, "--scheduler-file", str(self.scheduler_file)], self._settings)
        eventually(self._has_address, "the Dask scheduler listens")

    def start_worker(self, *, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Watched:
        """Start a worker of one thread, without waiting until the scheduler knows it."""
        arguments = ["worker", self.address, "--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--no-nanny"]
        process = self._start([*arguments, "--local-directory", str(self._folder)], env or {}, prefix)
        self._workers.append(process)
        return watch(process.pid)

    @property
    def scheduler_pid(self) -> int:
        """Process id of the scheduler."""
        assert self._scheduler is not None
        return self._scheduler.pid

    def workers(self) -> list[Watched]:
        """The workers that run, also those that are stopped."""
        return [watch(process.pid) for process in self._workers if process.poll() is None]

    def children(self) -> list[Watched]:
        """The processes of ours that the workers have started and that run."""
        return [child for process in self._workers for child in workers_of(process.pid)]

    def kill_scheduler(self) -> None:
        """SIGKILL; its workers then end by themselves."""
        assert self._scheduler is not None
        self._scheduler.kill()
        self._scheduler.wait(TERMINATION_S)

    def end(self) -> None:
        """End what runs: the workers first, since they take their leave of the scheduler."""
        for processes in (self._workers, [self._scheduler] if self._scheduler else []):
            for process in processes:
                process.terminate()
                process.send_signal(signal.SIGCONT)
            for process in processes:
                try:
                    process.wait(TERMINATION_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(TERMINATION_S)
        self._workers.clear()

    def _start(
        self, arguments: Sequence[str], env: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        self._started += 1
        ours = {"DASK_TEMPORARY_DIRECTORY": str(self._folder)}
        with (self._folder / f"{self._started}-{arguments[0]}.log").open("wb") as log:
            command = [*prefix, sys.executable, "-m", "dask", *arguments]
            return subprocess.Popen(
                command,
                env=dict(os.environ) | ours | dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _has_address(self) -> bool:
        assert self._scheduler is not None
        if self._scheduler.poll() is not None:
            raise RuntimeError(f"the Dask scheduler ended with {self._scheduler.returncode}")
        try:
            self.address = json.loads(self.scheduler_file.read_text())["address"]
        except (OSError, ValueError):
            return False
        return True
