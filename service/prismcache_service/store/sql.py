"""The job store in a database: SQLite on the service's own disk, or PostgreSQL, with the same statements.

Each method is one transaction. A transaction that has begun is completed: when a client disconnects, only the waiting
for the transaction is cancelled. Rows that cannot be read (of a newer version, or damaged) are left out and logged, so
that one bad row does not prevent the service from starting.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import URL, Delete, Row, Select, Table, Update, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from prismcache.errors import StorageError
from prismcache.schema import CropProgress, JobEvent, JobRequest, Split, State
from prismcache_service.kept import LeaseRecord
from prismcache_service.store.base import JobRecord, JobStore
from prismcache_service.store.database import (
    WRITES,
    is_sqlite,
    make_engine,
    parse_url,
    prepare,
    sqlite_path,
    translated,
)
from prismcache_service.store.tables import events, job_crops, jobs, leases, pins, uses

_P = ParamSpec("_P")
_T = TypeVar("_T")

_MAX_INTEGER = 2**63 - 1
_FINAL = [state.value for state in State if state.is_final]

_log = logging.getLogger(__name__)


def _whole(
    method: Callable[Concatenate[SqlJobStore, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[SqlJobStore, _P], Coroutine[Any, Any, _T]]:
    """Run a method to its end even if its caller is cancelled."""

    @functools.wraps(method)
    async def to_its_end(self: SqlJobStore, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        task = asyncio.create_task(method(self, *args, **kwargs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    return to_its_end


class SqlJobStore(JobStore):
    """A store whose content survives the process. `open` returns one; `aclose` closes it. For one event loop.

    Parameters
    ----------
    url
        As `parse_url` returns it; the database must have the current schema.

    Examples
    --------
    >>> store = await SqlJobStore.open("sqlite+aiosqlite:////var/lib/prismcache/jobs.sqlite")  # doctest: +SKIP
    """

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

    @_whole
    async def add_job(self, job: JobRecord) -> JobEvent:
        row = {
            "id": job.id,
            "owner": job.owner,
            "split": job.request.split.value,
            "state": job.state.value,
            "request": job.request.model_dump_json(),
            "created_at": job.created_at,
            "submitters": json.dumps(job.submitters),
        }
        crops = [
            {"job_id": job.id, "crop": crop.crop, "position": position, "progress": crop.model_dump_json()}
            for position, crop in enumerate(job.crops)
        ]
        async with self._writing() as connection:
            await connection.execute(insert(jobs), row)
            if crops:
                await connection.execute(insert(job_crops), crops)
            return await _add_event(connection, job.id, "submitted", job.state, None)

    @_whole
    async def update_job(self, job_id: str, kind: str, state: State, crop: CropProgress | None = None) -> JobEvent:
        key = _text(job_id)
        async with self._writing() as connection:
            # This comes first because it locks the job, so that events are numbered in the order of their commits.
            if not await _count(connection, update(jobs).where(jobs.c.id == key).values(state=state.value)):
                raise KeyError(job_id)
            if crop is not None:
                this = update(job_crops).where(job_crops.c.job_id == key, job_crops.c.crop == crop.crop)
                if not await _count(connection, this.values(progress=crop.model_dump_json())):
                    raise KeyError(crop.crop)
            return await _add_event(connection, key, kind, state, crop)

    @_whole
    async def set_submitters(self, job_id: str, submitters: Collection[str]) -> None:
        this = update(jobs).where(jobs.c.id == _text(job_id)).values(submitters=json.dumps(list(submitters)))
        async with self._writing() as connection:
            await connection.execute(this)

    @_whole
    async def job(self, job_id: str) -> JobRecord | None:
        found = await self._jobs(select(jobs.c.id).where(jobs.c.id == _text(job_id)))
        return found[0] if found else None

    @_whole
    async def job_ids(self, start: str, limit: int) -> list[str]:
        key = _text(start)
        found = select(jobs.c.id).where(func.substr(jobs.c.id, 1, len(key)) == key)  # SQLite's LIKE ignores case
        async with self._reading() as connection:
            return list((await connection.execute(found.order_by(jobs.c.id).limit(limit))).scalars())

    @_whole
    async def unfinished_jobs(self) -> list[JobRecord]:
        return await self._jobs(select(jobs.c.id).where(jobs.c.state.not_in(_FINAL)))

    @_whole
    async def jobs(
        self,
        *,
        states: Collection[State] = (),
        split: Split | None = None,
        owner: str | None = None,
        before: tuple[datetime, str] | None = None,
        limit: int = 100,
    ) -> list[JobRecord]:
        chosen = select(jobs.c.id).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(min(limit, _MAX_INTEGER))
        if states:
            chosen = chosen.where(jobs.c.state.in_([state.value for state in states]))
        if split is not None:
            chosen = chosen.where(jobs.c.split == split.value)
        if owner is not None:
            chosen = chosen.where(jobs.c.owner == _text(owner))
        if before is not None:
            chosen = chosen.where(tuple_(jobs.c.created_at, jobs.c.id) < (before[0], _text(before[1])))
        return (await self._jobs(chosen))[::-1]

    async def _jobs(self, chosen: Select[str]) -> list[JobRecord]:
        """Return the jobs whose ids are `chosen`, oldest first."""
        last_event = select(func.max(events.c.seq)).where(events.c.job_id == jobs.c.id).scalar_subquery()
        found = select(jobs, last_event.label("last_event")).where(jobs.c.id.in_(chosen))
        parts = select(job_crops.c.job_id, job_crops.c.progress).where(job_crops.c.job_id.in_(chosen))
        async with self._reading() as connection:
            rows = (await connection.execute(found.order_by(jobs.c.created_at, jobs.c.id))).all()
            crop_rows = await connection.execute(parts.order_by(job_crops.c.position))
        crops: dict[str, list[str]] = {}
        for row in crop_rows:
            crops.setdefault(row.job_id, []).append(row.progress)
        return _readable("job", rows, lambda row: _job(row, crops.get(row.id, [])))

    @_whole
    async def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[JobEvent]:
        wanted = select(events).where(events.c.job_id == _text(job_id), events.c.seq > min(after, _MAX_INTEGER))
        async with self._reading() as connection:
            rows = await connection.execute(wanted.order_by(events.c.seq).limit(min(limit, _MAX_INTEGER)))
        return _readable("event", rows, _event)

    @_whole
    async def forget_jobs(self, ended_before: datetime) -> int:
        of_job = select(events.c.at).where(events.c.job_id == jobs.c.id)
        ended = of_job.order_by(events.c.seq.desc()).limit(1).scalar_subquery()
        async with self._writing() as connection:
            old = delete(jobs).where(jobs.c.state.in_(_FINAL), ended < ended_before)
            return await _count(connection, old)  # deletes crops and events of the jobs, too

    @_whole
    async def put_lease(self, lease: LeaseRecord) -> None:
        row = {
            "id": lease.id,
            "owner": lease.owner,
            "split": lease.split.value,
            "crops": json.dumps(lease.crops),
            "expires_at": lease.expires_at,
        }
        new = self._insert(leases).values(row)
        async with self._writing() as connection:
            await connection.execute(new.on_conflict_do_update(index_elements=[leases.c.id], set_=row))

    @_whole
    async def lease(self, lease_id: str) -> LeaseRecord | None:
        async with self._reading() as connection:
            rows = await connection.execute(select(leases).where(leases.c.id == _text(lease_id)))
        return next(iter(_readable("lease", rows, _lease)), None)

    @_whole
    async def leases(self, now: datetime) -> list[LeaseRecord]:
        async with self._reading() as connection:
            rows = (await connection.execute(select(leases).order_by(leases.c.expires_at, leases.c.id))).all()
        valid = [row for row in rows if row.expires_at > now]
        if len(valid) < len(rows):  # only then: a read alone never waits for a writer
            async with self._writing() as connection:
                await connection.execute(delete(leases).where(leases.c.expires_at <= now))
        return _readable("lease", valid, _lease)

    @_whole
    async def drop_lease(self, lease_id: str) -> bool:
        async with self._writing() as connection:
            return await _count(connection, delete(leases).where(leases.c.id == _text(lease_id))) > 0

    @_whole
    async def pin(self, split: Split, crop: int, owner: str) -> None:
        new = self._insert(pins).values(split=split.value, crop=crop, owner=owner)
        async with self._writing() as connection:
            await connection.execute(new.on_conflict_do_nothing())

    @_whole
    async def unpin(self, split: Split, crop: int) -> bool:
        this = delete(pins).where(pins.c.split == split.value, pins.c.crop == crop)
        async with self._writing() as connection:
            return await _count(connection, this) > 0

    @_whole
    async def pins(self) -> set[tuple[Split, int]]:
        async with self._reading() as connection:
            rows = await connection.execute(select(pins.c.split, pins.c.crop))
        return set(_readable("pin", rows, lambda row: (Split(row.split), int(row.crop))))

    @_whole
    async def touch(self, crops: Iterable[tuple[Split, int]], at: datetime) -> None:
        # Sorted, so that two services cannot deadlock on each other's rows.
        rows = [{"split": split.value, "crop": crop, "at": at} for split, crop in sorted(set(crops))]
        if not rows:
            return
        new = self._insert(uses)
        newer = new.on_conflict_do_update(index_elements=[uses.c.split, uses.c.crop], set_={"at": new.excluded.at})
        async with self._writing() as connection:
            await connection.execute(newer, rows)

    @_whole
    async def last_used(self) -> Mapping[tuple[Split, int], datetime]:
        async with self._reading() as connection:
            rows = await connection.execute(select(uses))
        return dict(_readable("last use", rows, lambda row: ((Split(row.split), int(row.crop)), row.at)))

    @_whole
    async def check(self) -> None:
        if self._file != _identity(self._url):
            raise StorageError(
                f"the job store {sqlite_path(self._url)} was removed or replaced while it was in use",
                remedy="Restart the service: it begins a new one.",
            )
        async with self._reading() as connection:
            await connection.execute(select(jobs.c.id).limit(1))

    async def aclose(self) -> None:
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


async def _count(connection: AsyncConnection, statement: Update | Delete) -> int:
    """Return how many rows a change has affected."""
    return (await connection.execute(statement)).rowcount


async def _add_event(
    connection: AsyncConnection, job_id: str, kind: str, state: State, crop: CropProgress | None
) -> JobEvent:
    at = datetime.now(UTC)
    text = None if crop is None else crop.model_dump_json()
    row = {"job_id": job_id, "kind": kind, "at": at, "state": state.value, "crop": text}
    seq = (await connection.execute(insert(events).values(row).returning(events.c.seq))).scalar_one()
    return JobEvent(seq=seq, job=job_id, kind=kind, at=at, state=state, crop=crop)


def _job(row: Row[Any], crops: Iterable[str]) -> JobRecord:
    return JobRecord(
        id=row.id,
        owner=row.owner,
        request=JobRequest.model_validate_json(row.request),
        state=State(row.state),
        crops=tuple(CropProgress.model_validate_json(text) for text in crops),
        created_at=row.created_at,
        last_event=row.last_event or 0,
        submitters=tuple(json.loads(row.submitters)),
    )


def _event(row: Row[Any]) -> JobEvent:
    crop = None if row.crop is None else CropProgress.model_validate_json(row.crop)
    return JobEvent(seq=row.seq, job=row.job_id, kind=row.kind, at=row.at, state=State(row.state), crop=crop)


def _lease(row: Row[Any]) -> LeaseRecord:
    return LeaseRecord(
        id=row.id,
        owner=row.owner,
        split=Split(row.split),
        crops=tuple(json.loads(row.crops)),
        expires_at=row.expires_at,
    )


def _readable(what: str, rows: Iterable[Any], make: Callable[[Row[Any]], _T]) -> list[_T]:
    """Return `make` of each row; rows that it cannot read are logged and left out."""
    made = []
    for row in rows:
        try:
            made.append(make(row))
        except (ValueError, TypeError) as error:
            _log.error("a %s in the job store cannot be read and is left out (%s): %s", what, row[0], error)
    return made


def _text(value: str) -> str:
    """Return `value` with characters that no database stores (NUL, lone surrogates) replaced: it equals no key."""
    return re.sub("[\0\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value)


def _identity(url: URL) -> tuple[int, int] | None:
    """Return device and inode of the file at the URL; None if there is none, or the database is a server."""
    if not is_sqlite(url):
        return None
    try:
        status = sqlite_path(url).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
