"""Jobs, retention leases, pins, last uses and figures, in a database or in memory. Other rooms import from here."""

from __future__ import annotations

from prismcache_service.config import ServiceConfig
from prismcache_service.store.base import (
    CropKey,
    Figures,
    JobRecord,
    JobStore,
    LeaseRecord,
    LinkRecord,
    MemoryJobStore,
    steady_now,
)

__all__ = [
    "CropKey",
    "Figures",
    "JobRecord",
    "JobStore",
    "LeaseRecord",
    "LinkRecord",
    "MemoryJobStore",
    "open_store",
    "steady_now",
]


async def open_store(config: ServiceConfig) -> JobStore:
    """Open the service's database, and create or migrate it as needed.

    Raises
    ------
    ConfigError
        If `database_url` cannot be used: a network file system, no such database or user, a newer schema.
    StorageError
        If the database does not respond or cannot be written.
    """
    # Imported here: embedded use has no database, and SQLAlchemy takes long to import.
    from prismcache_service.store.database import database_url
    from prismcache_service.store.sql import SqlJobStore

    return await SqlJobStore.open(database_url(config))
