"""A real Docker engine and what runs compose files on it: this machine's, or started for the tests and stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import eventually

REPOSITORY = Path(__file__).parents[2]
STARTER = REPOSITORY.parent / "shared" / "tools" / "docker-engine"
"""Starts an engine and makes a base image, on machines that have neither."""

ENGINE_PIDS = {"dockerd.pid": b"dockerd", "exec/containerd/containerd.pid": b"containerd"}
"""Below the engine's folder, files with a process id, and what that process is."""

_STARTER_FOLDER = "PRISM_DOCKER_DIR"
_START_S = 600
_COMPOSE = (("docker", "compose"), ("docker-compose",))
# Settings of whoever runs the tests, which would change what compose does.
_FOREIGN = ("PRISM_", "PRISMCACHE_", "COMPOSE_")


class NoEngineError(Exception):
    """No Docker engine can be had here; says why."""


@dataclass(frozen=True)
class Engine:
    """A running engine.

    Attributes
    ----------
    environment
        For everything that speaks to it.
    compose
        Command that runs compose files: ``docker compose`` or ``docker-compose``.
    base_image
        What images are made from; None for what the Dockerfile names.
    """

    environment: Mapping[str, str]
    compose: tuple[str, ...]
    base_image: str | None = None

    def docker(self, *arguments: str, check: bool = True) -> str:
        """Run ``docker`` and return what it prints on both streams.

        Raises
        ------
        AssertionError
            If it fails, unless `check` is false; shows what it printed.
        """
        return self.run("docker", *arguments, check=check)

    def run(self, *command: str, check: bool = True, both: bool = True, cwd: Path | None = None) -> str:
        """Run a command that speaks to the engine; `both` adds what it prints on standard error."""
        done = subprocess.run(
            command, cwd=cwd, env=dict(self.environment), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr if both else done.stdout


@contextmanager
def running_engine() -> Iterator[Engine]:
    """An engine for the time of the block; stopped after it if it was started for it.

    Raises
    ------
    NoEngineError
        If there is none and none can be started.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    if STARTER.is_file():
        with _started(environment) as (found, base_image):
            yield Engine(found, _compose(found), base_image)
    elif _responds(environment):
        yield Engine(environment, _compose(environment), os.environ.get("BASE_IMAGE"))
    else:
        raise NoEngineError("`docker info` finds no engine")


@contextmanager
def _started(environment: dict[str, str]) -> Iterator[tuple[dict[str, str], str | None]]:
    folder = Path(os.environ.get(_STARTER_FOLDER) or Path("/var/tmp", "prism-docker"))
    before = engine_of(folder)
    forget_dead_engine(folder)
    told = subprocess.run(
        [str(STARTER)], env=environment | {_STARTER_FOLDER: str(folder)}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=_START_S, check=False,
    )  # fmt: skip
    if told.returncode:
        raise NoEngineError(f"{STARTER.name} could not start one: {told.stderr.strip()[-500:]}")
    exports = dict(re.findall(r"export (\w+)=(\S+)", told.stdout))
    try:
        yield environment | exports, exports.get("PRISM_BASE_IMAGE")
    finally:
        started = engine_of(folder)
        if started is not None and before is None:
            os.kill(started, signal.SIGTERM)
            eventually(lambda: engine_of(folder) is None, "the Docker engine ends", deadline=60)


def engine_of(folder: Path) -> int | None:
    """Process id of the engine that the starter started in `folder`, if it runs."""
    return _pid_in(folder, "dockerd.pid")


def forget_dead_engine(folder: Path) -> None:
    """Delete the process ids that a killed engine left: if one is another process's by now, no engine would start."""
    for name in ENGINE_PIDS:
        if _pid_in(folder, name) is None:
            (folder / name).unlink(missing_ok=True)


def _pid_in(folder: Path, name: str) -> int | None:
    try:
        pid = int((folder / name).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if ENGINE_PIDS[name] in command else None


def _responds(environment: Mapping[str, str]) -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], env=dict(environment), capture_output=True, check=False).returncode == 0


def _compose(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The newest that there is; ``COMPOSE`` in the environment names another."""
    chosen = [tuple(os.environ["COMPOSE"].split())] if os.environ.get("COMPOSE") else list(_COMPOSE)
    for command in chosen:
        with_version = [*command, "version"]
        if (
            shutil.which(command[0])
            and not subprocess.run(with_version, env=dict(environment), capture_output=True, check=False).returncode
        ):
            return command
    raise NoEngineError(f"there is an engine, but none of {[' '.join(command) for command in chosen]}")
