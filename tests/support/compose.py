"""docker/compose.yaml on a real engine, as a lab would run it: a project of its own, a folder as the lab's storage."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from prismcache.schema import Job
from tests.support.docker_engine import REPOSITORY, Engine
from tests.support.processes import eventually

IMAGES = {"PRISM_IMAGE": "prismcache:test", "PRISM_DEMO_IMAGE": "prismcache-demo:test"}
OWNER = (4321, 5432)
"""User and group of the lab's storage; nobody on this machine."""
LAB_PATH = "/lab/prism"
COMPOSE_FILE = REPOSITORY / "docker" / "compose.yaml"
BUCKET = "http://s3:9000"

KILL = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)"
"""Python that kills what runs in its container below Docker's init, as the system does when memory is short."""

_START_S = 90.0
# Every folder and file that can be written or made, as the container's user; /proc and /sys are the kernel's.
_WRITABLE = """
import os, json
found = []
for folder, folders, files in os.walk("/"):
    if folder == "/":
        folders[:] = [name for name in folders if name not in {"proc", "sys"}]
    probe = os.path.join(folder, ".probe")
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:
        pass
    else:
        os.unlink(probe)
        found.append(folder)
        folders[:] = []
        continue
    for name in files:
        path = os.path.join(folder, name)
        if not os.path.islink(path) and os.path.isfile(path):
            try:
                os.close(os.open(path, os.O_WRONLY))
            except OSError:
                continue
            found.append(path)
print(json.dumps(found))
"""
# Memory of the container's own, gone with it.
_SCRATCH = {"/dev/shm", "/dev/mqueue"}


def build_settings(engine: Engine) -> dict[str, str]:
    """What the compose file's builds need on this engine."""
    base = {} if engine.base_image is None else {"BASE_IMAGE": engine.base_image}
    # The host's network reaches a package index wherever the host does.
    return IMAGES | base | {"PRISM_BUILD_NETWORK": "host"}


@dataclass
class Stack:
    """A project of compose; a context manager that takes all of it down.

    Attributes
    ----------
    engine
        Where it runs.
    folder
        For its files; the storage is below it.
    settings
        Lines of ``.env`` beyond the necessary.
    services
        What `start` brings up.
    """

    engine: Engine
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    services: tuple[str, ...] = ("s3", "prismcache")

    def __post_init__(self) -> None:
        self.storage = self.folder / "storage"
        self.storage.mkdir()
        self.port = free_port()
        self.project = f"prismtest{self.port}"
        self.tokens: dict[str, str] = {}
        self._write_env()

    @property
    def url(self) -> str:
        """Where the service is published."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        os.chown(self.storage, *OWNER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            sys.stderr.write(self.compose("logs", "--no-color", "--tail", "50", check=False))
        self.compose("kill", check=False)
        self.compose("down", "--volumes", check=False)

    def start(self, *arguments: str) -> None:
        """Bring up the services and wait until the service can work."""
        self.compose("up", "-d", "--no-build", *arguments, *self.services)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the service responds through its published port that it can make crops."""
        eventually(self._is_ready, f"{self.url}/readyz", _START_S)

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            time.sleep(0.05)
            return False

    def compose(self, *arguments: str, check: bool = True, both: bool = True) -> str:
        """Run compose on the project and return what it prints."""
        command = (*self.engine.compose, "--project-name", self.project, "--env-file", str(self._env_file))
        return self.engine.run(*command, "--file", str(COMPOSE_FILE), *arguments, check=check, both=both)

    def create_token(self, name: str, role: str) -> str:
        """Make a token as docs/lab-server.md says; a running service notices it within 2 s."""
        words = ("run", "--rm", "-T", "--no-deps", "prismcache", "token", "create", name, "--role", role)
        self.tokens[role] = token = self.compose(*words, both=False).strip()
        return token

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers, running or not."""
        label = f"com.docker.compose.service={service}"
        project = f"com.docker.compose.project={self.project}"
        words = ("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={label}", "--filter", f"label={project}")
        return self.engine.run("docker", *words, both=False).split()

    def container(self, service: str) -> str:
        """Id of a service's only container."""
        (found,) = self.containers(service)
        return found

    def inspect(self, container: str, template: str) -> str:
        """One figure of a container, as a Go template."""
        return self.engine.run("docker", "inspect", "--format", template, container, both=False).strip()

    def execute(self, container: str, code: str) -> str:
        """Run Python inside a container, as its user."""
        return self.engine.run("docker", "exec", container, "python3", "-c", code, both=False)

    def client(self, role: str | None = None, **options: Any) -> httpx2.Client:
        """An HTTP client with the token of a role, or none; to be closed by the caller."""
        headers = {} if role is None else {"Authorization": f"Bearer {self.tokens[role]}"}
        return httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30, **options)

    def writable(self, container: str) -> set[str]:
        """Folders (with all below them) and files that a container's user can write, but for Docker's shared memory."""
        return set(json.loads(self.execute(container, _WRITABLE))) - _SCRATCH

    def log(self, service: str) -> str:
        """What a service has written."""
        return self.compose("logs", "--no-color", service)

    @property
    def _env_file(self) -> Path:
        return self.folder / "env"

    def _write_env(self) -> None:
        uid, gid = OWNER
        values = build_settings(self.engine) | {
            "PRISM_STORAGE": str(self.storage), "PRISM_UID": str(uid), "PRISM_GID": str(gid),
            "PRISM_LAB_PATH": LAB_PATH, "PRISM_BIND": "127.0.0.1", "PRISM_PORT": str(self.port),
            "PRISMCACHE_S3_ENDPOINT_URL": BUCKET, "COMPOSE_PROFILES": "demo",
        }  # fmt: skip
        lines = [f"{name}={value}\n" for name, value in (values | dict(self.settings)).items()]
        self._env_file.write_text("".join(lines))


def job(http: httpx2.Client, job_id: str) -> Job:
    """A job as the service tells it, which may be on its way up."""
    return Job.model_validate(http.get(f"/v1/jobs/{job_id}").raise_for_status().json())


def ended(http: httpx2.Client, job_id: str, deadline: float = 120.0) -> Job:
    """The job once it is over, whatever happens to the service meanwhile.

    Raises
    ------
    TimeoutError
        If that takes longer.
    """
    found: list[Job] = []

    def over() -> bool:
        try:
            found[:] = [job(http, job_id)]
        except httpx2.HTTPError:
            time.sleep(0.1)
            return False
        time.sleep(0.05)
        return found[0].state.is_final

    eventually(over, f"job {job_id} is over", deadline)
    return found[0]


def free_port() -> int:
    """A port to publish: not 0, for which Docker would choose another one at each start of the container."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
