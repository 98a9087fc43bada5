"""The job store's database: its URL, its file or server, and the place where its errors become prismcache's.

On a local disk, SQLite keeps committed data through a kill and a power cut. On a network file system its locks and its
shared memory do not work, so such a folder is refused. A damaged file is set aside and a new one is created: the cached
crops are in the cache folder, and only jobs, leases and pins are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic.util import CommandError
from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from prismcache.disk import storage_error
from prismcache.errors import (
    ConfigError,
    MissingExtraError,
    NoSpaceError,
    PrismError,
    StorageError,
    StorageUnwritableError,
)
from prismcache_service.config import ServiceConfig
from prismcache_service.store import migrations
from prismcache_service.store.local_disk import refuse_network_file_system

FILE_NAME = "jobs.sqlite"
WRITES = "prismcache_writes"  # execution option of a connection whose transactions write

_BUSY_S = 30.0
_CONNECT_S = 10.0
_COMMAND_S = 30.0
_POOL_SIZE = 5

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DENIED = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM})
_NO_DATABASE = ("28", "3D", "3F", "42")  # PostgreSQL: user, database, schema, permissions

_log = logging.getLogger(__name__)
_migrating = threading.Lock()  # alembic keeps the current migration in global variables


def database_url(config: ServiceConfig) -> str:
    """Return the URL of the job store: the configured one, else SQLite in the state folder.

    Raises
    ------
    ConfigError
        If the state folder lies on a network file system.
    """
    if config.database_url is not None:
        return config.database_url
    refuse_network_file_system(config.state_folder)
    url = URL.create("sqlite+aiosqlite", database=str(config.state_folder.absolute() / FILE_NAME))
    return url.render_as_string(hide_password=False)


def parse_url(url: str) -> URL:
    """Return a URL as SQLAlchemy's, with the driver that is used.

    Raises
    ------
    ConfigError
        If it is not a URL of SQLite or PostgreSQL; the message does not repeat it, because it may contain a password.
    """
    remedy = "Set PRISMCACHE_DATABASE_URL to postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE, or leave it out."
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError("the database URL cannot be read", remedy=remedy) from None
    if parsed.drivername not in _DRIVERS:
        raise ConfigError(f"jobs cannot be stored with {parsed.drivername!r}", remedy=remedy)
    parsed = parsed.set(drivername=_DRIVERS[parsed.drivername])
    if is_sqlite(parsed):
        name = parsed.database or ""
        if name in {"", ":memory:"} or name.startswith("file:"):
            raise ConfigError(
                "jobs cannot be stored in memory, because they must survive a restart: the URL names no file",
                remedy=remedy,
            )
    elif find_spec("asyncpg") is None:
        raise MissingExtraError(
            "PostgreSQL's driver is not installed", remedy='Run `pip install "prismcache[postgres]"`.'
        )
    return parsed


def is_sqlite(url: URL) -> bool:
    """Return True if the database is a SQLite file, False if it is a server."""
    return url.get_backend_name() == "sqlite"


def sqlite_path(url: URL) -> Path:
    """Return the file of a SQLite URL."""
    return Path(url.database or "").absolute()


def prepare(url: URL) -> None:
    """Create or migrate the database at `url`, and set a damaged file aside. This blocks: call it in a thread.

    Raises
    ------
    ConfigError
        If the URL cannot be used, or a newer version of prismcache has written the database.
    StorageError
        If the database does not respond.
    """
    with translated(url):
        if is_sqlite(url):
            _prepare_file(sqlite_path(url))
        with _migrating:
            asyncio.run(_migrate(url))


async def _migrate(url: URL) -> None:
    engine = make_engine(url, migrating=True)
    try:
        async with engine.execution_options(**{WRITES: True}).begin() as connection:
            await connection.run_sync(migrations.upgrade)
    finally:
        await engine.dispose()


def make_engine(url: URL, *, migrating: bool = False) -> AsyncEngine:
    """Return an engine (a pool of connections), which the caller must dispose of.

    Parameters
    ----------
    migrating
        Without a time limit for statements, and without SQLite's foreign keys: when a migration replaces a table, rows
        that refer to the old one would be deleted.
    """
    # Parameters hidden: values must not get into logs.
    common: dict[str, Any] = {"pool_size": _POOL_SIZE, "max_overflow": 0, "hide_parameters": True}
    if is_sqlite(url):
        engine = create_async_engine(url, connect_args={"timeout": _BUSY_S, "isolation_level": None}, **common)
        _set_up_sqlite(engine, foreign_keys=not migrating)
        return engine
    arguments = {
        "timeout": _CONNECT_S,
        "command_timeout": None if migrating else _COMMAND_S,
        "server_settings": {"application_name": "prismcache"},
    }
    # Pre-ping: each connection is checked before use, so that no request fails after a restart of the server.
    return create_async_engine(url, connect_args=arguments, pool_pre_ping=True, **common)


def _set_up_sqlite(engine: AsyncEngine, *, foreign_keys: bool) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        mode = cursor.fetchone()[0]
        if mode != "wal":
            raise ConfigError(
                f"the file system of the job store cannot do SQLite's write-ahead log (it stays {mode!r})",
                remedy="Set PRISMCACHE_STATE_FOLDER to a folder on a local disk.",
            )
        cursor.execute("PRAGMA synchronous = FULL")  # data are on the disk when a commit returns
        cursor.execute(f"PRAGMA foreign_keys = {int(foreign_keys)}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        # A transaction that reads, then writes, would fail instead of waiting if another one wrote in between.
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_file(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise storage_error(error, path.parent, "PRISMCACHE_STATE_FOLDER") from error
    refuse_network_file_system(path.parent)
    if path.exists() and not _is_sound(path):
        aside = _set_aside(path)
        _log.error(
            "%s is damaged: set aside as %s and replaced. Its jobs, leases and pins are lost; cached crops are not.",
            path,
            aside.name,
        )


def _is_sound(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_S)) as connection:
        try:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        except sqlite3.DatabaseError as error:
            if _primary_code(error) in _DAMAGED:
                return False
            raise


def _set_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    try:
        # The write-ahead log first: a new database must not find the old log.
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    except OSError as error:
        raise storage_error(error, path, "PRISMCACHE_STATE_FOLDER") from error
    return aside


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """Raise errors of drivers and SQLAlchemy within the block as prismcache's errors."""
    try:
        yield
    except PrismError:
        raise
    except CommandError as error:
        raise ConfigError(
            f"the schema of {_shown(url)} is not known to this version of prismcache",
            remedy="A newer version or another program has used this database: upgrade, or use a database of its own.",
        ) from error
    except _foreign_errors(url) as error:
        raise _database_error(error, url) from error


def _foreign_errors(url: URL) -> tuple[type[Exception], ...]:
    # Failures to connect are not wrapped by SQLAlchemy.
    if is_sqlite(url):
        return SQLAlchemyError, OSError, sqlite3.Error
    driver: Any = import_module("asyncpg")  # asyncpg has no types
    return SQLAlchemyError, OSError, driver.PostgresError, driver.InterfaceError


def _database_error(error: Exception, url: URL) -> PrismError:
    cause: BaseException = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    cause = cause.__cause__ or cause  # the driver's own error, if SQLAlchemy wraps it twice
    reason = (str(cause) or type(cause).__name__).splitlines()[0]
    message = f"the job store {_shown(url)} failed: {reason}"
    state = getattr(cause, "sqlstate", None) or ""
    code = _primary_code(cause)
    if state == "53100" or code == sqlite3.SQLITE_FULL:
        return NoSpaceError(message, remedy="Free space on the disk of the job store's database.")
    if state == "25006" or code in _DENIED:
        return StorageUnwritableError(message, remedy="Let the service write its database (PRISMCACHE_STATE_FOLDER).")
    if state.startswith(_NO_DATABASE):
        return ConfigError(message, remedy="Check PRISMCACHE_DATABASE_URL, and the permissions of its user.")
    if code in _DAMAGED:
        return StorageError(message, remedy="Restart the service: it sets a damaged database aside.")
    return StorageError(message)


def _primary_code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _shown(url: URL) -> str:
    """Return the URL without password and options, which may contain one too."""
    return str(sqlite_path(url)) if is_sqlite(url) else url.set(query={}).render_as_string(hide_password=True)
