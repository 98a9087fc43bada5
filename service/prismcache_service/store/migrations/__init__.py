"""The database's schema, from one version to the next: alembic, run from the program itself.

To change the schema: change `tables`, add ``versions/r<number>_<what>.py`` with the next revision, and run the tests,
which compare what the migrations make with the tables. A released migration never changes.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

# Services that start at once on one PostgreSQL database migrate one after another. Any constant will do.
_LOCK = 0x70_72_69_73_6D  # "prism"


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Bring a database to `revision`, within the transaction that is open on `connection`."""
    command.upgrade(_config(connection), revision)


def downgrade(connection: Connection, revision: str) -> None:
    """Take a database back to `revision` (``base``: to nothing), within the transaction that is open."""
    command.downgrade(_config(connection), revision)


def _config(connection: Connection) -> Config:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    config = Config()  # the settings that are usually in alembic.ini
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
