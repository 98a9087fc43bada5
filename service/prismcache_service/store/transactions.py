"""The transactions of a store in a database: SQLite on the service's own disk, or PostgreSQL.

A transaction that has begun is completed: when a client disconnects, only the waiting for the transaction is cancelled.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import URL, Delete, Table, Update, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from prismcache.errors import StorageError
from prismcache_service.store.database import (
    WRITES,
    is_sqlite,
    make_engine,
    parse_url,
    prepare,
    sqlite_path,
    translated,
)
from prismcache_service.store.tables import jobs

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Store = TypeVar("_Store", bound="SqlTransactions")


def whole(
    method: Callable[Concatenate[_Store, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[_Store, _P], Coroutine[Any, Any, _T]]:
    """Run a method to its end even if its caller is cancelled."""

    @functools.wraps(method)
    async def to_its_end(self: _Store, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        task = asyncio.create_task(method(self, *args, **kwargs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    return to_its_end


class SqlTransactions:
    """Connections to one database, for one event loop. `open` returns one; `aclose` closes it."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine = make_engine(url)
        self._writer = self._engine.execution_options(**{WRITES: True})
        # All statements of a method read one snapshot, as SQLite's transactions always do.
        consistent = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reader = self._engine if is_sqlite(url) else self._engine.execution_options(**consistent)
        self._insert: Callable[[Table], sqlite.Insert | postgresql.Insert]
        self._insert = sqlite.insert if is_sqlite(url) else postgresql.insert
        # Writes happen in the order of the calls, also those whose caller was cancelled. (SQLite allows one writer at a
        # time, but does not keep their order.)
        self._turn = asyncio.Lock()
        self._file = _identity(url)
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open the store at a SQLAlchemy URL; create or migrate the database if needed.

        Raises
        ------
        ConfigError
            If the URL cannot be used: a network file system, no such database or user, a newer schema.
        StorageError
            If the database does not respond, or cannot be written.
        """
        parsed = parse_url(url)
        await asyncio.to_thread(prepare, parsed)
        return cls(parsed)

    async def check(self) -> None:
        """Raise `StorageError` if the database cannot be read, or its SQLite file is not the one that was opened."""
        if self._file != _identity(self._url):
            raise StorageError(
                f"the job store {sqlite_path(self._url)} was removed or replaced while it was in use",
                remedy="Restart the service; it then creates a new one.",
            )
        async with self._reading() as connection:
            await connection.execute(select(jobs.c.id).limit(1))

    async def aclose(self) -> None:
        """Wait for running transactions, then close the connections."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running)
        await self._engine.dispose()

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        self._refuse_if_closed()
        with translated(self._url):
            async with self._reader.connect() as connection:
                yield connection

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        self._refuse_if_closed()
        with translated(self._url):
            async with self._turn, self._writer.begin() as connection:
                yield connection

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise StorageError("the job store is closed", remedy="The service is shutting down; try again soon.")


async def count(connection: AsyncConnection, statement: Update | Delete) -> int:
    """Return how many rows a change has affected."""
    return (await connection.execute(statement)).rowcount


def _identity(url: URL) -> tuple[int, int] | None:
    """Return device and inode of the file at the URL; None if there is none, or the database is a server."""
    if not is_sqlite(url):
        return None
    try:
        status = sqlite_path(url).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
