"""The job store in a database: SQLite on the service's own disk, or PostgreSQL, with the same statements.

Each method is one transaction. Rows that cannot be read (of a newer version, or damaged) are left out and logged, so
that one bad row does not prevent the service from starting.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import Row, Select, Table, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from prismcache.schema import CropProgress, JobEvent, JobRequest, Split, State
from prismcache_service.store.base import Figures, JobRecord, JobStore, LeaseRecord, LinkRecord
from prismcache_service.store.tables import events, job_crops, jobs, leases, links, pins, uses
from prismcache_service.store.tables import figures as table_of_figures
from prismcache_service.store.transactions import SqlTransactions, count, whole

_T = TypeVar("_T")

_MAX_INTEGER = 2**63 - 1
_FINAL = [state.value for state in State if state.is_final]

_log = logging.getLogger(__name__)


class SqlJobStore(SqlTransactions, JobStore):
    """A store whose content survives the process. `open` returns one; `aclose` closes it. For one event loop.

    Examples
    --------
    >>> store = await SqlJobStore.open("sqlite+aiosqlite:////var/lib/prismcache/jobs.sqlite")  # doctest: +SKIP
    """

    @whole
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

    @whole
    async def update_job(self, job_id: str, kind: str, state: State, crop: CropProgress | None = None) -> JobEvent:
        key = _text(job_id)
        async with self._writing() as connection:
            # This comes first because it locks the job, so that events are numbered in the order of their commits.
            if not await count(connection, update(jobs).where(jobs.c.id == key).values(state=state.value)):
                raise KeyError(job_id)
            if crop is not None:
                this = update(job_crops).where(job_crops.c.job_id == key, job_crops.c.crop == crop.crop)
                if not await count(connection, this.values(progress=crop.model_dump_json())):
                    raise KeyError(crop.crop)
            return await _add_event(connection, key, kind, state, crop)

    @whole
    async def set_submitters(self, job_id: str, submitters: Collection[str]) -> None:
        this = update(jobs).where(jobs.c.id == _text(job_id)).values(submitters=json.dumps(list(submitters)))
        async with self._writing() as connection:
            await connection.execute(this)

    @whole
    async def job(self, job_id: str) -> JobRecord | None:
        found = await self._jobs(select(jobs.c.id).where(jobs.c.id == _text(job_id)))
        return found[0] if found else None

    @whole
    async def job_ids(self, start: str, limit: int) -> list[str]:
        key = _text(start)
        found = select(jobs.c.id).where(func.substr(jobs.c.id, 1, len(key)) == key)  # SQLite's LIKE ignores case
        async with self._reading() as connection:
            return list((await connection.execute(found.order_by(jobs.c.id).limit(limit))).scalars())

    @whole
    async def unfinished_jobs(self) -> list[JobRecord]:
        return await self._jobs(select(jobs.c.id).where(jobs.c.state.not_in(_FINAL)))

    @whole
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

    @whole
    async def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[JobEvent]:
        wanted = select(events).where(events.c.job_id == _text(job_id), events.c.seq > min(after, _MAX_INTEGER))
        async with self._reading() as connection:
            rows = await connection.execute(wanted.order_by(events.c.seq).limit(min(limit, _MAX_INTEGER)))
        return _readable("event", rows, _event)

    @whole
    async def forget_jobs(self, ended_before: datetime) -> int:
        of_job = select(events.c.at).where(events.c.job_id == jobs.c.id)
        ended = of_job.order_by(events.c.seq.desc()).limit(1).scalar_subquery()
        async with self._writing() as connection:
            old = delete(jobs).where(jobs.c.state.in_(_FINAL), ended < ended_before)
            return await count(connection, old)  # deletes crops and events of the jobs, too

    @whole
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

    @whole
    async def lease(self, lease_id: str) -> LeaseRecord | None:
        async with self._reading() as connection:
            rows = await connection.execute(select(leases).where(leases.c.id == _text(lease_id)))
        return next(iter(_readable("lease", rows, _lease)), None)

    @whole
    async def leases(self, now: datetime) -> list[LeaseRecord]:
        return _readable("lease", await self._valid(leases, now), _lease)

    @whole
    async def drop_lease(self, lease_id: str) -> bool:
        async with self._writing() as connection:
            return await count(connection, delete(leases).where(leases.c.id == _text(lease_id))) > 0

    @whole
    async def put_link(self, link: LinkRecord) -> None:
        row = vars(link) | {"split": link.split.value, "owner": _text(link.owner), "note": _text(link.note)}
        async with self._writing() as connection:
            await connection.execute(insert(links), row)

    @whole
    async def link(self, link_id: str) -> LinkRecord | None:
        async with self._reading() as connection:
            rows = await connection.execute(select(links).where(links.c.id == _text(link_id)))
        return next(iter(_readable("link", rows, _link)), None)

    @whole
    async def links(self, now: datetime) -> list[LinkRecord]:
        return _readable("link", await self._valid(links, now), _link)

    @whole
    async def drop_link(self, link_id: str) -> bool:
        async with self._writing() as connection:
            return await count(connection, delete(links).where(links.c.id == _text(link_id))) > 0

    async def _valid(self, table: Table, now: datetime) -> list[Row[Any]]:
        """Return the rows of leases or links that are valid at `now`; delete the others."""
        async with self._reading() as connection:
            rows = (await connection.execute(select(table).order_by(table.c.expires_at, table.c.id))).all()
        valid = [row for row in rows if row.expires_at > now]
        if len(valid) < len(rows):  # only then: a read alone never waits for a writer
            async with self._writing() as connection:
                await connection.execute(delete(table).where(table.c.expires_at <= now))
        return valid

    @whole
    async def pin(self, split: Split, crop: int, owner: str) -> None:
        new = self._insert(pins).values(split=split.value, crop=crop, owner=owner)
        async with self._writing() as connection:
            await connection.execute(new.on_conflict_do_nothing())

    @whole
    async def unpin(self, split: Split, crop: int) -> bool:
        this = delete(pins).where(pins.c.split == split.value, pins.c.crop == crop)
        async with self._writing() as connection:
            return await count(connection, this) > 0

    @whole
    async def pins(self) -> set[tuple[Split, int]]:
        async with self._reading() as connection:
            rows = await connection.execute(select(pins.c.split, pins.c.crop))
        return set(_readable("pin", rows, lambda row: (Split(row.split), int(row.crop))))

    @whole
    async def touch(self, crops: Iterable[tuple[Split, int]], at: datetime) -> None:
        # Sorted, so that two services cannot deadlock on each other's rows.
        rows = [{"split": split.value, "crop": crop, "at": at} for split, crop in sorted(set(crops))]
        if not rows:
            return
        new = self._insert(uses)
        newer = new.on_conflict_do_update(index_elements=[uses.c.split, uses.c.crop], set_={"at": new.excluded.at})
        async with self._writing() as connection:
            await connection.execute(newer, rows)

    @whole
    async def last_used(self) -> Mapping[tuple[Split, int], datetime]:
        async with self._reading() as connection:
            rows = await connection.execute(select(uses))
        return dict(_readable("last use", rows, lambda row: ((Split(row.split), int(row.crop)), row.at)))

    @whole
    async def put_figures(self, row_id: int, figures: Figures, forget_before: datetime) -> None:
        row = asdict(figures) | {"id": row_id, "at": int(figures.at.timestamp())}
        new = self._insert(table_of_figures).values(row)
        old = delete(table_of_figures).where(table_of_figures.c.at < int(forget_before.timestamp()))
        async with self._writing() as connection:
            await connection.execute(new.on_conflict_do_update(index_elements=[table_of_figures.c.id], set_=row))
            await connection.execute(old)

    @whole
    async def figures(self, since: datetime, seconds: int) -> list[Figures]:
        table = table_of_figures.c
        start = table.at - table.at % seconds
        sums = (func.sum(table.fetched_bytes), func.sum(table.hits), func.sum(table.misses))
        found = select(start, *sums, func.max(table.used_bytes)).where(table.at >= int(since.timestamp()))
        async with self._reading() as connection:
            rows = await connection.execute(found.group_by(start).order_by(start))
        return [Figures(datetime.fromtimestamp(at, UTC), *map(int, values)) for at, *values in rows]


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


def _link(row: Row[Any]) -> LinkRecord:
    return LinkRecord(**(dict(row._mapping) | {"split": Split(row.split)}))  # noqa: SLF001 - SQLAlchemy's public API


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
