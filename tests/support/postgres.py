"""A real PostgreSQL server for the tests: Debian's package, in a temporary folder, reached by a socket in that folder.

``pytest_plugins = ["tests.support.postgres"]`` in a test module gives it the fixture `postgres_server`, one server for
the whole run.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import pytest

from tests.support.processes import eventually

STOP_TIMEOUT = 10.0

_INSTALLED = Path("/usr/lib/postgresql")
_USER = "prismcache"


class PostgresServer:
    """A server with databases of its own, as a child process; a context manager that ends it.

    It never listens on a port, and where the tests run as root it runs as another user, since it refuses root.

    Parameters
    ----------
    programs
        The folder with ``initdb``, ``postgres`` and ``psql``.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._numbers = itertools.count(1)

    def start(self) -> Self:
        """Make a cluster and start the server.

        Raises
        ------
        RuntimeError
            If it does not; carries the end of what it said.
        """
        # In the system's folder for such, not pytest's, which no other user can enter; a socket's path is short, too.
        self._folder = Path(tempfile.mkdtemp(prefix="prismcache-pg-"))
        if (account := _account()) is not None:
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        self._log = (self._folder / "log").open("wb")
        try:
            self._initialise()
            self._launch()
            eventually(self._responds, "PostgreSQL responds")
        except (OSError, subprocess.SubprocessError, RuntimeError) as error:
            said = (self._folder / "log").read_text(errors="replace")[-2000:]
            self.stop()
            raise RuntimeError(f"PostgreSQL did not start ({error}): {said}") from error
        return self

    def stop(self) -> None:
        """End the server and delete its files; nothing happens if that is done."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT)  # "immediate": what it has not written yet is not wanted any more
            process.wait(STOP_TIMEOUT)
        if self._log is not None:
            self._log.close()
            self._log = None
            shutil.rmtree(self._folder)

    def restart(self) -> None:
        """End all sessions and start again with the same databases."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signal.SIGINT)  # "fast": sessions are ended, not waited for
        self._process.wait(STOP_TIMEOUT)
        self._launch()
        eventually(self._responds, "PostgreSQL responds again")

    def create_database(self) -> str:
        """The SQLAlchemy URL of a new, empty database, whose collation is not the order of code points."""
        name = f"prism{next(self._numbers)}"
        self.run_sql(f'CREATE DATABASE "{name}" TEMPLATE template0')
        return f"postgresql+asyncpg://{_USER}@/{name}?host={self._folder}"

    def run_sql(self, statement: str, database: str = "postgres") -> str:
        """What ``psql`` prints of a statement."""
        done = subprocess.run(
            self._client("psql", "-d", database, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement),
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _initialise(self) -> None:
        command = [
            str(self._programs / "initdb"), "-D", str(self._folder / "data"), "-U", _USER, "--auth=trust", "--no-sync",
            "--encoding=UTF8", "--locale=C.UTF-8",
        ]  # fmt: skip
        if int(self._programs.parent.name) >= 15:
            command += ["--locale-provider=icu", "--icu-locale=en-US"]
        subprocess.run(
            command, check=True, stdout=self._log, stderr=self._log, cwd=self._folder, timeout=60, **_run_as(_account())
        )

    def _launch(self) -> None:
        # fsync guards against power cuts alone, which no test makes.
        command = [
            str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-k", str(self._folder),
            "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=60",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=self._folder,
            **_run_as(_account()),
        )

    def _responds(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"it ended with code {self._process.returncode}")
        return subprocess.run(self._client("pg_isready", "-q"), check=False).returncode == 0

    def _client(self, program: str, *arguments: str) -> list[str]:
        return [str(self._programs / program), "-h", str(self._folder), "-U", _USER, *arguments]


def find_programs() -> Path | None:
    """The programs of the newest PostgreSQL that Debian's packages have put here; None if there is none."""
    found = [path.parent for path in _INSTALLED.glob("*/bin/postgres") if path.parent.parent.name.isdigit()]
    return max(found, key=lambda path: int(path.parent.name), default=None)


def _account() -> pwd.struct_passwd | None:
    """Who the server runs as, where that is not the tests' own user: it refuses root."""
    if os.geteuid() != 0:
        return None
    accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
    return accounts.get("postgres", accounts["nobody"])


def _run_as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server, shared by all tests, each with databases of its own."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: `.ci/install-postgresql`, as root on Debian or Ubuntu, does it")
    with PostgresServer(programs) as server:
        yield server
