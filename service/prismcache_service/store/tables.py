"""The tables of the SQL job store, the same on SQLite and PostgreSQL.

Fields that are filtered or sorted by have columns of their own; the rest of a request, a crop's progress or an event is
JSON text, so that a new field of the wire models needs no migration. A change in this module needs a migration (see
`migrations`); a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Index, Integer, MetaData, Table, Text, TypeDecorator
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect

# Fixed names, which migrations need; each database would choose other ones.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime to the microsecond, returned in UTC. SQLite stores it as text that sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the value in UTC; without a zone for SQLite, which cannot store one."""
        if value is None:
            return None
        try:
            utc = value.astimezone(UTC)
        except OverflowError:  # the first or the last day of the calendar, in another zone
            utc = value.replace(tzinfo=UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's
        """Return the stored value in UTC; PostgreSQL returns it in the zone of its session."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Cursors compare ids, so ids are sorted by code point, as in Python and SQLite, with any collation of the database.
_Id = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# SQLite assigns numbers only in a column that is declared INTEGER.
_Serial = BigInteger().with_variant(Integer(), "sqlite")

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("split", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("submitters", Text, nullable=False, server_default="[]"),
    Index(None, "created_at", "id"),
    Index(None, "state"),
)

job_crops = Table(
    "job_crops",
    metadata,
    Column("job_id", _Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("crop", Integer, primary_key=True, autoincrement=False),
    Column("position", Integer, nullable=False),
    Column("progress", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", _Serial, primary_key=True),
    Column("job_id", _Id, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("state", Text, nullable=False),
    Column("crop", Text),
    Index(None, "job_id", "seq"),
    sqlite_autoincrement=True,  # `seq` always grows: numbers of deleted events are not used again
)

leases = Table(
    "leases",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("split", Text, nullable=False),
    Column("crops", Text, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

links = Table(
    "links",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("sha256", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("split", Text, nullable=False),
    Column("crop", Integer, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
)

pins = Table(
    "pins",
    metadata,
    Column("split", Text, primary_key=True),
    Column("crop", Integer, primary_key=True, autoincrement=False),
    Column("owner", Text, nullable=False),
)

uses = Table(
    "uses",
    metadata,
    Column("split", Text, primary_key=True),
    Column("crop", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
)

figures = Table(
    "figures",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),  # Unix time in s, which both databases can round down
    Column("fetched_bytes", BigInteger, nullable=False),
    Column("hits", BigInteger, nullable=False),
    Column("misses", BigInteger, nullable=False),
    Column("used_bytes", BigInteger, nullable=False),
    Index(None, "at"),
)
