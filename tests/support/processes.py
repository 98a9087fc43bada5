"""Real processes of the product: the command line, its workers, and how to watch them end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prismcache.config import Settings

DEADLINE = 30.0
CRASH_HOOK = Path(__file__).parent / "crash_hook"

_WORKER = "prismcache_service.engine"


def eventually(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Look at `condition` until it holds.

    Raises
    ------
    TimeoutError
        Naming `what` did not come about within `deadline` seconds.
    """
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {deadline:g} s: {what}")
        time.sleep(0.005)


@dataclass(frozen=True)
class Watched:
    """One process of this machine, never mistaken for a later one with the same id."""

    pid: int
    started: str

    @property
    def is_running(self) -> bool:
        """False once it has ended, also while nobody has collected its exit code."""
        state = _state(self.pid)
        return state is not None and state[0] not in "ZX" and state[1] == self.started

    @property
    def peak_memory(self) -> int:
        """Most bytes that were ever resident; only while it runs."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self.is_running:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until it has ended."""
        eventually(lambda: not self.is_running, f"process {self.pid} ends")


def watch(pid: int) -> Watched:
    """A process that runs now."""
    return Watched(pid, (_state(pid) or ("", "", ""))[1])


def workers_of(pid: int) -> list[Watched]:
    """The worker processes that process `pid` has started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (state := _state(int(entry.name))) is not None and state[2] == str(pid):
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if _WORKER in command:
                found.append(Watched(int(entry.name), state[1]))
    return [process for process in found if process.is_running]


def _state(pid: int) -> tuple[str, str, str] | None:
    """(state letter, start in kernel ticks, parent) of a process; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19], fields[1]


def environment(settings: Settings, changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program that shall use `settings`."""
    values = settings.model_dump(mode="json", exclude={"token", "url"}, exclude_none=True)
    ours = {f"PRISMCACHE_{name.upper()}": str(value) for name, value in values.items()}
    return os.environ | ours | dict(changes or {})


class Crash:
    """Has processes kill themselves just before they change a cache folder; see ``crash_hook/sitecustomize.py``.

    Parameters
    ----------
    folder
        For its own records.
    root
        The cache folder.
    role
        ``caller`` or ``worker``.
    """

    def __init__(self, folder: Path, root: Path, role: str) -> None:
        self._folder, self._root, self._role = folder, root, role
        folder.mkdir(parents=True)
        self.before(0)

    @property
    def environment(self) -> dict[str, str]:
        """For the caller, whose workers inherit it."""
        path = os.pathsep.join([str(CRASH_HOOK), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {"FOLDER": str(self._folder), "ROOT": str(self._root), "ROLE": self._role}
        return {"PYTHONPATH": path} | {f"CRASH_{name}": value for name, value in ours.items()}

    def before(self, change: int | str) -> None:
        """Choose the change: the how manieth from now on (once; 0: none), or each whose line in the log begins so."""
        (self._folder / "at").write_text(str(change))

    def happened(self, change: int) -> bool:
        """Whether a process was killed before the change of this number."""
        return (self._folder / f"crashed-{change}").exists()

    @property
    def log(self) -> list[str]:
        """What the processes changed so far: event and path below the root."""
        return (self._folder / "log").read_text().splitlines()


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def paths(self) -> list[str]:
        """The lines of standard output."""
        return self.stdout.splitlines()


class Command:
    """``python -m prismcache …`` as a process of its own, in a session of its own."""

    def __init__(self, settings: Settings, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "prismcache", *arguments],
            env=environment(settings, env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._watched = watch(self._process.pid)
        self._workers: set[Watched] = set()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """False once it has ended."""
        return self._watched.is_running

    def workers(self) -> list[Watched]:
        """Its worker processes that run now."""
        found = workers_of(self.pid)
        self._workers.update(found)
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone, having noted its workers."""
        self.workers()
        self._process.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> Finished:
        """Wait until the command has ended."""
        stdout, stderr = self._process.communicate(timeout=deadline)
        return Finished(self._process.returncode, stdout, stderr)

    def wait_for_workers(self) -> None:
        """Wait until every worker ever seen here has ended."""
        for worker in self._workers:
            worker.wait()

    def end(self) -> None:
        """Kill it if it still runs, and forget its output, which its workers may still hold open."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate(timeout=DEADLINE)


@contextmanager
def command(settings: Settings, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Command]:
    """Start a command; whatever happens in the block, it does not outlive it."""
    started = Command(settings, *arguments, env=env)
    try:
        yield started
    finally:
        started.end()


def run(settings: Settings, *arguments: str, env: Mapping[str, str] | None = None) -> Finished:
    """Run a command to its end."""
    with command(settings, *arguments, env=env) as started:
        return started.wait(60)
