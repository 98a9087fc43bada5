"""The tables of the SQL job store, the same on SQLite and PostgreSQL.

What is filtered or sorted by has a column of its own; the rest of a request, a crop's progress or an event is JSON
text, so that a new field of the wire models needs no migration. A change here needs one: see `migrations`, and the
test that compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Index, Integer, MetaData, Table, Text, TypeDecorator
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect

# Names that a migration can rely on, whatever a database would make up.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime to the microsecond, handed out in UTC. SQLite keeps it as text, which sorts as time does."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """In UTC; without the zone for SQLite, which would not store it."""
        if value is None:
            return None
        try:
            utc = value.astimezone(UTC)
        except OverflowError:  # the first or the last day of the calendar, in another zone
            utc = value.replace(tzinfo=UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - SQLAlchemy's
        """As it was, in UTC; PostgreSQL answers in the zone of its session."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Sorted by code point whatever the database's collation is, as Python and SQLite do: cursors compare ids.
_Id = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
# SQLite numbers rows by itself only in a column declared INTEGER.
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
    sqlite_autoincrement=True,  # never a number that a forgotten job has had: `seq` grows for ever
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
